"""sLSTM: the loop against the reference, the paper's unstabilised form, initialisation and counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.mixers.xlstm import SLSTM
from arch_bench.ops.slstm import slstm

H, K = 2, 3


def inputs(length: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    x = scale * torch.randn(2, length, H, 4, K, generator=generator, dtype=torch.float64)
    R = torch.randn(H, K, 4 * K, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), R.requires_grad_()


def make(kernel: str = "loop", **sizes: Any) -> SLSTM:
    torch.manual_seed(0)
    mixer = SLSTM(**{"d_model": H * K, "n_heads": H, "d_conv": 3, **sizes}, kernel=kernel)
    torch.nn.init.normal_(mixer.R, std=0.3)  # starts at zero
    return mixer


@pytest.mark.parametrize("length", [1, 2, 3, 50])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_loop_equals_reference_with_gradients(length: int, scale: float) -> None:
    x, R = inputs(length, scale)
    (found, cell), (expected, wanted) = (slstm(x, R, kernel=kernel) for kernel in ("loop", "reference"))
    torch.testing.assert_close((found, *cell), (expected, *wanted))
    dh = torch.randn_like(found)
    torch.testing.assert_close(*(torch.autograd.grad(h, (x, R), dh) for h in (found, expected)), atol=1e-9, rtol=1e-6)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(lambda x, R: slstm(x, R, kernel="loop")[0], inputs(6), fast_mode=True)


@pytest.mark.parametrize("kernel", ["loop", "reference"])
def test_without_a_stabiliser_it_is_the_same(kernel: str) -> None:
    """Equations 8 to 14, which overflow where gates are large."""
    x, R = (tensor.detach() for tensor in inputs(20))
    h = c = n = torch.zeros(2, H, K, dtype=torch.float64)
    hs = []
    for t in range(20):
        from_h = torch.stack([h[:, head] @ R[head] for head in range(H)], 1).view(2, H, 4, K)
        i, f, z, o = (x[:, t] + from_h).unbind(2)
        c, n = torch.sigmoid(f) * c + i.exp() * torch.tanh(z), torch.sigmoid(f) * n + i.exp()
        h = torch.sigmoid(o) * c / n
        hs.append(h)
    torch.testing.assert_close(slstm(x, R, kernel=kernel)[0], torch.stack(hs, 1))


@pytest.mark.parametrize("kernel", ["loop", "reference"])
def test_gates_of_any_size_stay_finite(kernel: str) -> None:
    x, R = (tensor.detach().float().requires_grad_() for tensor in inputs(100, scale=1e4))
    h, cell = slstm(x, R, kernel=kernel)
    gradients = torch.autograd.grad(h.sum(), (x, R))
    assert all(tensor.isfinite().all() for tensor in (h, *cell, *gradients))
    assert cell.n.min() >= 1


@pytest.mark.parametrize("d_conv", [0, 3])
@torch.no_grad()
def test_steps_equal_forward(d_conv: int) -> None:
    mixer, x = make(d_conv=d_conv), torch.randn(2, 30, H * K)
    expected = mixer(x)
    _, state = mixer.prefill(x[:, :10], mixer.init_state(2, 30))
    for t in range(10, 30):
        y_t, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y_t, expected[:, t], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_gates_by_hand() -> None:
    mixer, x = make(), torch.randn(2, 5, H * K)
    u = F.silu(F.conv1d(F.pad(x.mT, (2, 0)), mixer.conv1d.weight, mixer.conv1d.bias, groups=H * K)).mT  # type: ignore[union-attr]
    gates = mixer._gates(x, u)
    head = slice(K, 2 * K)  # of the second head
    for gate, (seen, weight, half) in enumerate(
        ((u, mixer.W_if, 0), (u, mixer.W_if, 1), (x, mixer.W_zo, 0), (x, mixer.W_zo, 1))
    ):
        expected = seen[..., head] @ weight[1][:, half * K : (half + 1) * K] + mixer.bias[1, gate]
        torch.testing.assert_close(gates[..., 1, gate, :], expected)


@torch.no_grad()
def test_the_recurrence_is_float32_under_autocast() -> None:
    x, R = (tensor.detach().bfloat16() for tensor in inputs(30))
    with torch.autocast("cpu", torch.bfloat16):
        h, cell = slstm(x, R, kernel="loop")
        _, *state = make().init_state(2, 30)
    assert {tensor.dtype for tensor in (h, *cell, *state)} == {torch.float32}
    torch.testing.assert_close(h, slstm(x.float(), R.float(), kernel="loop")[0], atol=0, rtol=0)


def test_initialisation() -> None:
    torch.manual_seed(0)
    mixer = SLSTM(d_model=256, n_heads=4, d_conv=4, kernel="auto")
    assert not mixer.R.any()
    for weight in (mixer.W_if, mixer.W_zo):
        assert weight.std().item() == pytest.approx((2 / (5 * 256)) ** 0.5, rel=0.05)
    forget = mixer.bias[:, 1]
    assert (forget == forget[0]).all()
    assert (forget[0, 0].item(), forget[0, -1].item()) == (5, -7)
    assert (forget.diff(dim=-1) < 0).all()
    assert not mixer.bias[:, [0, 2, 3]].any()
    assert {name: p.shape for name, p in mixer.norm.named_parameters()} == {"weight": (256,)}  # no shift, as theirs
    flagged = {name for name, p in mixer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert flagged == {"R", "bias"}


def test_counts_by_hand() -> None:
    mixer = make()
    assert mixer.flops_per_token(10) == 4 * 2 * H * K * K + 4 * 2 * H * K * K + 2 * 3 * H * K  # W, R, convolution
    assert mixer.state_bytes(10) == mixer.state_bytes(1000) == 4 * (2 * H * K + 4 * H * K)
    with pytest.raises(ValueError, match="n_heads=4 must divide d_model=6"):
        make(n_heads=4)
