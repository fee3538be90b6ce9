"""Sequences in chunks: matrix products within a chunk, and a state passed from one to the next.

Legend: B batch, H heads, T positions, N chunks, C positions of a chunk, K and V widths of a key and of a value.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Convert to float32 or wider, as states and decays are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def chunk_length(seq_len: int, longest: int) -> int:
    """Return a power of two, at most `longest` and at most twice the sequence."""
    return min(longest, 1 << (seq_len - 1).bit_length())


def split(x: Tensor, length: int) -> Tensor:
    """Split (B, H, T, ...) into (B, H, N, C, ...), zero-padded: key and log decay of 0 leave a state unchanged."""
    padding = -x.shape[2] % length
    if padding:
        x = F.pad(x, (0, 0) * (x.dim() - 3) + (0, padding))
    return x.unflatten(2, (-1, length))


def join(x: Tensor, seq_len: int) -> Tensor:
    """Join chunks back to (B, H, T, ...)."""
    return x.flatten(2, 3)[:, :, :seq_len]


def decays(total: Tensor) -> Tensor:
    """Return the decay between each two positions of a chunk, 0 from a later to an earlier one.

    total: (..., C), the cumulative log decay; returns exp(total_t - total_s) for s <= t, as (..., C, C). Differences
    of earlier and later totals are never positive, so nothing overflows.
    """
    between = total.unsqueeze(-1) - total.unsqueeze(-2)
    future = torch.ones(between.shape[-2:], dtype=torch.bool, device=total.device).triu(1)
    return between.masked_fill(future, float("-inf")).exp()


def channel_scores(q: Tensor, k: Tensor, total_q: Tensor, total_k: Tensor, diagonal: Tensor) -> Tensor:
    """Compute scores_ts = sum_c q_t[c] k_s[c] exp(total_q_t[c] - total_k_s[c]), s < t; `diagonal` at s = t, else 0.

    q, k and the cumulative log decays of each channel: (..., C, K), diagonal: (..., C); returns (..., C, C). The
    exponential has to be split between q and k to leave a matrix product, and exp(-total_s) alone overflows. Hence by
    halves: all pairs across the middle of a stretch have decays up to it and from it, both at most 1 (the secondary
    chunks of GLA, Yang et al. 2023, section 4.3, carried on to single positions). log2(C) rounds, shortest first.
    """
    scores = diagonal[..., None, None]  # (..., stretches, positions, positions)
    while scores.shape[-3] > 1:
        halves = [x.unflatten(-2, (-1, 2, scores.shape[-1])).unbind(-3) for x in (q, k, total_q, total_k)]
        (_, late_q), (early_k, _), (_, late), (early, _) = halves
        middle = early[..., -1:, :]
        across = (late_q * (late - middle).exp()) @ (early_k * (middle - early).exp()).mT
        first, second = scores.unflatten(-3, (-1, 2)).unbind(-3)
        first = torch.cat((first, torch.zeros_like(first)), -1)
        scores = torch.cat((first, torch.cat((across, second), -1)), -2)
    return scores.squeeze(-3)


def hand_on(kept: Tensor, added: Tensor, act: Callable[[Tensor, Tensor], Tensor] = torch.mul) -> tuple[Tensor, Tensor]:
    """Pass states from chunk to chunk: h_n = act(kept_n, h_{n-1}) + added_n from zero, in log2(N) rounds.

    kept: (B, H, N, ...), what a chunk does to the state that it receives, by factors (`act` = mul) or by a matrix
    (matmul); added: (B, H, N, K, V), the state that it leaves behind by itself. Returns the state that enters each
    chunk, like `added`, and the one that leaves the last (B, H, K, V). Chunks are joined in pairs, pairs in pairs of
    pairs: about 3 N applications of `act`, and 2 N states in memory.
    """
    n_chunks = added.shape[2]
    if n_chunks == 1:
        return torch.zeros_like(added), added[:, :, 0]
    kept_1, kept_2 = _pairs(kept)
    added_1, added_2 = _pairs(added)
    entering, last = hand_on(act(kept_2, kept_1), act(kept_2, added_1) + added_2, act)
    entering = torch.stack((entering, act(kept_1, entering) + added_1), 3).flatten(2, 3)
    if n_chunks % 2:
        entering = torch.cat((entering, last.unsqueeze(2)), 2)
        last = act(kept[:, :, -1], last) + added[:, :, -1]
    return entering, last


def _pairs(x: Tensor) -> tuple[Tensor, ...]:
    """Return the first and the second of each two chunks of (B, H, N, ...); an odd last one is left out."""
    return x[:, :, : x.shape[2] // 2 * 2].unflatten(2, (-1, 2)).unbind(3)
