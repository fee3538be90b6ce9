"""TCN and Hyena: what they see, their filters, precision and counts by hand; the long convolution they rest on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.mixers.base import tensors
from arch_bench.mixers.convolution import TCN, Hyena
from arch_bench.ops.long_convolution import long_convolution

D = 6


def tcn(kernel: str = "conv1d", **sizes: Any) -> TCN:
    torch.manual_seed(0)
    return TCN(**{"d_model": D, "d_conv": 3, "dilations": [1, 2, 5], **sizes}, kernel=kernel)


def hyena(kernel: str = "fft", **sizes: Any) -> Hyena:
    torch.manual_seed(0)
    own = {"d_conv": 3, "filter_len": 20, "filter_width": 8, "n_features": 5, "sine_freq": 10.0}
    return Hyena(**{"d_model": D, **own, **sizes}, kernel=kernel)


# --- the long convolution --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 64])
def test_fft_equals_reference_with_gradients(length: int) -> None:
    x = torch.randn(2, length, D, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(D, length, dtype=torch.float64, requires_grad=True)
    found, expected = (long_convolution(x, taps, kernel=kernel) for kernel in ("fft", "reference"))
    torch.testing.assert_close(found, expected)
    dy = torch.randn_like(found)
    torch.testing.assert_close(*(torch.autograd.grad(y, (x, taps), dy) for y in (found, expected)))


def test_long_convolution_by_hand() -> None:
    x, taps = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[1.0, 10.0, 100.0]])
    for kernel in ("fft", "reference"):
        found = long_convolution(x.bfloat16(), taps.bfloat16(), kernel=kernel)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 12.0, 123.0]))


def test_the_end_does_not_reach_the_start() -> None:
    x = torch.zeros(1, 50, D)
    x[:, -1] = 1e3
    y = long_convolution(x, torch.ones(D, 50), kernel="fft")
    assert y[:, :-1].abs().max() < 1e-3
    torch.testing.assert_close(y[:, -1], x[:, -1])


# --- TCN -------------------------------------------------------------------------------------------------------------


def test_it_sees_as_far_as_its_dilations_reach() -> None:
    mixer, n_before = tcn(), 2 * 2 * (1 + 2 + 5)
    x = torch.randn(8, 60, D, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer(x)[:, 50].sum(), x)
    seen = gradient.abs().sum((0, 2)).nonzero().flatten()
    assert (seen.min(), seen.max()) == (50 - n_before, 50)


@pytest.mark.parametrize(("d_conv", "dilations"), [(1, [1, 7]), (2, [3]), (3, [1, 2, 5])])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_tcn_kernels_agree_with_gradients(d_conv: int, dilations: list[int], length: int) -> None:
    x = torch.randn(2, length, D, dtype=torch.float64, requires_grad=True)
    outcomes = []
    for kernel in ("conv1d", "reference"):
        mixer = tcn(kernel, d_conv=d_conv, dilations=dilations).double()
        y = mixer(x)
        outcomes.append([y, *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])])
    torch.testing.assert_close(*outcomes)


def test_tcn_is_the_residual_unit_of_the_paper() -> None:
    mixer = tcn(dilations=[4])
    first, second = mixer.convs

    def padded(layer: Any, x: Tensor) -> Tensor:
        """Padded at both ends and cut, as the authors do it."""
        return F.conv1d(x, layer.weight, layer.bias, padding=8, dilation=4)[..., :-8]

    x = torch.randn(2, 30, D)
    expected = F.relu(x.mT + F.relu(padded(second, F.relu(padded(first, x.mT))))).mT
    torch.testing.assert_close(mixer(x), expected)


def test_tcn_by_hand() -> None:
    mixer = tcn()
    assert mixer.flops_per_token(10) == mixer.flops_per_token(1000) == 3 * 2 * (2 * 3 * D * D)
    assert mixer.state_bytes(10) == mixer.state_bytes(1000) == 4 * D * 2 * 2 * (1 + 2 + 5)
    assert [t.shape[1] for t in tensors(mixer.init_state(1, 10))] == [2, 2, 4, 4, 10, 10]


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ({"d_conv": 0}, "d_conv=0 must be at least 1"),
        ({"dilations": []}, r"dilations=\[\] must be one or more"),
        ({"dilations": [1, 0]}, r"dilations=\[1, 0\] must be"),
    ],
)
def test_tcn_refuses(sizes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        tcn(**sizes)


# --- Hyena -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hyena_by_its_formula() -> None:
    mixer = hyena().double()
    x = torch.randn(2, 12, D, dtype=torch.float64)
    projected = F.pad(mixer.in_proj(x), (0, 0, 2, 0))
    weight, bias = mixer.conv1d.weight, mixer.conv1d.bias  # type: ignore[union-attr]
    p, q, v = (sum(projected[:, k : k + 12] * weight[:, 0, k] for k in range(3)) + bias).chunk(3, -1)
    taps, u = mixer._taps(12), q * v
    z = torch.stack([sum(taps[j] * u[:, t - j] for j in range(t + 1)) for t in range(12)], 1) + mixer.skip * u  # type: ignore[misc]
    torch.testing.assert_close(mixer(x), mixer.out_proj(p * z))


@torch.no_grad()
def test_the_filter() -> None:
    mixer = hyena(d_model=64).double()
    taps = mixer._taps(60)
    torch.testing.assert_close(mixer._taps(7), taps[:7])  # one filter, whatever the length
    j = 9
    angles = [2 * math.pi * j / 20 * f for f in (1e-4, 1.0)]
    h = torch.tensor([j / 19, *map(math.cos, angles), *(-math.sin(angle) for angle in angles)], dtype=torch.float64)
    for layer in mixer.filter:
        h = torch.sin(10.0 * layer(h))
    window = taps[j] / mixer.filter_out(h)
    assert window[0].item() == pytest.approx(1e-2 ** (j / 19 / 1.5))  # a hundredth after 1.5 filter lengths
    assert window[-1].item() == pytest.approx(1e-2 ** (j / 19 / 0.3))
    assert taps[-1].isfinite().all()


def test_the_filter_decays_no_weight() -> None:
    exempt = {name for name, p in hyena().named_parameters() if hasattr(p, "_no_weight_decay")}
    own = {"in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias", "conv1d.weight", "conv1d.bias"}
    assert exempt == {name for name, _ in hyena().named_parameters()} - own


@torch.no_grad()
@pytest.mark.parametrize("d_conv", [0, 1, 3])
def test_hyena_steps_past_the_length_of_its_filter(d_conv: int) -> None:
    mixer, x = hyena(d_conv=d_conv), torch.randn(2, 50, D)
    expected = mixer(x)
    y, state = mixer.prefill(x[:, :30], mixer.init_state(2, 64))
    torch.testing.assert_close(y, expected[:, :30])
    for t in range(30, 50):
        y_t, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y_t, expected[:, t], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_filter_is_float32_under_autocast() -> None:
    mixer, x = hyena(), torch.randn(2, 20, D)
    taps = mixer._taps(20)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(mixer._taps(20), taps, atol=0, rtol=0)
        y = mixer(x)
        window, us, kept, _ = mixer.init_state(2, 20)
    assert (y.dtype, window.dtype, us.dtype, kept.dtype) == (*[torch.bfloat16] * 3, torch.float32)
    torch.testing.assert_close(y.float(), mixer(x), atol=0.05, rtol=0.05)


def test_hyena_by_hand() -> None:
    mixer = hyena()
    assert mixer.flops_per_token(16) == 2 * D * 3 * D + 2 * 3 * D * 3 + 10 * D * 4 + 2 * D * D
    assert mixer.state_bytes(100) == 4 * (2 * 3 * D + 100 * D + 100 * D) + 8


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ({"filter_len": 1}, "filter_len=1 must be at least 2"),
        ({"n_features": 4}, "n_features=4 must be odd"),
        ({"n_features": 1}, "n_features=1 must be odd"),
    ],
)
def test_hyena_refuses(sizes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        hyena(**sizes)
