"""Mixture of block attention: each query meets its own block and the earlier ones that suit it best (Lu et al. 2025).

Legend: B batch, H heads, T positions, D head width, N blocks, S positions per block, W blocks that a query meets.
q, k, v and the result are (B, H, T, D); `slopes` are the (H,) factors of ALiBi.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Choice(NamedTuple):
    """Rule of the choice: blocks of `block` positions, and up to `top_k` earlier ones beside the query's own."""

    block: int
    top_k: int

    def n_pairs(self, n: int) -> int:
        """Count the pairs of positions that meet, among n."""
        i = torch.arange(n, device="cpu")
        return int((i % self.block + 1 + self.block * (i // self.block).clamp(max=self.top_k)).sum())

    def n_gates(self, n: int) -> int:
        """Count the pairs of a query and a block that it may choose."""
        return int((torch.arange(n, device="cpu") // self.block).sum())


class MobaFn(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, choice: Choice, slopes: Tensor | None = None) -> Tensor: ...


@torch.no_grad()
def choose(q: Tensor, means: Tensor, i: Tensor, choice: Choice) -> Tensor:
    """Choose (B, H, queries, W) blocks for the queries at positions i: the best ones, -1 for none, and their own.

    A query scores each block that ends before its own begins by q . mean of its keys, in float32 (equations 5 and 6);
    no gradient goes through the choice. means: (B, H, N, D).
    """
    with torch.autocast(q.device.type, enabled=False):
        gates = q.to(means.dtype) @ means.mT
    own = (i // choice.block)[:, None]
    gates = gates.masked_fill(torch.arange(means.shape[2], device=q.device) >= own, float("-inf"))
    best, which = gates.topk(min(choice.top_k, means.shape[2]), -1)
    return torch.cat((which.where(best > float("-inf"), -1), own.expand(*which.shape[:3], 1)), -1)


def _choose_all(q: Tensor, k: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """Return the blocks that every position of a sequence meets, and the positions."""
    T = q.shape[2]
    n_whole = (T - 1) // choice.block  # those that some query comes after
    wide = k.to(torch.promote_types(k.dtype, torch.float32))
    means = wide[:, :, : n_whole * choice.block].unflatten(2, (n_whole, choice.block)).mean(3)
    i = torch.arange(T, device=q.device)
    return choose(q, means, i, choice), i


def mask(met: Tensor, i: Tensor, block: int) -> Tensor:
    """Return the visible pairs (B, H, T, T), T = len(i)."""
    n_blocks = -(-len(i) // block)
    is_met = torch.zeros(*met.shape[:3], n_blocks + 1, dtype=torch.bool, device=met.device)
    is_met = is_met.scatter(3, met.where(met >= 0, n_blocks), True)  # the last column takes -1
    return is_met.index_select(3, i // block) & (i[:, None] >= i)


def _whole(q: Tensor, k: Tensor, choice: Choice, slopes: Tensor | None) -> Tensor:
    """Return the bias of all T x T pairs (B, H, T, T)."""
    met, i = _choose_all(q, k, choice)
    visible = mask(met, i, choice.block)
    if slopes is None:
        return visible
    return (-slopes[:, None, None] * (i[:, None] - i)).expand(visible.shape).masked_fill(~visible, float("-inf"))


def reference(q: Tensor, k: Tensor, v: Tensor, choice: Choice, slopes: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) over the blocks that a query meets, from the matrix of all pairs."""
    scores, bias = q @ k.mT * q.shape[-1] ** -0.5, _whole(q, k, choice, slopes)
    scores = scores.masked_fill(~bias, float("-inf")) if slopes is None else scores + bias
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


def dense(q: Tensor, k: Tensor, v: Tensor, choice: Choice, slopes: Tensor | None = None) -> Tensor:
    """Run full attention with the choice as a mask: O(B H T^2) memory."""
    bias = _whole(q, k, choice, slopes)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias if slopes is None else bias.to(q.dtype))


def blocks(q: Tensor, k: Tensor, v: Tensor, choice: Choice, slopes: Tensor | None = None) -> Tensor:
    """Gather for each query its W blocks: O(T W S D) memory and time, beside O(T^2 / S) of the gates."""
    met, i = _choose_all(q, k, choice)
    k, v = (F.pad(x, (0, 0, 0, -x.shape[2] % choice.block)) for x in (k, v))
    return attend(q, k, v, met, i=i, block=choice.block, slopes=slopes)


def attend(q: Tensor, k: Tensor, v: Tensor, met: Tensor, *, i: Tensor, block: int, slopes: Tensor | None) -> Tensor:
    """Attend from queries at positions i to the blocks `met` of keys and values, whose length is a multiple of `block`.

    Of fewer keys and values than queries each, and its choice of blocks, serves a group of R query heads.
    """
    B, H, M, _ = met.shape
    n_blocks = k.shape[2] // block
    first = torch.arange(B * H, device=q.device).view(B, H, 1, 1) * n_blocks  # block of a head
    rows = (first + met.clamp(min=0)).flatten()
    k, v = (x.reshape(B * H * n_blocks, -1).index_select(0, rows).view(B, H, M, -1, x.shape[-1]) for x in (k, v))
    offsets = torch.arange(block, device=q.device)
    j = (met[..., None] * block + offsets).flatten(3)[..., None, :]  # (B, H, M, 1, W S)
    scores = q.unflatten(1, (H, -1)).transpose(2, 3) @ k.mT * q.shape[-1] ** -0.5  # (B, H, M, R, W S)
    distance = i[:, None, None] - j
    if slopes is not None:
        scores = scores - slopes.view(H, 1, -1, 1) * distance
    scores = scores.masked_fill((distance < 0) | (j < 0), float("-inf"))
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    return (weights @ v).transpose(2, 3).flatten(1, 2)


KERNELS: dict[str, MobaFn] = {"blocks": blocks, "dense": dense, "reference": reference}
