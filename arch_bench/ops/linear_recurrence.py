"""The first-order linear recurrence, the core of every gated linear recurrent network.

    h_t = a_t h_{t-1} + b_t,    h_0 = 0                         a, b, h: (batch, seq_len, channels)

Computed in float32 or wider, also under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

OBSTACLES: dict[str, str | None] = {"parallel": None, "reference": None}
"""Kernels, the fastest first; both run anywhere."""


@torch.compiler.disable  # a loop that tracing would only unroll, and writes into strided views, which it refuses
def linear_recurrence(a: Tensor, b: Tensor, *, kernel: str) -> Tensor:
    """Compute h at all positions, in the wider of float32 and the inputs' dtype."""
    a, b = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a, b))
    if kernel == "reference":
        return _reference(a, b)
    h: Tensor = _Scan.apply(a, b)
    return h


def _reference(a: Tensor, b: Tensor) -> Tensor:
    """Run the recurrence as written. `unbind`, because the backward of indexing in a loop is O(seq_len^2)."""
    h = torch.zeros_like(b[:, 0])
    hs = []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        hs.append(h)
    return torch.stack(hs, 1)


class _Scan(torch.autograd.Function):
    """Odd-even scan (Blelloch 1990): O(seq_len) work in O(log seq_len) operations, of products and sums alone.

    Nothing is divided by a product of decays, as closed forms with cumulative products do, nor cancelled in
    logarithms: a = 0 and b of either sign are as good as any. The backward pass is the same scan from the end; all that
    is kept for it is a and h.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = torch.empty_like(b, memory_format=torch.contiguous_format)
        _scan(a, b, h)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor]:
        """Compute g_t = dh_t + a_{t+1} g_{t+1}; da_t = g_t h_{t-1}, db_t = g_t."""
        a, h = ctx.saved_tensors
        g = torch.empty_like(h)
        _scan_back(a[:, 1:], dh, g)
        da = torch.zeros_like(h)
        torch.mul(g[:, 1:], h[:, :-1], out=da[:, 1:])
        return da, g


def _scan(a: Tensor, b: Tensor, h: Tensor) -> None:
    """Write h. Pairs of steps become one step of a sequence half as long; the steps between follow from it."""
    n_pairs = b.shape[1] // 2
    if n_pairs:
        first, second = slice(0, 2 * n_pairs, 2), slice(1, None, 2)
        _scan(a[:, first] * a[:, second], torch.addcmul(b[:, second], a[:, second], b[:, first]), h[:, second])
    h[:, 0] = b[:, 0]
    between = slice(2, None, 2)
    torch.addcmul(b[:, between], a[:, between], h[:, 1:-1:2], out=h[:, between])


def _scan_back(a: Tensor, b: Tensor, h: Tensor) -> None:
    """Write h_t = b_t + a_t h_{t+1}, 0 behind the end: `_scan` in reverse, because a view cannot run backwards.

    a has one step fewer than b: nothing follows the last.
    """
    length = b.shape[1]
    n_pairs = length // 2
    odd = length % 2
    if n_pairs:
        first, second = slice(odd, None, 2), slice(odd + 1, None, 2)  # pairs that end with the end
        pair_a = a[:, odd : length - 2 : 2] * a[:, odd + 1 :: 2]
        _scan_back(pair_a, torch.addcmul(b[:, first], a[:, first], b[:, second]), h[:, first])
    h[:, -1] = b[:, -1]
    between, after = slice(1 - odd, length - 2, 2), slice(2 - odd, length - 1, 2)
    torch.addcmul(b[:, between], a[:, between], h[:, after], out=h[:, between])
