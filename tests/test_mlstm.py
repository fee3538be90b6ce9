"""The mLSTM: against the paper's recurrence without a stabiliser, against extreme gates, initialisation, counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.mixers.mlstm import FORGET_BIAS, MLSTM

D, H, T = 16, 2, 130


def build(kernel: str = "chunked", forget_gate: str = "sigmoid", gates: float = 0.3) -> MLSTM:
    torch.manual_seed(0)
    mixer = MLSTM(d_model=D, n_heads=H, forget_gate=forget_gate, kernel=kernel)  # type: ignore[arg-type]
    with torch.no_grad():
        mixer.gates.weight.normal_(std=gates)
        mixer.norm.weight.normal_(mean=1.0)  # each channel of each head its own
    return mixer


def x(seq_len: int = T) -> Tensor:
    return torch.randn(2, seq_len, D, generator=torch.Generator().manual_seed(1))


def as_written(mixer: MLSTM, inputs: Tensor) -> Tensor:
    """Equations 19 to 27, token by token, in float64."""
    q, k, v = (each.unflatten(-1, (H, -1)) for each in mixer.qkv(inputs).double().chunk(3, -1))
    log_i, log_f = mixer.gates(inputs).double().chunk(2, -1)
    i, f = log_i.exp()[..., None], (log_f.exp() if mixer.has_exp_forget_gate else log_f.sigmoid())[..., None]
    k = k * (D // H) ** -0.5
    C, n = torch.zeros(2, H, D // H, D // H, dtype=torch.float64), torch.zeros(2, H, D // H, dtype=torch.float64)
    hs = []
    for t in range(inputs.shape[1]):
        C = f[:, t, :, None] * C + i[:, t, :, None] * k[:, t, :, :, None] * v[:, t, :, None, :]
        n = f[:, t] * n + i[:, t] * k[:, t]
        read = (C * q[:, t, :, :, None]).sum(-2)
        hs.append(read / (n * q[:, t]).sum(-1, keepdim=True).abs().clamp(min=1))
    h = F.layer_norm(torch.stack(hs, 1), (D // H,), eps=1e-5) * mixer.norm.weight.double().view(H, D // H)
    gated = h.flatten(-2).float() * mixer.output_gate(inputs).sigmoid()
    return mixer.out(gated)


@pytest.mark.parametrize("kernel", ["chunked", "reference"])
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_equals_the_paper_with_gradients(kernel: str, forget_gate: str) -> None:
    mixer = build(kernel, forget_gate)
    if forget_gate == "exp":
        with torch.no_grad():
            mixer.gates.bias[H:] -= 5
    found, expected = mixer(x()), as_written(mixer, x())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    parameters = list(mixer.parameters())
    gradients = (torch.autograd.grad(y.square().sum(), parameters) for y in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65])
@pytest.mark.parametrize("gates", [0.3, 30.0])
def test_steps_equal_the_parallel_form(length: int, gates: float) -> None:
    mixer = build(gates=gates)
    with torch.no_grad():
        expected = mixer(x(66))
        y, state = mixer.prefill(x(66)[:, :length], mixer.init_state(2, 66))
        y_t, _ = mixer.step(x(66)[:, length], state)
    torch.testing.assert_close(torch.cat((y, y_t[:, None]), 1), expected[:, : length + 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_gates_beyond_the_range_of_floats_stay_finite(forget_gate: str) -> None:
    mixer = build(forget_gate=forget_gate, gates=100.0)
    y = mixer(x())
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_gates_start_without_the_token_and_remember() -> None:
    mixer = MLSTM(d_model=D, n_heads=H, forget_gate="sigmoid", kernel="auto")
    assert (mixer.gates.weight == 0).all()
    torch.testing.assert_close(mixer.gates.bias[H:], torch.tensor(FORGET_BIAS))
    assert mixer.gates.bias[:H].abs().max() < 0.5


def test_counts_by_hand() -> None:
    mixer = build()
    assert mixer.flops_per_token(8) == mixer.flops_per_token(8000) == 2 * (5 * 16 * 16 + 16 * 4 + 2 * 2 * 8 * 9)
    assert mixer.state_bytes(8) == mixer.state_bytes(8000) == 4 * (2 * 8 * 9 + 2)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="forget_gate=tanh is unknown here; choose from: sigmoid, exp"):
        build(forget_gate="tanh")
    with pytest.raises(ValueError, match="n_heads=3 must divide d_model=16"):
        MLSTM(d_model=D, n_heads=3, forget_gate="exp", kernel="auto")
