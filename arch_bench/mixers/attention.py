"""Multi-head softmax attention: over the whole past, or over a sliding window.

Legend: B batch, H heads, T positions, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops
from arch_bench.norm import RMSNorm
from arch_bench.ops import attention
from arch_bench.positions import Positions, alibi_slopes, first_waves, rotate, waves


class HeadDials(TypedDict):
    """What every attention takes, as `Attention` explains it."""

    d_model: int
    n_heads: int
    n_kv_heads: int
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

    card = Card("attention", "2 T d", "T d", "T d", "Vaswani et al. 2017")
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
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"n_heads={n_heads} must divide d_model={d_model}")
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads={n_kv_heads} must divide n_heads={n_heads}")
        d_head = d_model // n_heads
        if positions == "rotary" and d_head % 2:
            raise ValueError(f"positions=rotary needs an even head width, got {d_head} (d_model / n_heads)")
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.is_rotary, self.is_scaled = positions == "rotary", scale
        self.qkv = nn.Linear(d_model, (n_heads + 2 * n_kv_heads) * d_head, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(d_head) if qk_norm else nn.Identity() for _ in "qk")
        self.register_buffer("slopes", alibi_slopes(n_heads) if positions == "alibi" else None, persistent=False)
        self.slopes: Tensor | None
        self.choose(kernel, self._kernels())

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
        """(B, T, d_model) -> q (B, H, T, K), k and v (B, n_kv_heads, T, K), normed and rotated where that is asked for.

        position: where the one token stands that x holds; None for a sequence from its start.
        """
        q, k, v = self._split(self.qkv(x))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.is_rotary:
            T, K = q.shape[-2:]
            sines = first_waves(T, K, x.device) if position is None else waves(position[None], K)
            q, k = rotate(q, sines), rotate(k, sines)
        return (q if self.is_scaled else q * q.shape[-1] ** 0.5), k, v  # all kernels divide by sqrt(K)

    def _split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """(B, T, all heads' widths) -> q, k, v as (B, their heads, T, K), whose gradients return in that layout."""
        sizes = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        heads = qkv.unflatten(-1, (sum(sizes), -1))
        return tuple(each.transpose(1, 2) for each in heads.split(sizes, dim=2))

    def _merge(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self._merge(self._attend(*self._project(x)))

    def flops_per_token(self, seq_len: int) -> float:
        """Projections, and 4 d_model per visible pair of positions for its score and its value.

        The visible pairs exactly: 2 d_model (T + 1) over the whole past, where 2 T d_model is customary.
        """
        reach = self._cache_len(seq_len)
        n_pairs = reach * (2 * seq_len - reach + 1) // 2  # sum over t < T of min(reach, t + 1)
        return count_flops(self.qkv.weight, self.out.weight) + 4 * self.out.in_features * n_pairs / seq_len

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """(keys, values, position): a ring of the positions that can still be seen, in the activations' dtype."""
        shape = (batch_size, self.n_kv_heads, self._cache_len(max_len), self.out.in_features // self.n_heads)
        keys = torch.zeros(shape, device=self.out.weight.device, dtype=self.cache_dtype())
        return keys, torch.zeros_like(keys), torch.tensor(position, device=keys.device)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values, position = state
        T, size = x.shape[1], keys.shape[2]
        q, k, v = self._project(x)
        slots = torch.arange(max(0, T - size), T, device=x.device) % size
        keys.index_copy_(2, slots, k[:, :, -size:].to(keys.dtype))
        values.index_copy_(2, slots, v[:, :, -size:].to(values.dtype))
        return self._merge(self._attend(q, k, v)), (keys, values, position + T)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values, position = state
        size = keys.shape[2]
        q, k, v = self._project(x_t[:, None], position)
        slot = (position % size)[None]
        keys.index_copy_(2, slot, k.to(keys.dtype))
        values.index_copy_(2, slot, v.to(values.dtype))
        distance = (position - torch.arange(size, device=x_t.device)) % size  # age of what each slot of the ring holds
        bias = attention.attention_bias(distance[None], position + 1, self.slopes)
        bias = bias if self.slopes is None else bias.to(keys.dtype).view(self.n_kv_heads, -1, size)
        group = q.to(keys.dtype).view(len(q), self.n_kv_heads, -1, q.shape[-1])  # the queries of a key, as a sequence
        y = F.scaled_dot_product_attention(group, keys, values, attn_mask=bias)
        return self._merge(y.view_as(q).to(x_t.dtype))[:, 0], (keys, values, position + 1)


class LocalAttention(Attention):
    """Attention over the last `window` positions, its own included (Beltagy et al. 2020, section 3.1).

    State: the keys and values of one window, 2 min(T, window) d_model numbers. Training costs O(T window d_model),
    a decoded token O(window d_model). n_layers blocks see n_layers * (window - 1) positions back.
    """

    card = Card("sparse attention", "2 min(T, window) d", "window d", "window d", "Beltagy et al. 2020")

    def __init__(self, *, window: int, **heads: Unpack[HeadDials]) -> None:
        if window < 1:
            raise ValueError(f"window={window} must be at least 1")
        self.window = window
        super().__init__(**heads)

    def _kernels(self) -> dict[str, str | None]:
        heads = self._heads()
        fused = {"varlen": attention.varlen_obstacle(heads), "flex": attention.flex_obstacle(heads)}
        return {**fused, "blocks": None, "reference": None}

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (attention.for_each_head(x, self.n_heads) for x in (k, v))
        return attention.LOCAL_KERNELS[self.kernel](q, k, v, self.window, self.slopes)

    def _cache_len(self, max_len: int) -> int:
        return min(self.window, max_len)

    def bare(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """FlashAttention with a window, as PyTorch offers it, on plain heads (CUDA, bf16)."""
        return {"varlen_attn": self._flash} if self.out.weight.is_cuda and self.n_kv_heads == self.n_heads else {}

    def _flash(self, x: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B * T, 3, self.n_heads, -1).unbind(1)
        ends = torch.arange(0, B * T + 1, T, device=x.device, dtype=torch.int32)
        y: Any = varlen_attn(q, k, v, ends, ends, T, T, window_size=(self.window - 1, 0))
        return self.out(y.reshape(B, T, -1))
