"""Selective attention: tokens vote on which earlier ones the later ones should not attend to.

Legend: B batch, H heads, T positions, K head width.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.mixers.attention import Attention, HeadDials
from arch_bench.mixers.base import Card, State
from arch_bench.ops import selective_attention as op


class SelectiveAttention(Attention):
    """Attention whose first head also masks, softly, for all of them (Leviathan et al. 2024, section 3); no parameters.

        L_h[i, j] = q_i . k_j / sqrt(K) in head h
        S[i, j]   = relu(L_0[i, j]) where 0 < j < i, else 0          what token i has seen enough of
        F[i, j]   = sum over i' < i of S[i', j]
        y_i       = softmax over j <= i of (L_h[i, j] - F[i, j]) . v_j

    State: every key and value and the F of each key in float32, 2 T d_model + T numbers. Training costs
    O(T^2 d_model) time and O(T^2) memory, since F is made; a decoded token O(T d_model). The paper also drops from the
    cache what F has masked; here all is kept.
    """

    card = Card("sparse attention", "2 T d + T", "T d", "T d", "Leviathan et al. 2024")

    def __init__(self, **heads: Unpack[HeadDials]) -> None:
        super().__init__(n_kv_heads=heads["n_heads"], **heads)

    def _kernels(self) -> dict[str, str | None]:
        return dict.fromkeys(op.KERNELS)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return op.KERNELS[self.kernel](q, k, v, self.slopes)[0]

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (keys, values, F, position)."""
        keys, values, at = super().init_state(batch_size, max_len, position)
        wide = torch.promote_types(self.out.weight.dtype, torch.float32)
        return keys, values, torch.zeros(batch_size, max_len, device=keys.device, dtype=wide), at

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values, penalty, position = state
        q, k, v = self._project(x)
        self._keep(keys, k)
        self._keep(values, v)
        y, votes = op.KERNELS[self.kernel](q, k, v, self.slopes)
        penalty[:, : x.shape[1]].copy_(votes)
        return self._merge(y), (keys, values, penalty, position + x.shape[1])

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values, penalty, position = state
        q, k, v = self._project(x_t[:, None], position)
        keys.index_copy_(2, position[None], k.to(keys.dtype))
        values.index_copy_(2, position[None], v.to(values.dtype))
        distance = (position - torch.arange(keys.shape[2], device=x_t.device))[None]
        bias = op.distance_bias(distance, self.slopes)
        lowered = (bias - penalty[:, None, None]).to(keys.dtype)
        y = F.scaled_dot_product_attention(q.to(keys.dtype), keys, values, attn_mask=lowered)
        penalty.add_(op.votes(q[:, 0].to(keys.dtype), keys[:, 0], distance, bias[0])[:, 0])
        return self._merge(y.to(x_t.dtype))[:, 0], (keys, values, penalty, position + 1)
