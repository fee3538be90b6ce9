"""S4D: initialisation, discretisation, its two forms, precision and counts by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arch_bench.mixers.s4d import DT_RANGE, S4D, _impulse_response

D, PAIRS = 6, 4


def make(kernel: str = "fft", d_model: int = D, d_state: int = 2 * PAIRS) -> S4D:
    torch.manual_seed(0)
    return S4D(d_model=d_model, d_state=d_state, kernel=kernel)


def test_initialisation() -> None:
    mixer = make(d_model=512)
    dt = mixer.log_dt.detach().exp()
    assert DT_RANGE[0] <= dt.min() < 2e-3
    assert 5e-2 < dt.max() <= DT_RANGE[1]
    assert dt.median().item() == pytest.approx(1e-2, rel=0.2)  # the middle of a logarithmic range
    torch.testing.assert_close(mixer.log_A_real.exp(), torch.full((512, PAIRS), 0.5))
    torch.testing.assert_close(mixer.A_imag[7], torch.tensor([0, math.pi, 2 * math.pi, 3 * math.pi]))
    assert mixer.C.square().sum(-1).mean().item() == pytest.approx(1, rel=0.1)
    assert [name for name, p in mixer.named_parameters() if hasattr(p, "_no_weight_decay")] == [
        *("log_dt", "log_A_real", "A_imag", "D")
    ]


def held_response(mixer: S4D, length: int) -> Tensor:
    """(length, D): the answer to one impulse that is held for one step, by exponentials of the continuous system."""
    A = torch.complex(-mixer.log_A_real.exp(), mixer.A_imag)
    dt, C = mixer.log_dt.exp(), torch.view_as_complex(mixer.C)
    taps = torch.zeros(length, D, dtype=torch.float64)
    for d in range(D):
        system = torch.zeros(PAIRS + 1, PAIRS + 1, dtype=torch.complex128)  # the last state is the input
        system[:PAIRS, :PAIRS] = torch.diag(A[d])
        system[:PAIRS, PAIRS] = 1
        step = torch.linalg.matrix_exp(system * dt[d])
        h = step[:PAIRS, PAIRS]
        for t in range(length):
            taps[t, d] = 2 * (C[d] @ h).real
            h = step[:PAIRS, :PAIRS] @ h
    return taps


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["fft", "reference"])
def test_the_filter_is_the_continuous_system_with_a_held_input(kernel: str) -> None:
    mixer = make(kernel).double()
    u = torch.randn(2, 30, D, dtype=torch.float64)
    taps = held_response(mixer, 30)
    expected = torch.stack([(u[:, : t + 1].flip(1) * taps[: t + 1]).sum(1) for t in range(30)], 1) + mixer.D * u
    torch.testing.assert_close(mixer._filter(u), expected)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9, 15, 16, 17, 100])
def test_fft_equals_reference_with_gradients_and_states(length: int) -> None:
    x = torch.randn(2, length, D, dtype=torch.float64, requires_grad=True)
    outcomes = []
    for kernel in ("fft", "reference"):
        mixer = make(kernel).double()
        y = mixer(x)
        with torch.no_grad():
            _, state = mixer.prefill(x, mixer.init_state(2, length))
        outcomes.append([y, *state, *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])])
    torch.testing.assert_close(*outcomes)


def test_a_long_response_keeps_its_phase_in_float32() -> None:
    mixer = make(d_state=64)
    single = _impulse_response(mixer._dynamics(), 20_000)
    double = _impulse_response(mixer.double()._dynamics(), 20_000)
    torch.testing.assert_close(single.double(), double, atol=1e-4 * double.abs().max().item(), rtol=0)


@torch.no_grad()
def test_the_recurrence_is_float32_under_autocast() -> None:
    mixer = make()
    x = torch.randn(2, 50, D)
    with torch.autocast("cpu", torch.bfloat16):
        filtered = mixer._filter(x)
        _, (h,) = mixer.prefill(x[:, :-1], mixer.init_state(2, 50))
        y_t, (h,) = mixer.step(x[:, -1], (h,))
    assert (filtered.dtype, h.dtype, y_t.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    torch.testing.assert_close(filtered, mixer._filter(x), atol=0, rtol=0)
    torch.testing.assert_close(y_t.float(), mixer(x)[:, -1], atol=0.03, rtol=0.03)


def test_counts_by_hand() -> None:
    mixer = make()
    assert mixer.flops_per_token(10) == mixer.flops_per_token(1000) == 2 * D * 2 * D
    assert mixer.elementwise_flops_per_token(10) == 12 * D * PAIRS
    assert mixer.state_bytes(10) == mixer.state_bytes(1000) == 4 * D * 2 * PAIRS


@pytest.mark.parametrize("d_state", [0, 1, 7])
def test_states_come_in_pairs(d_state: int) -> None:
    with pytest.raises(ValueError, match=f"d_state={d_state} must be even"):
        make(d_state=d_state)
