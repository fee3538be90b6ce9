"""Depthwise causal convolution: every channel is filtered along time by its own few taps.

    y_t = bias + sum_k weight[:, 0, k] x_{t - (K-1) + k}        with x = 0 before the start

x: (batch, seq_len, channels), contiguous over channels or over time.
weight: (channels, 1, K) and bias: (channels,), as in `nn.Conv1d(channels, channels, K, groups=channels)`.
A window holds the K-1 inputs before the next token: (batch, K-1, channels).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, window: Tensor | None = None) -> Tensor:
    """Convolve all positions at once, after the inputs in `window` (zeros if None). Returns x's shape and dtype."""
    if window is not None:
        n_before = window.shape[1]
        return causal_conv(torch.cat((window.to(x.dtype), x), 1), weight, bias)[:, n_before:]
    if torch.compiler.is_compiling():
        return _fusible(x, weight, bias)
    if x.is_cuda:
        n_taps = weight.shape[-1]
        return F.conv1d(F.pad(x.mT, (n_taps - 1, 0)), weight, bias, groups=weight.shape[0]).mT.to(x.dtype)
    y: Tensor = _ShiftedProducts.apply(x, weight, bias)
    return y


def _fusible(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve by explicit products, which a compiler fuses with their surroundings; it cannot fuse across `conv1d`."""
    first, *rest = weight.permute(2, 0, 1)  # (channels, 1) each
    padded = F.pad(x.mT, (len(rest), 0))
    y = padded[..., : x.shape[1]] * first
    for k, tap in enumerate(rest, start=1):
        y = y + padded[..., k : k + x.shape[1]] * tap
    return (y if bias is None else y + bias[:, None]).mT.to(x.dtype)


def causal_window(x: Tensor, n_taps: int) -> Tensor:
    """Return the window after a prompt x: its last K-1 inputs, with zeros in front if it is shorter."""
    return F.pad(x, (0, 0, n_taps - 1, 0))[:, x.shape[1] :]


def causal_conv_step(x_t: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Process one token x_t: (batch, channels); the window moves on by one, in place."""
    seen = torch.cat((window, x_t.unsqueeze(1).to(window.dtype)), 1)
    window.copy_(seen[:, 1:])
    y_t = (seen * weight.squeeze(1).T).sum(1)
    return (y_t if bias is None else y_t + bias).to(x_t.dtype), window


class _ShiftedProducts(torch.autograd.Function):
    """One multiply-add over the sequence per tap: on a CPU 2 to 3 times as fast as `conv1d`, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        wide = x.to(torch.promote_types(x.dtype, weight.dtype))
        first, *rest = weight.squeeze(1).T.flip(0).contiguous()
        y = wide * first if bias is None else torch.addcmul(bias, wide, first)
        for lag, tap in enumerate(rest[: x.shape[1] - 1], start=1):
            y[:, lag:].addcmul_(wide[:, :-lag], tap)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        wide = x.to(torch.promote_types(x.dtype, weight.dtype))
        dy = dy.to(wide.dtype)
        taps = weight.squeeze(1).T.flip(0).contiguous()
        dx, dtaps = dy * taps[0], torch.zeros_like(taps)
        dtaps[0] = (dy * wide).sum((0, 1))
        for lag in range(1, min(len(taps), x.shape[1])):
            dx[:, :-lag].addcmul_(dy[:, lag:], taps[lag])
            dtaps[lag] = (dy[:, lag:] * wide[:, :-lag]).sum((0, 1))
        dbias = dy.sum((0, 1)) if ctx.has_bias else None
        return dx.to(x.dtype), dtaps.flip(0).T.unsqueeze(1), dbias
