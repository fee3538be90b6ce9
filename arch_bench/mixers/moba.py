"""Mixture of block attention: queries choose the blocks of the past that they meet.

Legend: B batch, H heads, T positions, K head width, N blocks, S positions per block.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from arch_bench.mixers.attention import Attention, HeadDials
from arch_bench.mixers.base import Card, State
from arch_bench.mixers.sizes import at_least
from arch_bench.ops import moba


class Moba(Attention):
    """Attention to the query's own block and the `top_k` earlier ones that suit it best (Lu et al. 2025, section 2.2).

    A block of S = `block` positions suits a query by q . mean of its keys, head by head; in its own block a query sees
    no later position. (The authors' top-k counts the own block: theirs is top_k + 1.) No parameters, and no gradient
    through the choice.

    State: every key and value, and the sum of the keys of each block in float32, (2 T + T / S) d_model numbers.
    Training costs O(T (top_k S + T / S) d_model), a decoded token O((top_k S + T / S) d_model).

    Raises as `Attention`, and ValueError if `block` < 1 or `top_k` < 0.
    """

    picks_by_score = True
    reads_whole_state = False
    card = Card(
        "sparse attention", "(2 T + T / block) d", "(top_k block + T / block) d", "as training", "Lu et al. 2025"
    )

    def __init__(self, *, block: int, top_k: int, **heads: Unpack[HeadDials]) -> None:
        at_least(1, block=block)
        at_least(0, top_k=top_k)
        self.choice = moba.Choice(block, top_k)
        super().__init__(n_kv_heads=heads["n_heads"], **heads)

    def _kernels(self) -> dict[str, str | None]:
        return dict.fromkeys(moba.KERNELS)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return moba.KERNELS[self.kernel](q, k, v, self.choice, self.slopes)

    def _cache_len(self, max_len: int) -> int:
        return -(-max_len // self.choice.block) * self.choice.block

    def _n_pairs(self, seq_len: int) -> float:
        """Count pairs of positions, and half a pair for each scored block: a product with its mean, and no value."""
        return self.choice.n_pairs(seq_len) + self.choice.n_gates(seq_len) / 2

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (keys, values, sums of keys by block, position)."""
        keys, values, at = super().init_state(batch_size, max_len, position)
        wide = torch.promote_types(self.out.weight.dtype, torch.float32)
        return keys, values, torch.zeros_like(keys[:, :, :: self.choice.block], dtype=wide), at

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values, sums, position = state
        q, k, v = self._project(x)
        self._keep(keys, k)
        self._keep(values, v)
        sums.copy_(keys.unflatten(2, (-1, self.choice.block)).sum(3, dtype=sums.dtype))
        return self._merge(self._attend(q, k, v)), (keys, values, sums, position + x.shape[1])

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values, sums, position = state
        q, k, v = self._project(x_t[:, None], position)
        at, S = position[None], self.choice.block
        keys.index_copy_(2, at, k.to(keys.dtype))
        values.index_copy_(2, at, v.to(values.dtype))
        sums.index_add_(2, at // S, k.to(keys.dtype).to(sums.dtype))
        q = q.to(keys.dtype)
        met = moba.choose(q, sums / S, at, self.choice)
        y = moba.attend(q, keys, values, met, i=at, block=S, slopes=self.slopes)
        return self._merge(y.to(x_t.dtype))[:, 0], (keys, values, sums, position + 1)
