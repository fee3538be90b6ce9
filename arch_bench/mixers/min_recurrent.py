"""Minimal recurrent networks: gates depend on the token alone, so that all positions are computed at once.

Legend: B batch, T positions, E hidden width = expand * d_model.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops
from arch_bench.mixers.sizes import at_least
from arch_bench.ops.linear_recurrence import OBSTACLES, linear_recurrence


class MinRecurrent(Mixer):
    """h_t = keep_t h_{t-1} + take_t g(v_t), output_t = out_proj(h_t) (Feng et al. 2024, arXiv:2410.01201, section 3).

    The gates and v_t are linear maps of x_t. g(v) = v + 1/2 where v >= 0, else sigmoid(v): the log-space form of
    appendix B, whose h stays positive. Its scan works in logarithms; ours only multiplies decays in (0, 1), which
    needs none. h starts from 0.

    State: h, E numbers in float32, whatever the length. Training costs O(T E d_model) and one scan, in parallel; a
    decoded token O(E d_model).
    """

    n_inputs: ClassVar[int]
    step_kernel = "eager"

    def __init__(self, *, d_model: int, expand: int, kernel: str) -> None:
        super().__init__()
        at_least(1, expand=expand)
        self.choose(kernel, OBSTACLES)
        self.in_proj = nn.Linear(d_model, self.n_inputs * expand * d_model)
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=False)
        self.in_proj.bias._no_weight_decay = True  # type: ignore[attr-defined]

    @abstractmethod
    def _gates(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return keep and take, each (..., E) in (0, 1), from the inputs in front of v."""

    def _recurrence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keep_t and take_t g(v_t), in float32 or wider. x: (..., d_model)."""
        inputs = self.in_proj(x)
        inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        *gates, v = inputs.chunk(self.n_inputs, dim=-1)
        keep, take = self._gates(*gates)
        return keep, take * torch.where(v >= 0, v + 0.5, torch.sigmoid(v))

    def _parallel(self, x: Tensor) -> Tensor:
        """Compute h (B, T, E)."""
        keep, drive = self._recurrence(x)
        return linear_recurrence(keep, drive, kernel=self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self._parallel(x))

    def flops_per_token(self, seq_len: int) -> float:
        return count_flops(self.in_proj.weight, self.out_proj.weight)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        weight = self.out_proj.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return (weight.new_zeros(batch_size, self.out_proj.in_features, dtype=dtype),)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h = self._parallel(x)
        state[0].copy_(h[:, -1])
        return self.out_proj(h), state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        keep, drive = self._recurrence(x_t)
        h = state[0].mul_(keep).add_(drive)
        return self.out_proj(h), state


class MinGRU(MinRecurrent):
    """z_t = sigmoid(k_t), keep = 1 - z, take = z (Feng et al. 2024, section 3.1). in_proj: k, v."""

    card = Card("recurrent", "expand d", "expand d", "expand d", "Feng et al. 2024")
    n_inputs = 2

    def _gates(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        (k,) = inputs
        return torch.sigmoid(-k), torch.sigmoid(k)


class MinLSTM(MinRecurrent):
    """f, i = sigmoid(k_t), sigmoid(l_t); keep = f / (f + i), take = i / (f + i) (section 3.2). in_proj: k, l, v."""

    card = Card("recurrent", "expand d", "expand d", "expand d", "Feng et al. 2024")
    n_inputs = 3

    def _gates(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        forget, insert = inputs
        log_ratio = F.logsigmoid(insert) - F.logsigmoid(forget)  # avoids a quotient of two gates that may both be 0
        return torch.sigmoid(-log_ratio), torch.sigmoid(log_ratio)
