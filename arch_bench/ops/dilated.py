"""Causal softmax attention on every `dilation`-th position behind: within residue classes, where it is dense.

Legend: B batch, H heads, T positions, D head width, M positions of a residue class. q, k, v and the result are
(B, H, T, D); `slopes` are the (H,) factors of ALiBi. A query at i sees the keys at i, i - dilation, i - 2 dilation ...
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.ops import attention, local_attention
from arch_bench.ops.block_sparse import lowered
from arch_bench.ops.pattern import n_band_pairs


def dilated(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None, dilation: int, slopes: Tensor | None, kernel: str
) -> Tensor:
    """Attend to the last `window` keys of the query's residue class, or to all of them if it is None.

    kernel: one of `local_attention.KERNELS`, which attends within the classes: O(T window), or O(T^2 / dilation).
    Full attention of a class is PyTorch's fused one, whatever the kernel. `reference` takes the matrix of all pairs.
    """
    if kernel == "reference":
        return _reference(q, k, v, window=window, dilation=dilation, slopes=slopes)
    B, T = q.shape[0], q.shape[2]
    q, k, v = (_classes(x, dilation) for x in (q, k, v))
    slopes = None if slopes is None else slopes * dilation
    attend = local_attention.KERNELS[kernel]
    y = attention.sdpa(q, k, v, slopes) if window is None else attend(q, k, v, window, slopes)
    return y.unflatten(0, (B, dilation)).permute(0, 2, 3, 1, 4).flatten(2, 3)[:, :, :T]


def _classes(x: Tensor, dilation: int) -> Tensor:
    """Group (B, H, T, D) into (B dilation, H, M, D) by residue class, each padded at its end."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % dilation)).unflatten(2, (-1, dilation))
    return x.permute(0, 3, 1, 2, 4).flatten(0, 1)


def _reference(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, dilation: int, slopes: Tensor | None) -> Tensor:
    """Compute the same with the T x T matrix of scores."""
    i = torch.arange(q.shape[2], device=q.device)
    distance = i[:, None] - i[None, :]
    visible = (distance >= 0) & (distance % dilation == 0)
    visible = visible if window is None else visible & (distance < window * dilation)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~visible, float("-inf"))
    scores = scores if slopes is None else scores + lowered(visible, distance, slopes)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


def n_dilated_pairs(n: int, window: int | None, dilation: int) -> int:
    """Count the visible pairs among n positions."""
    size, n_longer = divmod(n, dilation)
    longer, shorter = (n_band_pairs(m, m if window is None else window) for m in (size + 1, size))
    return n_longer * longer + (dilation - n_longer) * shorter
