"""Causal softmax attention over a pattern of blocks.

Legend: B batch, H heads, T positions, D head width, N blocks, S positions per block, W blocks of keys that a block of
queries meets. q, k, v and the result are (B, H, T, D); `slopes` are the (H,) factors of ALiBi.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.ops.attention import Heads
from arch_bench.ops.local_attention import FLEX_BLOCK, flex_obstacle, run_flex
from arch_bench.ops.pattern import Pattern, numbers, tables, tiles

BlockSparseFn = Callable[[Tensor, Tensor, Tensor, Pattern, Tensor | None], Tensor]


def lowered(visible: Tensor, distance: Tensor, slopes: Tensor | None) -> Tensor:
    """Return the bias that is added to the scores: the mask itself, or with slopes -slope * distance, -inf if hidden.

    visible: (queries, keys) with more in front, among them the heads if it depends on them; distance: without them.
    """
    if slopes is None:
        return visible
    bias = -slopes.view(-1, *[1] * distance.dim()) * distance
    return bias.masked_fill(~visible, float("-inf"))


def _whole(q: Tensor, pattern: Pattern, slopes: Tensor | None) -> Tensor:
    """Return the bias of all T x T pairs: ([H,] T, T)."""
    _, H, T, _ = q.shape
    _, picks = tables(pattern, -(-T // pattern.block), q.device)
    i, h = torch.arange(T, device=q.device), torch.arange(H, device=q.device)
    visible = pattern.visible(h[:, None, None], i[:, None], i[None, :], picks)
    return lowered(visible, i[:, None] - i[None, :], slopes)


def reference(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, slopes: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) over the visible pairs, from the matrix of all pairs."""
    scores, bias = q @ k.mT * q.shape[-1] ** -0.5, _whole(q, pattern, slopes)
    scores = scores.masked_fill(~bias, float("-inf")) if slopes is None else scores + bias
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


def dense(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, slopes: Tensor | None = None) -> Tensor:
    """Run full attention with the pattern as a mask: O(T^2), however sparse the pattern."""
    bias = _whole(q, pattern, slopes)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias if slopes is None else bias.to(q.dtype))


def blocks(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, slopes: Tensor | None = None) -> Tensor:
    """Gather for each block of queries the blocks of keys that it meets: O(T W S); runs and trains anywhere."""
    B, H, T, _ = q.shape
    S = pattern.block
    N = -(-T // S)
    table, picks = tables(pattern, N, q.device)
    q, k, v = (F.pad(x, (0, 0, 0, N * S - T)).unflatten(2, (N, S)) for x in (q, k, v))
    met = table.clamp(min=0).flatten()
    k, v = (x.index_select(2, met).unflatten(2, (N, -1)).flatten(3, 4) for x in (k, v))  # (B, H, N, W S, D)
    bias = _block_bias(pattern, table, picks, H, slopes)
    bias = bias if slopes is None else bias.to(q.dtype)
    pair = (0, 1)  # (B H, N, S, D), where one bias serves every head
    if bias.dim() > 3:
        pair, bias = (1, 2), bias.flatten(0, 1)  # (B, H N, S, D), where it serves every sequence
    q, k, v = (x.flatten(*pair) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return y.reshape(B, H, N * S, -1)[:, :, :T]


def _block_bias(pattern: Pattern, table: Tensor, picks: Tensor, n_heads: int, slopes: Tensor | None) -> Tensor:
    """Return the bias ([H,] N, S, W S), with the heads if it depends on them."""
    offsets = torch.arange(pattern.block, device=table.device)
    i = (torch.arange(len(table), device=table.device)[:, None] * pattern.block + offsets)[..., None]
    j = (table[..., None] * pattern.block + offsets).flatten(1)[:, None]
    h = torch.arange(n_heads, device=table.device).view(-1, 1, 1, 1)
    return lowered(pattern.visible(h, i, j, picks) & (j >= 0), i - j, slopes)


def flex(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, slopes: Tensor | None = None) -> Tensor:
    """Run PyTorch's block-sparse flex attention, in tiles of 128 (CUDA: its backward does not exist on a CPU)."""

    def lower_far_scores(score: Tensor, _b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert slopes is not None
        return score - slopes[h] * (i - j)

    mask = _flex_mask(pattern, q.shape[-2], q.device)
    return run_flex(q, k, v, score_mod=None if slopes is None else lower_far_scores, block_mask=mask)


@cache
@torch.inference_mode(False)
def _flex_mask(pattern: Any, n: int, device: torch.device) -> Any:
    """Build the pattern as a block mask with a rule for every tile: no tile is declared full."""
    from torch.nn.attention.flex_attention import BlockMask

    n_kv, kv, n_q, queries = (x[None, None] for x in tiles(pattern, n, FLEX_BLOCK, device))
    if device.type == "cpu":  # the kernel needs a column for every tile
        kv = F.pad(kv, (0, kv.shape[-2] - kv.shape[-1]))
    _, picks = tables(pattern, -(-n // pattern.block), device)
    held = type(pattern)(*numbers(pattern, device))  # captured as tensors: one compiled kernel serves them all

    def visible(_b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return held.visible(h, i, j, picks)

    none: dict[str, Any] = {
        f"full_{side}": None for side in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices")
    }
    rows: dict[str, Any] = {"kv_num_blocks": n_kv, "kv_indices": kv, "q_num_blocks": n_q, "q_indices": queries}
    return BlockMask(seq_lengths=(n, n), **rows, **none, BLOCK_SIZE=(FLEX_BLOCK, FLEX_BLOCK), mask_mod=visible)


def obstacles(heads: Heads) -> dict[str, str | None]:
    """Return why each kernel cannot run here, or None."""
    return {"flex": flex_obstacle(heads), "blocks": None, "dense": None, "reference": None}


KERNELS: dict[str, BlockSparseFn] = {"flex": flex, "blocks": blocks, "dense": dense, "reference": reference}
