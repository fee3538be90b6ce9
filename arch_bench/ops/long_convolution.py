"""A depthwise causal convolution with as many taps as there are positions.

    y_t = sum_{j <= t} taps[:, j] x_{t-j}                       x, y: (batch, seq_len, channels)

Computed in float32 or wider, also under autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.compiler.disable  # a compiler gains nothing on complex numbers and would unroll a loop over time
def long_convolution(x: Tensor, taps: Tensor, *, kernel: str) -> Tensor:
    """Convolve all positions. taps: (channels, seq_len). Returns the wider of float32 and the inputs' dtype."""
    x, taps = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (x, taps))
    return {"fft": _fft, "reference": _reference}[kernel](x, taps)


def _fft(x: Tensor, taps: Tensor) -> Tensor:
    """Multiply spectra, O(T log T). Padded to 2 T, so that the end does not wrap around to the start.

    A spectrum holds every position: an output carries rounding errors, some 1e-7 of the largest, of inputs after it.
    """
    length = x.shape[1]
    along_time = x.mT.contiguous()  # a transform of strided numbers takes up to three times as long
    spectrum = torch.fft.rfft(along_time, 2 * length) * torch.fft.rfft(taps, 2 * length)
    return torch.fft.irfft(spectrum, 2 * length)[..., :length].mT


def _reference(x: Tensor, taps: Tensor) -> Tensor:
    """Compute the sum as written, O(T^2)."""
    reversed_taps = taps.mT.flip(0)
    return torch.stack([(x[:, :t] * reversed_taps[-t:]).sum(1) for t in range(1, x.shape[1] + 1)], 1)
