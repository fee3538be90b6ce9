"""Selective attention: later tokens attend less to tokens that earlier ones voted against (Leviathan et al. 2024).

Legend: B batch, H heads, T positions, D head width. q, k, v and the result are (B, H, T, D); `slopes` are the (H,)
factors of ALiBi. The votes are (B, T, T): query by key.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SelectiveAttentionFn = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Signature: q, k, v, slopes -> the result, and the votes of each key summed over all queries (B, T) in float32."""


def distance_bias(distance: Tensor, slopes: Tensor | None) -> Tensor:
    """Return the bias of the scores (1 or H, queries, keys): -slope * distance, -inf for later positions."""
    slopes = torch.zeros(1, device=distance.device) if slopes is None else slopes
    return (-slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))


def votes(q: Tensor, k: Tensor, distance: Tensor, bias: Tensor) -> Tensor:
    """Compute S = relu of head 0's scores, but 0 against oneself or the first token (B, queries, keys); float32.

    q, k: head 0 (B, queries or keys, D); bias: its (queries, keys) of `distance_bias`.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(wide) @ k.to(wide).mT * q.shape[-1] ** -0.5 + bias
    return _voted(scores, distance)


def _voted(scores: Tensor, distance: Tensor) -> Tensor:
    is_first = torch.arange(scores.shape[-1], device=scores.device) == 0
    return scores.relu().masked_fill((distance == 0) | is_first, 0)


def _penalty(selected: Tensor) -> Tensor:
    """Compute F_t = sum over t' < t of S_t': a vote counts from the next query on."""
    return F.pad(selected.cumsum(1)[:, :-1], (0, 0, 1, 0))


def _distances(n: int, device: torch.device) -> Tensor:
    i = torch.arange(n, device=device)
    return i[:, None] - i


def reference(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute softmax(q k^T / sqrt(D) - F) v."""
    distance = _distances(q.shape[2], q.device)
    scores = q @ k.mT * q.shape[-1] ** -0.5 + distance_bias(distance, slopes)
    selected = _voted(scores[:, 0], distance)
    weights = (scores - _penalty(selected)[:, None]).softmax(-1)
    return weights.to(v.dtype) @ v, selected.sum(1)


def sdpa(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run PyTorch's fused attention with -F as a bias: O(T^2) memory, O(H T^2) with slopes.

    The scores of head 0 are made twice, once in float32 for the votes.
    """
    distance = _distances(q.shape[2], q.device)
    bias = distance_bias(distance, slopes)
    selected = votes(q[:, 0], k[:, 0], distance, bias[0])
    bias = (bias - _penalty(selected)[:, None]).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias), selected.sum(1)


KERNELS: dict[str, SelectiveAttentionFn] = {"sdpa": sdpa, "reference": reference}
