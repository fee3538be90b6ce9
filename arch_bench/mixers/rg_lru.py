"""Griffin's recurrent block: a gated linear recurrence whose decay the token turns on and off.

Legend: B batch, T positions, E hidden width = expand * d_model, H blocks of the gates, K their width = E / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card
from arch_bench.mixers.convolved import ConvolvedMixer
from arch_bench.mixers.sizes import at_least, head_width
from arch_bench.ops.linear_recurrence import OBSTACLES, linear_recurrence

SHARPNESS = 8.0
"""The paper's c."""
KEPT = 0.9, 0.999
"""What a state keeps of itself under an open gate, at initialisation (section 2.4)."""


class RGLRU(ConvolvedMixer):
    """The real-gated linear recurrent unit in its block (De et al. 2024, arXiv:2402.19427, sections 2.3 and 2.4).

        u_t      = conv1d over the last d_conv of in_proj(x_t)                          (E,)
        r_t, i_t = sigmoid(W_r u_t + b_r), sigmoid(W_i u_t + b_i)                       block-diagonal, H blocks
        log a_t  = -8 softplus(decay) r_t
        h_t      = a_t h_{t-1} + sqrt(1 - a_t^2) i_t u_t
        output_t = out_proj(h_t * gelu(gate_proj(x_t)))

    State: h, E numbers in float32, and the last d_conv - 1 projections. Training costs O(T E (d_model + K)) and one
    scan, in parallel; a decoded token O(E (d_model + K)).

    Raises ValueError if `n_heads` does not divide expand * d_model.
    """

    card = Card("recurrent", "expand d d_conv", "expand d", "expand d", "De et al. 2024")

    def __init__(self, *, d_model: int, n_heads: int, d_conv: int, expand: int, kernel: str) -> None:
        super().__init__()
        at_least(1, expand=expand)
        width = expand * d_model
        d_head = head_width(width, n_heads, "expand * d_model")
        self.choose(kernel, OBSTACLES)
        self.state_shape = (width,)
        self.in_proj, self.gate_proj = (nn.Linear(d_model, width) for _ in range(2))
        self._build_conv(width, d_conv, bias=True)
        self.W_r, self.W_i = (nn.Parameter(torch.randn(n_heads, d_head, d_head) * d_head**-0.5) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(2, width))
        kept = torch.empty(width).uniform_(*KEPT)
        self.decay = nn.Parameter(torch.log(torch.expm1(-kept.log() / SHARPNESS)))  # softplus of it: -log(kept) / c
        self.out_proj = nn.Linear(width, d_model)
        for parameter in (self.decay, self.bias):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def flops_per_token(self, seq_len: int) -> float:
        """Projections, convolution and gates."""
        return self._projection_flops() + 2 * (self.W_r.numel() + self.W_i.numel())

    def _activate(self, u: Tensor) -> Tensor:
        return u

    def _project(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.in_proj(x), (F.gelu(self.gate_proj(x)),)

    def _mix(self, u: Tensor, rest: tuple[Tensor, ...], state: Tensor | None) -> tuple[Tensor, Tensor]:
        a, b = self._recurrence(u)
        if state is None:
            h = linear_recurrence(a, b, kernel=self.kernel)
            last = h[:, -1].detach()
        else:
            h = last = state.mul_(a).add_(b)
        (gate,) = rest
        return self.out_proj(h.to(gate.dtype) * gate), last

    def _recurrence(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and what comes in, (..., E) in float32 or wider. u: (..., E)."""
        r, i = (self._gate(u, weight, bias) for weight, bias in zip((self.W_r, self.W_i), self.bias, strict=True))
        log_a = -SHARPNESS * F.softplus(self.decay) * r
        taken = torch.sqrt((-torch.expm1(2 * log_a)).clamp(min=torch.finfo(log_a.dtype).tiny))
        return log_a.exp(), taken * i * u.to(log_a.dtype)

    def _gate(self, u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """One block-diagonal map and its sigmoid, (..., E)."""
        blocks = u.reshape(-1, *weight.shape[:2]).transpose(0, 1)
        mapped = torch.bmm(blocks, weight).transpose(0, 1).reshape(u.shape)
        return torch.sigmoid(mapped.to(torch.promote_types(mapped.dtype, torch.float32)) + bias)
