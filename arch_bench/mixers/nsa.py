"""Native sparse attention: summaries of the past, its best blocks and a window, mixed by learned gates.

Legend: B batch, H query heads, G groups of them that share a key, T positions, K head width, S positions per block.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.attention import Attention, HeadDials
from arch_bench.mixers.base import Card, State, count_flops
from arch_bench.mixers.sizes import at_least
from arch_bench.ops import moba, nsa
from arch_bench.ops.attention import attention_bias
from arch_bench.ops.pattern import n_band_pairs


class NSA(Attention):
    """Three attentions of one query, each with a gate of its own (Yuan et al. 2025, arXiv:2502.11089, sections 3, 4.1).

        o_t = g_1 attention(q_t; means of blocks that are over) + g_2 attention(q_t; chosen blocks)
            + g_3 attention(q_t; last `window` positions),   g_t = sigmoid(W x_t), three numbers per head

    Blocks have S = `block` positions. A query meets `top_k` of them: the first, the one before its own, its own, and
    those whose means its group of heads weighs most; no gradient through the choice.

    As flash-linear-attention has it: a block is summed up by its mean (the paper: by an MLP, of blocks that overlap),
    and the branches share keys and values (the paper: each its own).

    State: every key and value, and their sums over each block in float32, 2 (T + T / S) G K numbers. Training costs
    O(T (top_k S + T / S + window) d_model), a decoded token O((top_k S + T / S + window) d_model).

    Raises as `Attention`, and ValueError if `block` or `window` < 1 or `top_k` < 3.
    """

    picks_by_score = True
    reads_whole_state = False
    card = Card(
        "sparse attention",
        "2 (T + T / block) d n_kv_heads / n_heads",
        "(top_k block + T / block + window) d",
        "as training",
        "Yuan et al. 2025",
    )

    def __init__(self, *, n_kv_heads: int, block: int, top_k: int, window: int, **heads: Unpack[HeadDials]) -> None:
        at_least(1, block=block, window=window)
        at_least(nsa.N_FIXED, top_k=top_k)
        self.sizes = nsa.Sizes(block, top_k, window)
        super().__init__(n_kv_heads=n_kv_heads, **heads)
        self.gates = nn.Linear(heads["d_model"], 3 * self.n_heads, bias=False)

    def _kernels(self) -> dict[str, str | None]:
        return nsa.obstacles(self._heads(), self.sizes)

    def _cache_len(self, max_len: int) -> int:
        return -(-max_len // self.sizes.block) * self.sizes.block

    def _gates(self, x: Tensor) -> Tensor:
        """Compute the gates: (B, T, d_model) -> (3, B, H, T, 1)."""
        return self.gates(x).sigmoid().unflatten(-1, (self.n_heads, 3)).permute(3, 0, 2, 1).unsqueeze(-1)

    def _mixed(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._merge(nsa.KERNELS[self.kernel](nsa.Inputs(q, k, v, self._gates(x)), self.sizes, self.slopes))

    def forward(self, x: Tensor) -> Tensor:
        return self._mixed(x, *self._project(x))

    def flops_per_token(self, seq_len: int) -> float:
        return super().flops_per_token(seq_len) + count_flops(self.gates.weight)

    def _n_pairs(self, seq_len: int) -> float:
        near = n_band_pairs(seq_len, min(self.sizes.window, seq_len))
        return near + self.sizes.n_chosen_pairs(seq_len) + self.sizes.n_summaries(seq_len)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (keys, values, sums of keys and of values by block, position)."""
        keys, values, at = super().init_state(batch_size, max_len, position)
        wide = torch.promote_types(self.out.weight.dtype, torch.float32)
        sums = torch.zeros_like(keys[:, :, :: self.sizes.block], dtype=wide)
        return keys, values, sums, torch.zeros_like(sums), at

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        *caches, position = state
        q, k, v = self._project(x)
        for cache, sums, new in zip(caches[:2], caches[2:], (k, v), strict=True):
            self._keep(cache, new)
            sums.copy_(cache.unflatten(2, (-1, self.sizes.block)).sum(3, dtype=sums.dtype))
        return self._mixed(x, q, k, v), (*caches, position + x.shape[1])

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        *caches, position = state
        q, k, v = self._project(x_t[:, None], position)
        at = position[None]
        for cache, sums, new in zip(caches[:2], caches[2:], (k, v), strict=True):
            cache.index_copy_(2, at, new.to(cache.dtype))
            sums.index_add_(2, at // self.sizes.block, new.to(cache.dtype).to(sums.dtype))
        branches = self._branches(q.to(caches[0].dtype), caches, at)
        y = nsa.joined(self._gates(x_t[:, None]), *branches)
        return self._merge(y.to(x_t.dtype))[:, 0], (*caches, position + 1)

    def _branches(self, q: Tensor, caches: list[Tensor], at: Tensor) -> tuple[Tensor, ...]:
        """Attend from the one query (B, H, 1, K) at a position to the caches, its own key included."""
        keys, values, sums_k, sums_v = caches
        S, G = self.sizes.block, self.n_kv_heads
        weights = nsa.weights_of_summaries(q, sums_k / S, at, S, self.slopes)
        far = (weights.unflatten(1, (G, -1)).squeeze(3) @ (sums_v / S)).reshape(q.shape).to(q.dtype)
        met = nsa.choose(weights, at, G, self.sizes)
        best = moba.attend(q, keys, values, met, i=at, block=S, slopes=self.slopes)
        return far, best, self._near(q, keys, values, at)

    def _near(self, q: Tensor, keys: Tensor, values: Tensor, at: Tensor) -> Tensor:
        """Return the window: the last few positions of a cache that holds all."""
        size = min(self.sizes.window, keys.shape[2])
        distance = torch.arange(size - 1, -1, -1, device=at.device)
        slots = (at - distance).clamp(min=0)
        bias = attention_bias(distance[None], at + 1, self.slopes)
        bias = bias if self.slopes is None else bias.to(keys.dtype).view(keys.shape[1], -1, size)
        group = q.reshape(len(q), keys.shape[1], -1, q.shape[-1])
        keys, values = keys.index_select(2, slots), values.index_select(2, slots)
        return F.scaled_dot_product_attention(group, keys, values, attn_mask=bias).reshape(q.shape)
