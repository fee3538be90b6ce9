"""Native sparse attention: a summary of every block of the past, the best blocks themselves, and a window.

    o_t = g_1 attention(q_t; means of whole blocks) + g_2 attention(q_t; chosen blocks) + g_3 attention(q_t; window)

with gates g of each head and position (Yuan et al. 2025, arXiv:2502.11089, equation 5). A block's importance to a
position is its attention weight in the first branch, summed over the heads that share keys (equations 8 to 10).

Legend: B batch, H query heads, G groups of them that share a key, T positions, D head width, N whole blocks,
S positions per block, W blocks that a query meets. q and the result are (B, H, T, D), k and v (B, G, T, D), gates
(3, B, H, T, 1); `slopes` are the (H,) factors of ALiBi: the distance to a summary is that to the block's middle.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.ops import attention, local_attention, moba
from arch_bench.ops.attention import for_each_head
from arch_bench.ops.fused import TRIAL, cast, heads_last, missing, refusal
from arch_bench.ops.kernel import choose_kernel

N_FIXED = 3
"""Number of blocks that every query meets: the first, the one before its own, its own (section 4.1)."""


class Sizes(NamedTuple):
    """Blocks of `block` positions; `top_k` that a query meets, the fixed ones included; the last `window` positions."""

    block: int
    top_k: int
    window: int

    def n_chosen_pairs(self, n: int) -> int:
        """Count the pairs of positions that meet in chosen blocks, among n."""
        return moba.Choice(self.block, self.top_k - 1).n_pairs(n)  # beside its own

    def n_summaries(self, n: int) -> int:
        """Count the pairs of a position and a block that ends there or before."""
        return int(((torch.arange(n, device="cpu") + 1) // self.block).sum())


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor


NsaFn = Callable[[Inputs, Sizes, Tensor | None], Tensor]
"""Signature of a kernel: the inputs, the sizes and the slopes."""


def summaries(x: Tensor, block: int) -> Tensor:
    """Compute means over whole blocks (B, G, N, D), in float32 or wider."""
    N = x.shape[2] // block
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide[:, :, : N * block].unflatten(2, (N, block)).mean(3)


def _are_over(i: Tensor, n_blocks: int, block: int) -> Tensor:
    """Mark blocks whose last position is not later than positions i: (positions, N)."""
    return torch.arange(1, n_blocks + 1, device=i.device) * block - 1 <= i[:, None]


def _lowered(i: Tensor, n_blocks: int, block: int, slopes: Tensor) -> Tensor:
    """Return the ALiBi bias of the scores of summaries: (H, positions, N)."""
    middle = torch.arange(n_blocks, device=i.device) * block + (block - 1) / 2
    return -slopes[:, None, None] * (i[:, None] - middle)


def weights_of_summaries(q: Tensor, means: Tensor, i: Tensor, block: int, slopes: Tensor | None) -> Tensor:
    """Compute weights (B, H, queries, N) in float32; zeros if no block is over. q: at positions i; means of keys."""
    visible = _are_over(i, means.shape[2], block)
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(means.dtype) @ for_each_head(means, q.shape[1]).mT * q.shape[-1] ** -0.5
    scores = scores if slopes is None else scores + _lowered(i, means.shape[2], block, slopes)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill(~visible, 0.0)


@torch.no_grad()
def choose(weights: Tensor, i: Tensor, n_groups: int, sizes: Sizes) -> Tensor:
    """Choose (B, G, queries, W) blocks for queries at positions i, -1 for none; weights: those of the summaries."""
    own = (i // sizes.block)[:, None]
    blocks = torch.arange(weights.shape[-1], device=i.device)
    is_free = (blocks >= 1) & (blocks < own - 1)
    importance = weights.unflatten(1, (n_groups, -1)).sum(2).masked_fill(~is_free, -1.0)
    best, which = importance.topk(min(sizes.top_k - N_FIXED, len(blocks)), -1)
    fixed = torch.cat((torch.zeros_like(own).where(own > 0, -1), (own - 1).where(own > 1, -1), own), -1)
    return torch.cat((which.where(best >= 0, -1), fixed.expand(*which.shape[:3], N_FIXED)), -1)


def reference(inputs: Inputs, sizes: Sizes, slopes: Tensor | None = None) -> Tensor:
    """Compute the three branches from matrices of all pairs."""
    q, k, v, gates = inputs
    H, G, i = q.shape[1], k.shape[1], torch.arange(q.shape[2], device=q.device)
    weights = weights_of_summaries(q, summaries(k, sizes.block), i, sizes.block, slopes)
    met = choose(weights.detach(), i, G, sizes)
    far = weights.to(v.dtype) @ for_each_head(summaries(v, sizes.block), H).to(v.dtype)
    k, v = (for_each_head(x, H) for x in (k, v))
    visible = for_each_head(moba.mask(met, i, sizes.block), H)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    scores = scores if slopes is None else scores - slopes[:, None, None] * (i[:, None] - i)
    wide = torch.promote_types(scores.dtype, torch.float32)
    best = scores.masked_fill(~visible, float("-inf")).softmax(-1, dtype=wide).to(v.dtype) @ v
    near = attention.local_reference(q, k, v, sizes.window, slopes)
    return joined(gates, far, best, near)


def blocks(inputs: Inputs, sizes: Sizes, slopes: Tensor | None = None) -> Tensor:
    """Gather for each query its blocks: O(T W S) beside O(T^2 / S) of the summaries; runs anywhere."""
    q, k, v, gates = inputs
    H, G, i = q.shape[1], k.shape[1], torch.arange(q.shape[2], device=q.device)
    means_k, means_v = (summaries(x, sizes.block) for x in (k, v))
    with torch.no_grad():  # only the choice is kept of these weights
        met = choose(weights_of_summaries(q, means_k, i, sizes.block, slopes), i, G, sizes)
    far_k, far_v = (for_each_head(F.pad(x, (0, 0, 1, 0)), H).to(q.dtype) for x in (means_k, means_v))
    mask = _mask_of_summaries(i, means_k.shape[2], sizes.block, slopes)
    far = F.scaled_dot_product_attention(q, far_k, far_v, attn_mask=mask if slopes is None else mask.to(q.dtype))
    near = local_attention.blocks(q, for_each_head(k, H), for_each_head(v, H), sizes.window, slopes)
    k, v = (F.pad(x, (0, 0, 0, -x.shape[2] % sizes.block)) for x in (k, v))
    return joined(gates, far, moba.attend(q, k, v, met, i=i, block=sizes.block, slopes=slopes), near)


def _mask_of_summaries(i: Tensor, n_blocks: int, block: int, slopes: Tensor | None) -> Tensor:
    """Return (queries, 1 + N), with slopes (H, queries, 1 + N): until a block is over, a query sees zeros in front."""
    visible = torch.cat((i[:, None] < block - 1, _are_over(i, n_blocks, block)), -1)
    if slopes is None:
        return visible
    return F.pad(_lowered(i, n_blocks, block, slopes), (1, 0)).masked_fill(~visible, float("-inf"))


def joined(gates: Tensor, *branches: Tensor) -> Tensor:
    """Sum the gated branches."""
    far, best, near = (gate * branch for gate, branch in zip(gates, branches, strict=True))
    return (far + best + near).to(branches[-1].dtype)


def fla(inputs: Inputs, sizes: Sizes, slopes: Tensor | None = None) -> Tensor:
    """Run `parallel_nsa` of flash-linear-attention; its window needs another package, so our fastest computes that."""
    assert slopes is None
    q, k, v, gates = inputs
    H, D = q.shape[1], q.shape[-1]
    heads = attention.Heads(q.device, q.dtype, H, H, D, with_slopes=False)
    fused = {"varlen": local_attention.varlen_obstacle(heads), "flex": local_attention.flex_obstacle(heads)}
    window = local_attention.KERNELS[choose_kernel("auto", {**fused, "blocks": None})]
    near = window(q, for_each_head(k, H), for_each_head(v, H), sizes.window, None)
    return _fla(inputs, sizes) + (gates[2] * near).to(near.dtype)


@torch.compiler.disable
def _fla(inputs: Inputs, sizes: Sizes) -> Tensor:
    """Compute the first two branches."""
    q, k, v = (heads_last(cast(x)) for x in inputs[:3])
    far, best, _ = (heads_last(gate.squeeze(-1).to(q.dtype)) for gate in inputs.gates)
    attend = importlib.import_module("fla.ops.nsa").parallel_nsa
    o: Tensor = attend(q, k, v, g_cmp=far, g_slc=best, block_counts=sizes.top_k, block_size=sizes.block)
    return o.transpose(1, 2)


KERNELS: dict[str, NsaFn] = {"fla": fla, "blocks": blocks, "reference": reference}


def obstacles(heads: attention.Heads, sizes: Sizes) -> dict[str, str | None]:
    """Return why each kernel cannot run here, the fastest first; on CUDA by trial, once per process."""
    refused = missing(heads.device, "fla") or _fla_limit(heads, sizes) or _fla_refusal(heads, sizes)
    return {"fla": refused, "blocks": None, "reference": None}


def _fla_limit(heads: attention.Heads, sizes: Sizes) -> str | None:
    """Return the limit of fla's kernels that the sizes exceed, if any."""
    group = heads.n_heads // heads.n_kv_heads
    if group < 16 or group & (group - 1):
        return f"fla wants 16, 32, ... heads to share a key, not n_heads / n_kv_heads = {group}; use kernel=blocks"
    if any(n & (n - 1) for n in sizes[:2]) or sizes.block < max(16, 2 * sizes.top_k):
        return (
            f"fla wants powers of two, and a block of at least 16 and 2 top_k, "
            f"not block={sizes.block} with top_k={sizes.top_k}; use kernel=blocks"
        )
    return "fla takes no ALiBi slopes; use kernel=blocks" if heads.with_slopes else None


@cache
def _fla_refusal(heads: attention.Heads, sizes: Sizes) -> str | None:
    (B, T), H = TRIAL, heads.n_heads
    q = torch.full((B, H, T, heads.d_head), heads.d_head**-0.5, device=heads.device, dtype=heads.dtype)
    k, gates = q[:, : heads.n_kv_heads], torch.ones(3, B, H, T, 1, device=heads.device, dtype=heads.dtype)
    return refusal("fla", lambda *inputs: _fla(Inputs(*inputs), sizes), (q, k, k, gates), (heads, sizes))
