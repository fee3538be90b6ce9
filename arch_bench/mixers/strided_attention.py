"""Attention whose heads look back in two ways or at regular intervals: strided, dilated, hard ALiBi.

Legend: B batch, H heads, T positions, K head width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.mixers.attention import Attention, HeadDials, LocalAttention, local_obstacles, look_back
from arch_bench.mixers.base import Card, State
from arch_bench.mixers.sizes import at_least
from arch_bench.ops import attention, block_sparse, local_attention
from arch_bench.ops.dilated import dilated, n_dilated_pairs
from arch_bench.ops.pattern import Stairs, n_band_pairs

BLOCK = 32
"""Positions per block of hard ALiBi's narrow windows, the least that is worth a product of matrices."""


class DilatedAttention(LocalAttention):
    """The last `window` keys that are a multiple of `dilation` behind (Beltagy et al. 2020, section 3.1).

    Position t sees t, t - dilation, ..., t - (window - 1) dilation: a window in its residue class, and the classes
    never meet in this mixer: between them mediate other layers or the short convolution in front (`d_conv`).

    State: a ring of window x dilation keys and values, 2 min(T, window dilation) d_model numbers: what one token does
    not see, the next one may. Training costs O(T window d_model), a decoded token O(window d_model).
    """

    card = Card("sparse attention", "2 window dilation d", "window d", "window d", "Beltagy et al. 2020")
    reads_whole_state = False

    def __init__(self, *, window: int, dilation: int, **heads: Unpack[HeadDials]) -> None:
        at_least(1, dilation=dilation)
        self.dilation = dilation
        super().__init__(window=window, n_kv_heads=heads["n_heads"], **heads)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dilated(q, k, v, window=self.window, dilation=self.dilation, slopes=self.slopes, kernel=self.kernel)

    def _cache_len(self, max_len: int) -> int:
        return min(self.window, -(-max_len // self.dilation)) * self.dilation

    def _n_pairs(self, seq_len: int) -> float:
        return n_dilated_pairs(seq_len, self.window, self.dilation)

    def _look_back(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        return look_back(q, keys, values, position, self.slopes, dilation=self.dilation)

    def bare(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {}


class NearAndFar(Attention):
    """Two kinds of heads: the first `n_near` look back `reach` positions at most, the others without a limit.

    State: a ring of `reach` keys and values for the near heads, all keys and values for the far ones.
    """

    n_near: int
    reach: int

    @abstractmethod
    def _attend_near(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with the near heads over a sequence. q, k, v: (B, n_near, T, K)."""

    @abstractmethod
    def _attend_far(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with the other heads."""

    @abstractmethod
    def _look_near(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        """Attend from one token with the near heads, as `_look_back`."""

    @abstractmethod
    def _look_far(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        """Attend from one token with the other heads."""

    def _near_far(self, *heads: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Split (B, H, T, K) tensors into those of the near heads and those of the far heads."""
        return [x[:, : self.n_near] for x in heads], [x[:, self.n_near :] for x in heads]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        near, far = self._near_far(q, k, v)
        return torch.cat((self._attend_near(*near), self._attend_far(*far)), 1)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (near keys, near values, far keys, far values, position)."""
        near = self._cache(batch_size, self.n_near, min(self.reach, max_len))
        far = self._cache(batch_size, self.n_heads - self.n_near, self._cache_len(max_len))
        return *near, *far, torch.tensor(position, device=far[0].device)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        *caches, position = state
        q, k, v = self._project(x)
        near, far = self._near_far(k, v)
        for cache, prompt in zip(caches, (*near, *far), strict=True):
            self._keep(cache, prompt)
        return self._merge(self._attend(q, k, v)), (*caches, position + x.shape[1])

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        *caches, position = state
        (q_near, *near), (q_far, *far) = self._near_far(*self._project(x_t[:, None], position))
        for cache, token in zip(caches, (*near, *far), strict=True):
            cache.index_copy_(2, self._slot(position, cache.shape[2])[None], token.to(cache.dtype))
        dtype = caches[0].dtype
        y_near = self._look_near(q_near.to(dtype), caches[0], caches[1], position)
        y_far = self._look_far(q_far.to(dtype), caches[2], caches[3], position)
        return self._merge(torch.cat((y_near, y_far), 1).to(x_t.dtype))[:, 0], (*caches, position + 1)


class StridedAttention(NearAndFar):
    """The strided Sparse Transformer (Child et al. 2019, sections 4.2 and 4.3): half of the heads each way.

    Position t sees t - stride, ..., t in the first half of the heads, and t, t - stride, t - 2 stride, ... in the
    second: two steps lead from any position to any later one. The paper's heads cost the least at stride = sqrt(T).

    State: the keys and values of stride + 1 positions for the first half, all for the second, since a later token may
    ask for any residue: (min(T, stride + 1) + T) d_model numbers. Training costs O(T (stride + T / stride) d_model),
    a decoded token O((stride + T / stride) d_model).

    Raises as `Attention`, and ValueError if `stride` < 1 or `n_heads` is odd.
    """

    card = Card("sparse attention", "(T + stride + 1) d", "(stride + T / stride) d", "as training", "Child et al. 2019")
    reads_whole_state = False

    def __init__(self, *, stride: int, **heads: Unpack[HeadDials]) -> None:
        n_heads = heads["n_heads"]
        at_least(1, stride=stride)
        if n_heads % 2:
            raise ValueError(f"n_heads={n_heads} must be even: one half looks near, the other far")
        self.stride, self.reach, self.n_near = stride, stride + 1, n_heads // 2
        super().__init__(n_kv_heads=n_heads, **heads)

    def _kernels(self) -> dict[str, str | None]:
        return local_obstacles(self._heads())

    def _slopes(self) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if self.slopes is None else (self.slopes[: self.n_near], self.slopes[self.n_near :])

    def _attend_near(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return local_attention.KERNELS[self.kernel](q, k, v, self.reach, self._slopes()[0])

    def _attend_far(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dilated(q, k, v, window=None, dilation=self.stride, slopes=self._slopes()[1], kernel=self.kernel)

    def _look_near(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        return look_back(q, keys, values, position, self._slopes()[0])

    def _look_far(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        return look_back(q, keys, values, position, self._slopes()[1], dilation=self.stride)

    def _cache_len(self, max_len: int) -> int:
        return -(-max_len // self.stride) * self.stride

    def _n_pairs(self, seq_len: int) -> float:
        return (n_band_pairs(seq_len, self.reach) + n_dilated_pairs(seq_len, None, self.stride)) / 2


class HardAlibi(NearAndFar):
    """Windows of 1, 2, 3, ... positions, and heads without positions (Hard-ALiBi, Jelassi et al. 2024).

    Head h = 0 ... n_window_heads - 1 sees the last h + 1 positions, the others the whole past; none of them takes
    any other positions. The windows let a model match the last n tokens, and then copy what followed them before.

    State: the keys and values of n_window_heads positions for the first heads, all for the others: about
    2 T (H - n_window_heads) K numbers. Training costs O(T^2 (H - n_window_heads) K), a decoded token
    O(T (H - n_window_heads) K).

    Raises as `Attention`, and ValueError unless 0 < n_window_heads < n_heads.
    """

    takes_relative_positions = False

    card = Card(
        "sparse attention",
        "2 d (T (n_heads - n_window_heads) + n_window_heads^2) / n_heads",
        "T d (1 - n_window_heads / n_heads)",
        "as training",
        "Jelassi et al. 2024",
    )

    def __init__(
        self, *, d_model: int, n_heads: int, n_window_heads: int, scale: bool, qk_norm: bool, kernel: str
    ) -> None:
        if not 0 < n_window_heads < n_heads:
            raise ValueError(f"n_window_heads={n_window_heads} must be at least 1 and less than n_heads={n_heads}")
        self.n_near = self.reach = n_window_heads
        self.pattern = Stairs(block=max(BLOCK, n_window_heads), n_heads=n_window_heads)
        super().__init__(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            positions="none",
            scale=scale,
            qk_norm=qk_norm,
            kernel=kernel,
        )

    def _kernels(self) -> dict[str, str | None]:
        found = block_sparse.obstacles(self._heads())
        return {name: found[name] for name in ("flex", "blocks", "reference")}

    def _attend_near(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse.KERNELS[self.kernel](q, k, v, self.pattern, None)

    def _attend_far(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.KERNELS["reference" if self.kernel == "reference" else "sdpa"](q, k, v, None)

    def _look_near(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        size = keys.shape[2]
        age = (position - torch.arange(size, device=q.device)) % size
        last = torch.arange(self.n_near, device=q.device)[:, None, None]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=(age <= last) & (age <= position))

    def _look_far(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        return look_back(q, keys, values, position, None)

    def _n_pairs(self, seq_len: int) -> float:
        near = sum(n_band_pairs(seq_len, reach) for reach in range(1, self.n_near + 1))
        return (near + (self.n_heads - self.n_near) * n_band_pairs(seq_len, seq_len)) / self.n_heads
