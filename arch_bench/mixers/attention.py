"""Multi-head softmax attention: over the whole past, or over a sliding window.

Legend: B batch, H heads, T positions, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Mixer, State, count_flops
from arch_bench.ops import attention
from arch_bench.ops.pattern import n_band_pairs
from arch_bench.positions import Positions, alibi_slopes, first_waves, rotate, waves


class Attention(Mixer):
    """softmax(q k^T / sqrt(K)) v over all earlier positions, H heads (Vaswani et al. 2017, section 3.2.2).

    State: every key and value, 2 T d_model numbers. Training costs O(T^2 d_model), a decoded token O(T d_model).

    Raises ValueError if `n_heads` does not divide `d_model`, or leaves rotary an odd head width.
    """

    takes_relative_positions = True
    step_kernel = "sdpa"

    def __init__(self, *, d_model: int, n_heads: int, positions: Positions, kernel: str) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"n_heads={n_heads} must divide d_model={d_model}")
        if positions == "rotary" and d_model // n_heads % 2:
            raise ValueError(f"positions=rotary needs an even head width, got {d_model // n_heads} (d_model / n_heads)")
        self.n_heads = n_heads
        self.is_rotary = positions == "rotary"
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.register_buffer("slopes", alibi_slopes(n_heads) if positions == "alibi" else None, persistent=False)
        self.slopes: Tensor | None
        self.choose(kernel, self._kernels())

    def _kernels(self) -> dict[str, str | None]:
        return attention.sdpa_obstacles(self._heads())

    def _heads(self) -> attention.Heads:
        device, d_head = self.out.weight.device, self.out.in_features // self.n_heads
        return attention.Heads(device, self.cache_dtype(), self.n_heads, d_head, self.slopes is not None)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.KERNELS[self.kernel](q, k, v, self.slopes)

    def _cache_len(self, max_len: int) -> int:
        return max_len

    def _project(self, x: Tensor, position: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, d_model) -> q, k, v of shape (B, H, T, K), rotated where that is the kind of position.

        position: where the one token stands that x holds; None for a sequence from its start.
        """
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, 3, self.n_heads, -1)
        q, k, v = (each.transpose(1, 2) for each in heads.unbind(2))  # so that gradients return in the layout of x
        if self.is_rotary:
            K = q.shape[-1]
            sines = first_waves(T, K, x.device) if position is None else waves(position[None], K)
            q, k = rotate(q, sines), rotate(k, sines)
        return q, k, v

    def _merge(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self._merge(self._attend(*self._project(x)))

    def flops_per_token(self, seq_len: int) -> float:
        """Projections, and 4 d_model per visible pair of positions for its score and its value.

        The visible pairs exactly: 2 d_model (T + 1) over the whole past, where 2 T d_model is customary.
        """
        pairs = 4 * self.out.in_features * self._n_pairs(seq_len)
        return count_flops(self.qkv.weight, self.out.weight) + pairs / seq_len

    def _n_pairs(self, seq_len: int) -> float:
        """Pairs of positions of which one sees the other, the mean over heads."""
        return n_band_pairs(seq_len, self._cache_len(seq_len))

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """(keys, values, position): a ring of the positions that can still be seen, in the activations' dtype."""
        keys, values = self._cache(batch_size, self.n_heads, self._cache_len(max_len))
        return keys, values, torch.tensor(position, device=keys.device)

    def _cache(self, batch_size: int, n_heads: int, size: int) -> tuple[Tensor, Tensor]:
        """Empty keys and values for `size` positions."""
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
        """Write the keys or values of a prompt (B, H, T, K) that can still be seen into an empty cache."""
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
        """Where a cache of `size` keeps a position."""
        return position % size

    def _look_back(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        """The one query (B, H, 1, K) at `position` on what the cache holds, its own key included."""
        return look_back(q, keys, values, position, self.slopes)


def look_back(
    q: Tensor, keys: Tensor, values: Tensor, position: Tensor, slopes: Tensor | None, *, dilation: int = 1
) -> Tensor:
    """One query on a ring of keys and values, or on those of its residue class: every `dilation`-th behind.

    q: (B, H, 1, K), at `position`; keys, values: (B, H, size, K), the size a multiple of `dilation`.
    """
    size = keys.shape[2]
    slots = torch.arange(0, size, dilation, device=q.device)
    if dilation > 1:
        slots = slots + position % dilation
        keys, values = keys.index_select(2, slots), values.index_select(2, slots)
    distance = (position - slots) % size  # age of what each slot of the ring holds
    bias = attention.attention_bias(distance[None], position + 1, slopes)
    bias = bias if slopes is None else bias.to(keys.dtype)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)


def local_obstacles(heads: attention.Heads) -> dict[str, str | None]:
    """Why each kernel of window attention cannot run here, or None."""
    fused = {"varlen": attention.varlen_obstacle(heads), "flex": attention.flex_obstacle(heads)}
    return {**fused, "blocks": None, "reference": None}


class LocalAttention(Attention):
    """Attention over the last `window` positions, its own included (Beltagy et al. 2020, section 3.1).

    State: the keys and values of one window, 2 min(T, window) d_model numbers. Training costs O(T window d_model),
    a decoded token O(window d_model). n_layers blocks see n_layers * (window - 1) positions back.
    """

    def __init__(self, *, d_model: int, n_heads: int, window: int, positions: Positions, kernel: str) -> None:
        if window < 1:
            raise ValueError(f"window={window} must be at least 1")
        self.window = window
        super().__init__(d_model=d_model, n_heads=n_heads, positions=positions, kernel=kernel)

    def _kernels(self) -> dict[str, str | None]:
        return local_obstacles(self._heads())

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.LOCAL_KERNELS[self.kernel](q, k, v, self.window, self.slopes)

    def _cache_len(self, max_len: int) -> int:
        return min(self.window, max_len)

    def bare(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """FlashAttention with a window, as PyTorch offers it, on unrotated heads (CUDA, bf16)."""
        return {"varlen_attn": self._flash} if self.out.weight.is_cuda else {}

    def _flash(self, x: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B * T, 3, self.n_heads, -1).unbind(1)
        ends = torch.arange(0, B * T + 1, T, device=x.device, dtype=torch.int32)
        y: Any = varlen_attn(q, k, v, ends, ends, T, T, window_size=(self.window - 1, 0))
        return self.out(y.reshape(B, T, -1))
