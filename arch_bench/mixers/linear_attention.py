"""Linear attention: the state is a sum of keys times values, read by queries. Here without decay.

Legend: B batch, T positions, H heads, K and V widths of a head's key and value.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops, tensors
from arch_bench.mixers.sizes import at_least, head_width
from arch_bench.ops.chunks import wide
from arch_bench.ops.linear_attention import Decay, Heads, linear_attention, linear_attention_step, obstacles


class Inputs(NamedTuple):
    """Inputs of `linear_attention`, heads before widths."""

    q: Tensor  # (..., H, K)
    k: Tensor  # (..., H, K)
    v: Tensor  # (..., H, V)
    log_decay: Tensor | None  # (..., H), (..., H, K), or (H,)


class LinearMixer(Mixer):
    """Base of mixers on `linear_attention`: S_t = decay_t S_{t-1} + k_t v_t^T, o_t = S_t^T q_t in each head.

    State: S, H K V numbers in float32, whatever the length. Beside the projections a token costs 2 H K V multiply-adds
    in training as in decoding, in chunks of C positions H C (K + V) / 2 more.
    """

    step_kernel = "eager"
    decay: ClassVar[Decay] = "none"

    def _decide(self, kernel: str, n_heads: int, d_key: int, d_value: int) -> None:
        """Set the sizes of the state and choose the kernel; called after the parameters exist."""
        self.n_heads, self.d_key, self.d_value = n_heads, d_key, d_value
        weight = next(self.parameters())
        heads = Heads(weight.device, self.cache_dtype(), n_heads, d_key, d_value, self.decay)
        self.choose(kernel, obstacles(heads))

    @abstractmethod
    def _inputs(self, x: Tensor, *extra: Tensor) -> Inputs:
        """Compute the inputs of all positions (B, T, d_model), or of one (B, d_model) with the state beside S."""

    @abstractmethod
    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        """Map (..., H, V) to (..., d_model)."""

    def _weights(self) -> list[Tensor]:
        """Return the matrices that multiply every token."""
        return [module.weight for module in self.modules() if isinstance(module, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x)[0]

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, found = self._parallel(x)
        for kept, new in zip(tensors(state), tensors(found), strict=True):
            kept.copy_(new)
        return y, state

    def _parallel(self, x: Tensor) -> tuple[Tensor, State]:
        """Return the output and the state after the last position. x: (B, T, d_model)."""
        o, last = self._attend(self._inputs(x))
        return self._output(o, x), (last,)

    def _attend(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Compute o (B, T, H, V) and the last S."""
        q, k, v, log_decay = inputs
        if log_decay is not None and log_decay.dim() > 1:
            log_decay = log_decay.transpose(1, 2)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        o, last = linear_attention(q, k, v, log_decay, kernel=self.kernel)
        return o.transpose(1, 2), last

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        last, *extra = state
        o = linear_attention_step(*self._inputs(x_t, *extra), state=last)
        return self._output(o, x_t), state

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        weight = next(self.parameters())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return (weight.new_zeros(batch_size, self.n_heads, self.d_key, self.d_value, dtype=dtype),)

    def flops_per_token(self, seq_len: int) -> float:
        """Count the projections, and k v^T and S^T q: 4 H K V."""
        return count_flops(*self._weights()) + 4 * self.n_heads * self.d_key * self.d_value


class LinearAttention(LinearMixer):
    """Attention by a feature map phi instead of the exponential (Katharopoulos et al. 2020, eq. 10-12 and 16-20).

        o_t = phi(q_t)^T S_t / phi(q_t)^T z_t,   S_t = S_{t-1} + phi(k_t) v_t^T,   z_t = z_{t-1} + phi(k_t)

    with phi(x) = elu(x) + 1 (eq. 7), and z in the state as the column of a value that is always 1.

    State: H K (V + 1) = d_model (d_model / H + 1) numbers in float32, whatever the length. A token costs 4 d_model^2
    multiply-adds in projections and 2 d_model (d_model / H + 1) in the state.

    Raises ValueError if `n_heads` does not divide `d_model`.
    """

    card = Card(
        "linear attention", "d (d / n_heads + 1)", "d^2 / n_heads", "d^2 / n_heads", "Katharopoulos et al. 2020"
    )

    def __init__(self, *, d_model: int, n_heads: int, kernel: str) -> None:
        super().__init__()
        d_head = head_width(d_model, n_heads)
        self._build(d_model, n_heads, d_head)
        self._decide(kernel, n_heads, d_head, d_head + 1)

    def _build(self, d_model: int, n_heads: int, d_query: int) -> None:
        self.qkv = nn.Linear(d_model, 2 * n_heads * d_query + d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self._widths = (n_heads * d_query, n_heads * d_query, d_model)

    def _inputs(self, x: Tensor, *extra: Tensor) -> Inputs:
        q, k, v = (each.unflatten(-1, (self.n_heads, -1)) for each in self.qkv(x).split(self._widths, -1))
        return Inputs(self._features(wide(q)), self._features(wide(k)), F.pad(v, (0, 1), value=1.0), None)

    def _features(self, x: Tensor) -> Tensor:
        return F.elu(x) + 1

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        return self.out((o[..., :-1] / o[..., -1:]).flatten(-2))


class TaylorAttention(LinearAttention):
    """Attention with phi(q)^T phi(k) = 1 + s + s^2 / 2, s = q^T k / sqrt(d_feature) (Based, Arora et al. 2024, eq. 5).

    The exponential's Taylor series to second order: phi(x) = (1, x_i / d^(1/4), x_i x_j c_ij / sqrt(d)), each product
    of two features once, with c_ii = 1/sqrt(2) and c_ij = 1, so that K = 1 + d + d (d + 1) / 2, 153 of d_feature = 16.

    State: H K (V + 1) numbers in float32. A token costs 2 d_model (d_model + H d_feature) multiply-adds in projections
    and 2 H K (V + 1) in the state. Based's other half, attention in a small window, is a layer of its own.

    Raises ValueError if `n_heads` does not divide `d_model`, or there is no feature.
    """

    card = Card(
        "linear attention",
        "about d_feature^2 (d + n_heads) / 2",
        "d d_feature^2 / 2",
        "d d_feature^2 / 2",
        "Arora et al. 2024",
    )

    def __init__(self, *, d_model: int, n_heads: int, d_feature: int, kernel: str) -> None:
        Mixer.__init__(self)
        d_head = head_width(d_model, n_heads)
        at_least(1, d_feature=d_feature)
        self._build(d_model, n_heads, d_feature)
        i, j = torch.triu_indices(d_feature, d_feature)
        weights = torch.ones(d_feature, d_feature).fill_diagonal_(0.5).sqrt()[i, j] * d_feature**-0.5
        self.register_buffer("products", i * d_feature + j, persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        self.products: Tensor
        self.weights: Tensor
        self._decide(kernel, n_heads, 1 + d_feature + len(weights), d_head + 1)

    def _features(self, x: Tensor) -> Tensor:
        d_feature = x.shape[-1]
        squares = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2).index_select(-1, self.products)
        return torch.cat((torch.ones_like(x[..., :1]), x * d_feature**-0.25, squares * self.weights), -1)
