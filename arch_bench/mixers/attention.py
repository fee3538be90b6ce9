"""Multi-head softmax attention over the whole past or over a sliding window.

Legend: B batch, H heads, T positions, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops
from arch_bench.mixers.sizes import at_least, head_width
from arch_bench.norm import RMSNorm
from arch_bench.ops import attention, local_attention
from arch_bench.ops.kernel import Unsupported
from arch_bench.ops.pattern import n_band_pairs
from arch_bench.positions import Positions, alibi_slopes, first_waves, rotate, waves


class HeadDials(TypedDict):
    """Settings that every attention takes; `Attention` explains them."""

    d_model: int
    n_heads: int
    positions: Positions
    scale: bool
    qk_norm: bool
    kernel: str


class Attention(Mixer):
    """softmax(q k^T / sqrt(K)) v over all earlier positions, H heads (Vaswani et al. 2017, section 3.2.2).

    `n_kv_heads` < `n_heads` lets groups of query heads share keys and values (Ainslie et al. 2023); `qk_norm` gives
    queries and keys an RMS norm per head (Dehghani et al. 2023, as Qwen3 has it); `scale` off leaves out 1 / sqrt(K).

    State: every key and value, 2 T n_kv_heads K numbers. Training costs O(T^2 d_model), a decoded token O(T d_model).

    Raises ValueError if `n_heads` does not divide `d_model`, `n_kv_heads` does not divide `n_heads`, or rotary gets an
    odd head width.
    """

    card = Card("attention", "2 T d n_kv_heads / n_heads", "T d", "T d", "Vaswani et al. 2017")
    takes_relative_positions = True
    step_kernel = "sdpa"

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        positions: Positions,
        scale: bool,
        qk_norm: bool,
        kernel: str,
    ) -> None:
        super().__init__()
        d_head = head_width(d_model, n_heads)
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads={n_kv_heads} must divide n_heads={n_heads}")
        if positions == "rotary" and d_head % 2:
            raise ValueError(f"positions=rotary needs an even head width, got {d_head} (d_model / n_heads)")
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.is_rotary, self.is_scaled = positions == "rotary", scale
        self._add_projections(d_model, d_head)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(d_head) if qk_norm else nn.Identity() for _ in "qk")
        self.register_buffer("slopes", alibi_slopes(n_heads) if positions == "alibi" else None, persistent=False)
        self.slopes: Tensor | None
        self.choose(kernel, self._kernels())

    def _add_projections(self, d_model: int, d_head: int) -> None:
        self.qkv = nn.Linear(d_model, (self.n_heads + 2 * self.n_kv_heads) * d_head, bias=False)

    def _kernels(self) -> dict[str, str | None]:
        return attention.sdpa_obstacles(self._heads())

    def _heads(self) -> attention.Heads:
        device, d_head = self.out.weight.device, self.out.in_features // self.n_heads
        return attention.Heads(
            device, self.cache_dtype(), self.n_heads, self.n_kv_heads, d_head, self.slopes is not None
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.KERNELS[self.kernel](q, k, v, self.slopes)

    def _cache_len(self, max_len: int) -> int:
        return max_len

    def _project(self, x: Tensor, position: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project (B, T, d_model) to q (B, H, T, K), k and v (B, n_kv_heads, T, K), normed and rotated if configured.

        position: the position of the single token in x; None for a sequence from its start.
        """
        q, k, v = self._split(self.qkv(x))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.is_rotary:
            T, K = q.shape[-2:]
            sines = first_waves(T, K, x.device) if position is None else waves(position[None], K)
            q, k = rotate(q, sines), rotate(k, sines)
        return self._scaled(q), k, v

    def _scaled(self, q: Tensor) -> Tensor:
        return q if self.is_scaled else q * q.shape[-1] ** 0.5  # all kernels divide by sqrt(K)

    def _split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Split (B, T, all heads' widths) into q, k, v, (B, their heads, T, K); gradients return in that layout."""
        sizes = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        heads = qkv.unflatten(-1, (sum(sizes), -1))
        return tuple(each.transpose(1, 2) for each in heads.split(sizes, dim=2))

    def _merge(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self._merge(self._attend(*self._project(x)))

    def flops_per_token(self, seq_len: int) -> float:
        """Count the projections, and 4 d_model per visible pair of positions for its score and its value.

        Visible pairs are counted exactly: 2 d_model (T + 1) over the whole past, where 2 T d_model is customary.
        """
        pairs = 4 * self.out.in_features * self._n_pairs(seq_len)
        return count_flops(self.qkv.weight, self.out.weight) + pairs / seq_len

    def _n_pairs(self, seq_len: int) -> float:
        """Count the visible pairs of positions, averaged over heads."""
        return n_band_pairs(seq_len, self._cache_len(seq_len))

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (keys, values, position): a ring of the visible positions, in the activations' dtype."""
        keys, values = self._cache(batch_size, self.n_kv_heads, self._cache_len(max_len))
        return keys, values, torch.tensor(position, device=keys.device)

    def _cache(self, batch_size: int, n_heads: int, size: int) -> tuple[Tensor, Tensor]:
        """Return empty keys and values for `size` positions."""
        shape = (batch_size, n_heads, size, self.out.in_features // self.n_heads)
        keys = torch.zeros(shape, device=self.out.weight.device, dtype=self.cache_dtype())
        return keys, torch.zeros_like(keys)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values, position = state
        q, k, v = self._project(x)
        self._keep(keys, k)
        self._keep(values, v)
        return self._merge(self._attend(q, k, v)), (keys, values, position + x.shape[1])

    def _keep(self, cache: Tensor, prompt: Tensor) -> None:
        """Write the keys or values of a prompt (B, H, T, K) that are still visible into an empty cache."""
        T, size = prompt.shape[2], cache.shape[2]
        slots = torch.arange(max(0, T - size), T, device=cache.device) % size
        cache.index_copy_(2, slots, prompt[:, :, -size:].to(cache.dtype))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values, position = state
        q, k, v = self._project(x_t[:, None], position)
        slot = self._slot(position, keys.shape[2])[None]
        keys.index_copy_(2, slot, k.to(keys.dtype))
        values.index_copy_(2, slot, v.to(values.dtype))
        y = self._look_back(q.to(keys.dtype), keys, values, position)
        return self._merge(y.to(x_t.dtype))[:, 0], (keys, values, position + 1)

    def _slot(self, position: Tensor, size: int) -> Tensor:
        """Return the slot of a position in a cache of `size`."""
        return position % size

    def _look_back(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        """Attend from the one query (B, H, 1, K) at `position` to the cache, its own key included."""
        return look_back(q, keys, values, position, self.slopes)


def look_back(
    q: Tensor, keys: Tensor, values: Tensor, position: Tensor, slopes: Tensor | None, *, dilation: int = 1
) -> Tensor:
    """Attend from one query to a ring of keys and values, or to its residue class only: every `dilation`-th behind.

    q: (B, H, 1, K), at `position`; keys, values: (B, H or fewer, size, K), the size a multiple of `dilation`.
    """
    size = keys.shape[2]
    slots = torch.arange(0, size, dilation, device=q.device)
    if dilation > 1:
        slots = slots + position % dilation
        keys, values = keys.index_select(2, slots), values.index_select(2, slots)
    distance = (position - slots) % size  # age of the entry in each slot of the ring
    bias = attention.attention_bias(distance[None], position + 1, slopes)
    bias = bias if slopes is None else bias.to(keys.dtype).view(keys.shape[1], -1, len(slots))
    group = q.reshape(len(q), keys.shape[1], -1, q.shape[-1])  # the queries that share a key, as a sequence
    return F.scaled_dot_product_attention(group, keys, values, attn_mask=bias).reshape(q.shape)


def local_obstacles(heads: attention.Heads) -> dict[str, str | None]:
    """Return why each kernel of window attention cannot run here, or None."""
    fused = {"varlen": local_attention.varlen_obstacle(heads), "flex": local_attention.flex_obstacle(heads)}
    return {**fused, "blocks": None, "reference": None}


class BidirectionalAttention(Attention):
    """Attention over all positions, later ones too (Devlin et al. 2019): the mixer of an encoder.

    It has no state and no step: each new token would change the outputs of all others. Training costs
    O(T^2 d_model), twice that of the causal form. Raises as `Attention`, and Unsupported when decoding.
    """

    card = Card("attention", "none", "2 T d", "none", "Devlin et al. 2019")
    is_causal = False

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.KERNELS[self.kernel](q, k, v, self.slopes, is_causal=False)

    def _n_pairs(self, seq_len: int) -> float:
        return seq_len**2

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        raise Unsupported("an encoder sees what comes later: it has no state to decode from")


class LocalAttention(Attention):
    """Attention over the last `window` positions, its own included (Beltagy et al. 2020, section 3.1).

    State: the keys and values of one window, 2 min(T, window) d_model numbers. Training costs O(T window d_model),
    a decoded token O(window d_model). n_layers blocks see n_layers * (window - 1) positions back.
    """

    card = Card(
        "sparse attention", "2 min(T, window) d n_kv_heads / n_heads", "window d", "window d", "Beltagy et al. 2020"
    )

    def __init__(self, *, window: int, n_kv_heads: int, **heads: Unpack[HeadDials]) -> None:
        at_least(1, window=window)
        self.window = window
        super().__init__(n_kv_heads=n_kv_heads, **heads)

    def _kernels(self) -> dict[str, str | None]:
        return local_obstacles(self._heads())

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (attention.for_each_head(x, self.n_heads) for x in (k, v))
        return local_attention.KERNELS[self.kernel](q, k, v, self.window, self.slopes)

    def _cache_len(self, max_len: int) -> int:
        return min(self.window, max_len)

    def bare(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return FlashAttention with a window, as in PyTorch, on plain heads (CUDA, bf16)."""
        return {"varlen_attn": self._flash} if self.out.weight.is_cuda and self.n_kv_heads == self.n_heads else {}

    def _flash(self, x: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B * T, 3, self.n_heads, -1).unbind(1)
        ends = torch.arange(0, B * T + 1, T, device=x.device, dtype=torch.int32)
        y: Any = varlen_attn(q, k, v, ends, ends, T, T, window_size=(self.window - 1, 0))
        return self.out(y.reshape(B, T, -1))
