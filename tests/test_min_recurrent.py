"""minGRU and minLSTM: the log-space form of the paper, steps, precision and counts by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.mixers.min_recurrent import MinGRU, MinLSTM, MinRecurrent

MIXERS: list[type[MinRecurrent]] = [MinGRU, MinLSTM]


def make(mixer: type[MinRecurrent], kernel: str = "parallel", expand: int = 2) -> MinRecurrent:
    torch.manual_seed(0)
    return mixer(d_model=8, expand=expand, kernel=kernel)


def log_space(mixer: MinRecurrent, x: Tensor) -> Tensor:
    """Appendix B, as it is printed there: the gates, and a scan by cumulative sums in logarithms."""
    *gates, v = mixer.in_proj(x).chunk(mixer.n_inputs, -1)
    if isinstance(mixer, MinGRU):
        log_take, log_keep = -F.softplus(-gates[0]), -F.softplus(gates[0])
    else:
        difference = F.softplus(-gates[0]) - F.softplus(-gates[1])
        log_keep, log_take = -F.softplus(difference), -F.softplus(-difference)
    log_g = torch.where(v >= 0, (F.relu(v) + 0.5).log(), -F.softplus(-v))
    total = log_keep.cumsum(1)
    return mixer.out_proj((total + (log_take + log_g - total).logcumsumexp(1)).exp())


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("kernel", ["parallel", "reference"])
@pytest.mark.parametrize("length", [1, 50])
def test_equals_the_log_space_form(mixer: type[MinRecurrent], kernel: str, length: int) -> None:
    built = make(mixer, kernel).double()
    x = torch.randn(2, length, 8, dtype=torch.float64, requires_grad=True)
    found, expected = built(x), log_space(built, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(y.square().sum(), [x, *built.parameters()]) for y in (found, expected))
    )


@pytest.mark.parametrize("mixer", MIXERS)
def test_closed_gates_stay_finite(mixer: type[MinRecurrent]) -> None:
    built = make(mixer)
    x = 1e4 * torch.randn(2, 50, 8)
    y = built(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_state_is_float32_under_autocast(mixer: type[MinRecurrent]) -> None:
    built = make(mixer)
    x = torch.randn(2, 20, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, (h,) = built.prefill(x[:, :-1], built.init_state(2, 20))
        y_t, (h,) = built.step(x[:, -1], (h,))
    assert (y.dtype, y_t.dtype, h.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    torch.testing.assert_close(y_t.float(), built(x)[:, -1], atol=0.03, rtol=0.03)


@pytest.mark.parametrize(("mixer", "n_inputs"), [(MinGRU, 2), (MinLSTM, 3)])
def test_flops_and_state_by_hand(mixer: type[MinRecurrent], n_inputs: int) -> None:
    built = make(mixer, expand=3)
    assert built.flops_per_token(10) == built.flops_per_token(1000) == 2 * 8 * 24 * (n_inputs + 1)
    assert built.state_bytes(10) == built.state_bytes(1000) == 4 * 24
    with pytest.raises(ValueError, match="expand=0 must be at least 1"):
        make(mixer, expand=0)
