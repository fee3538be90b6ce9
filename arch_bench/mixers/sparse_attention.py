"""Attention over a window, a few global tokens and random blocks: Longformer and BigBird in their causal form.

Legend: B batch, H heads, T positions, K head width, G global tokens, S positions per block.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.mixers.attention import Attention, HeadDials
from arch_bench.mixers.base import Card
from arch_bench.mixers.sizes import at_least
from arch_bench.ops import block_sparse
from arch_bench.ops.pattern import WindowGlobalRandom, tables


class SparseAttention(Attention):
    """softmax(q k^T / sqrt(K)) v over the earlier positions that `pattern` shows.

    Raises as `Attention`, and ValueError for a number of the pattern that is too small.
    """

    def __init__(self, *, pattern: WindowGlobalRandom, **heads: Unpack[HeadDials]) -> None:
        at_least(1, window=pattern.window, block=pattern.block)
        at_least(0, n_global=pattern.n_global, n_random=pattern.n_random)
        self.pattern = pattern
        super().__init__(n_kv_heads=heads["n_heads"], **heads)

    def _kernels(self) -> dict[str, str | None]:
        return block_sparse.obstacles(self._heads())

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse.KERNELS[self.kernel](q, k, v, self.pattern, self.slopes)

    def _n_pairs(self, seq_len: int) -> float:
        return self.pattern.n_pairs(seq_len)

    def _weigh(self, q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, distance: Tensor) -> Tensor:
        """Attend from one query to some keys; visible, distance: one entry per key."""
        bias = block_sparse.lowered(visible[None], distance[None], self.slopes)
        bias = bias if self.slopes is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)


class Longformer(SparseAttention):
    """The last `window` positions, the own one included, and the first `n_global` (Beltagy et al. 2020, section 3.1).

    Position t sees j <= t where t - j < window or j < n_global. In the paper's encoder global tokens also see all
    others, with projections of their own; here nothing sees what comes later, and the projections are shared.

    State: keys and values of the window, in a ring, and of the global tokens: 2 min(T, window + G) d_model numbers.
    Training costs O(T (window + G) d_model), a decoded token O((window + G) d_model).
    """

    card = Card(
        "sparse attention", "2 (window + n_global) d", "(window + n_global) d", "as training", "Beltagy et al. 2020"
    )

    def __init__(self, *, window: int, n_global: int, **heads: Unpack[HeadDials]) -> None:
        super().__init__(pattern=WindowGlobalRandom(block=window, window=window, n_global=n_global), **heads)

    def _cache_len(self, max_len: int) -> int:
        return min(max_len, self.pattern.window + self.pattern.n_global)

    def _slot(self, position: Tensor, size: int) -> Tensor:
        """Return the slot of a position: global tokens are fixed, a ring follows."""
        G = self.pattern.n_global
        return position.where(position < G, G + (position - G) % max(1, size - G))

    def _keep(self, cache: Tensor, prompt: Tensor) -> None:
        T, size, G = prompt.shape[2], cache.shape[2], self.pattern.n_global
        at = torch.arange(T, device=cache.device)
        kept = torch.cat((at[:G], at[max(G, T - max(0, size - G)) :]))
        cache.index_copy_(2, self._slot(kept, size), prompt.index_select(2, kept).to(cache.dtype))

    def _look_back(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        slots, G = torch.arange(keys.shape[2], device=q.device), self.pattern.n_global
        age = (position - slots) % max(1, len(slots) - G)  # of what a slot of the ring holds
        distance = (position - slots).where(slots < G, age)
        return self._weigh(q, keys, values, (distance >= 0) & (distance <= position - slots.clamp(max=G)), distance)


class BigBird(SparseAttention):
    """A window, global tokens and random blocks (Zaheer et al. 2020, sections 2 and D).

    All in blocks of S = `block` positions, as in the paper's experiments: block c sees itself, the window / S - 1
    blocks before it, the first n_global / S, and `n_random` others that come earlier, picked once and for all by
    `seed`, the same in every head and layer; in its own block a position sees no later one.
    (The paper's encoder sees both ways: its window has blocks on either side, its global tokens see all others.)

    State: every key and value, 2 T d_model numbers, since a later block may have picked any of them. Training costs
    O(T (window + n_global + n_random S) d_model); so does a decoded token, without T.

    Raises as its base, and ValueError if `window` or `n_global` are no whole blocks.
    """

    card = Card(
        "sparse attention", "2 T d", "(window + n_global + n_random block) d", "as training", "Zaheer et al. 2020"
    )
    reads_whole_state = False

    def __init__(
        self, *, window: int, n_global: int, n_random: int, block: int, seed: int, **heads: Unpack[HeadDials]
    ) -> None:
        for key, value in {"window": window, "n_global": n_global}.items():
            if value % max(1, block):
                raise ValueError(f"{key}={value} must be a multiple of block={block}")
        super().__init__(pattern=WindowGlobalRandom(block, window, n_global, n_random, seed, grain=block), **heads)

    def _look_back(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        """Read the blocks that the query's block meets, and no others."""
        size, S = keys.shape[2], self.pattern.block
        table, picks = tables(self.pattern, -(-size // S), q.device)
        met = table.index_select(0, (position // S)[None])[0]
        j = (met[:, None] * S + torch.arange(S, device=q.device)).flatten()
        visible = self.pattern.visible(j, position[None], j, picks) & (j >= 0)  # the rule is the same in every head
        slots = j.clamp(0, size - 1)
        return self._weigh(q, keys.index_select(2, slots), values.index_select(2, slots), visible, position - j)
