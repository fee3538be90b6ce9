"""RG-LRU: the recurrence as it is printed, the initial decays, and counts by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.mixers.rg_lru import RGLRU


def make(kernel: str = "parallel", **sizes: int) -> RGLRU:
    torch.manual_seed(0)
    return RGLRU(**{"d_model": 8, "n_heads": 2, "d_conv": 4, "expand": 2} | sizes, kernel=kernel)  # type: ignore[arg-type]


def printed(m: RGLRU, x: Tensor) -> Tensor:
    """Sections 2.3 and 2.4, position by position, with full matrices."""
    W_r, W_i = (torch.block_diag(*weight) for weight in (m.W_r, m.W_i))
    assert m.conv1d is not None
    convolved = m.conv1d(F.pad(m.in_proj(x).mT, (3, 0))).mT
    a = torch.sigmoid(-m.decay)  # log sigmoid(-decay) = -softplus(decay)
    h, outputs = torch.zeros_like(convolved[:, 0]), []
    for t, (u_t, x_t) in enumerate(zip(convolved.unbind(1), x.unbind(1), strict=True)):
        r, i = torch.sigmoid(u_t @ W_r + m.bias[0]), torch.sigmoid(u_t @ W_i + m.bias[1])
        a_t = a ** (8 * r)
        h = a_t * h + (1 - a_t**2).sqrt() * (i * u_t) if t else i * u_t
        outputs.append(m.out_proj(h * F.gelu(m.gate_proj(x_t), approximate="tanh")))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("kernel", ["parallel", "reference"])
@pytest.mark.parametrize("length", [1, 2, 33])
def test_equals_what_is_printed(kernel: str, length: int) -> None:
    m = make(kernel).double()
    x = torch.randn(2, length, 8, dtype=torch.float64, requires_grad=True)
    found, expected = m(x), printed(m, x)
    torch.testing.assert_close(found, expected)
    inputs = [x, *m.parameters()]
    dy = torch.randn_like(found)
    gradients = (torch.autograd.grad(y, inputs, dy, materialize_grads=True) for y in (found, expected))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_it_starts_as_its_authors_do() -> None:
    """recurrentgemma, torch/layers.py and torch/modules.py: `rnn_param_init(min_rad=0.9, max_rad=0.999)`, `w_init_`."""
    m = make(d_model=512, expand=1)
    a = torch.sigmoid(-m.decay)
    assert 0.9 <= a.min() < 0.91
    assert 0.99 < a.max() <= 0.999 + 1e-6
    assert a.square().mean().item() == pytest.approx((0.9**2 + 0.999**2) / 2, abs=0.01)
    for linear in (m.in_proj, m.gate_proj, m.out_proj):
        assert linear.weight.std().item() == pytest.approx(512**-0.5, rel=0.02)
    for weight in (m.W_r, m.W_i):
        assert weight.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert m.conv1d is not None
    assert m.conv1d.weight.std().item() == pytest.approx((0.01 / 4) ** 0.5, rel=0.05)
    assert not any(p.any() for name, p in m.named_parameters() if name.endswith("bias"))


def test_the_first_position_enters_whole_however_it_is_computed() -> None:
    m, x = make(), torch.randn(2, 6, 8)
    y, state = m.prefill(x[:, :1], m.init_state(2, 6))
    stepped, after = m.step(x[:, 0], m.init_state(2, 6))
    torch.testing.assert_close(stepped, y[:, 0])
    torch.testing.assert_close(after[1], state[1])
    later, _ = m.step(x[:, 0], m.init_state(2, 6, position=3))
    assert (later - stepped).norm() > 0.3 * stepped.norm(), "sqrt(1 - a^2) of it"


def test_a_closed_gate_has_a_finite_gradient() -> None:
    m = make()
    with torch.no_grad():
        m.bias[0] = -200.0  # r = 0: nothing decays, nothing comes in
    m(torch.randn(2, 5, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())


def test_what_must_not_decay_does_not() -> None:
    m = make()
    assert m.decay._no_weight_decay  # type: ignore[attr-defined]
    assert m.bias._no_weight_decay  # type: ignore[attr-defined]


def test_flops_by_hand() -> None:
    assert make().flops_per_token(5) == 2 * (3 * 8 * 16 + 16 * 4 + 2 * 2 * 8 * 8)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="n_heads=3 must divide expand \\* d_model=16"):
        make(n_heads=3)
