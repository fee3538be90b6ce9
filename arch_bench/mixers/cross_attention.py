"""Cross attention: the positions of one sequence attend to those of another, its source.

Legend: B batch, H heads, S positions of the source, T positions that ask, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from arch_bench.mixers.attention import Attention, BidirectionalAttention
from arch_bench.mixers.base import State, count_flops
from arch_bench.ops import attention
from arch_bench.positions import Positions


class CrossAttention(Attention):
    """softmax(q k^T / sqrt(K)) v, q of the positions that ask, k and v of the source (Vaswani et al. 2017, 3.2.3).

    State: the keys and values of the source, 2 S n_kv_heads K numbers, which no step changes; `prefill` and `step` ask
    the state that they are given. A token that asks costs O(S d_model), in training and when it is decoded.

    Positions of different sequences have no distance: among the settings of `Attention`, `positions` must be none.
    """

    takes_relative_positions = False

    def _add_projections(self, d_model: int, d_head: int) -> None:
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.kv = nn.Linear(d_model, 2 * self.n_kv_heads * d_head, bias=False)

    def read(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project (B, S, d_model) to keys and values, (B, n_kv_heads, S, K) each."""
        k, v = self.kv(source).unflatten(-1, (2 * self.n_kv_heads, -1)).transpose(1, 2).chunk(2, dim=1)
        return self.k_norm(k), v

    def forward(self, x: Tensor, source: Tensor) -> Tensor:  # type: ignore[override]
        return self._ask(x, *self.read(source), self.kernel)

    def _ask(self, x: Tensor, keys: Tensor, values: Tensor, kernel: str) -> Tensor:
        q = self._scaled(self.q_norm(self.q(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)))
        group = q.reshape(len(q), self.n_kv_heads, -1, q.shape[-1])  # the heads that share a key, as more positions
        y = attention.KERNELS[kernel](group.to(keys.dtype), keys, values, is_causal=False)
        return self._merge(y.to(x.dtype).reshape(q.shape))

    def flops_per_token(self, seq_len: int) -> float:
        """Count operations per query token at a source of `seq_len`; reading it is `flops_per_source_token`."""
        return count_flops(self.q.weight, self.out.weight) + 4 * self.out.in_features * seq_len

    def flops_per_source_token(self) -> float:
        return count_flops(self.kv.weight)

    def reading(self) -> list[nn.Parameter]:
        return [*self.kv.parameters(), *self.k_norm.parameters()]

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (keys, values) of a source of `max_len` tokens; NaN until it is read, so that a missing read shows."""
        keys, values = self._cache(batch_size, self.n_kv_heads, max_len)
        return (keys, values) if position else (keys, values.fill_(float("nan")))

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values = state
        return self._ask(x, keys, values, self.kernel), state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values = state
        return self._ask(x_t[:, None], keys, values, self.step_kernel)[:, 0], state


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderAttention:
    """The three attentions of a layer of Vaswani et al. 2017, section 3.2.3, with the same dials, as in `Attention`."""

    n_heads: int
    n_kv_heads: int
    positions: Positions
    scale: bool
    qk_norm: bool
    kernel: str

    def encoder(self, *, d_model: int) -> BidirectionalAttention:
        """Attend from all positions of the source to all of them."""
        return BidirectionalAttention(d_model=d_model, **vars(self))

    def decoder(self, *, d_model: int) -> Attention:
        """Attend from each position of the target to itself and the earlier ones."""
        return Attention(d_model=d_model, **vars(self))

    def cross(self, *, d_model: int) -> CrossAttention:
        """Attend from each position of the target to all of the source."""
        return CrossAttention(d_model=d_model, **vars(self) | {"positions": "none"})
