"""Griffin's recurrent block: a gated linear recurrence whose decay depends on the token.

Legend: B batch, T positions, E hidden width = expand * d_model, H blocks of the gates, K their width = E / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, State
from arch_bench.mixers.convolved import ConvolvedMixer
from arch_bench.mixers.sizes import at_least, head_width
from arch_bench.ops.causal_conv import causal_conv_step
from arch_bench.ops.linear_recurrence import OBSTACLES, linear_recurrence

SHARPNESS = 8.0
"""Constant c of the paper."""
RADII = 0.9, 0.999
"""Range of the initial a = sigmoid(-decay), uniform in a^2."""
CONV_VARIANCE = 0.01
"""Variance of the convolution's initial output over that of its input."""


class RGLRU(ConvolvedMixer):
    """The real-gated linear recurrent unit in its block (De et al. 2024, arXiv:2402.19427, sections 2.3 and 2.4).

        u_t      = conv1d over the last d_conv of in_proj(x_t)                          (E,)
        r_t, i_t = sigmoid(W_r u_t + b_r), sigmoid(W_i u_t + b_i)                       block-diagonal, H blocks
        log a_t  = -8 softplus(decay) r_t
        h_t      = a_t h_{t-1} + sqrt(1 - a_t^2) i_t u_t,   at the first position h_0 = i_0 u_0
        output_t = out_proj(h_t * gelu(gate_proj(x_t))),    gelu by its tanh

    As in the authors' code (google-deepmind/recurrentgemma, layers.py and modules.py):

    - The first position enters whole. By the rule of the others it would enter at half that size (d_model=64).
    - a itself starts between 0.9 and 0.999, not a^8 as in the paper (section 2.4): under an open gate a state keeps
      0.43 to 0.992 of itself from token to token.
    - Maps start normal with fan_in^-1/2, biases at zero, the convolution at 0.17 of the size that PyTorch gives it.
      Theirs multiply out_proj by sqrt(2 / n_layers), which is 1 at two layers and is left out here.

    They cut the gradient of the square root at 1,000; here it is cut where it would be infinite.

    State: h, E numbers in float32, the last d_conv - 1 projections, and the position. Training costs
    O(T E (d_model + K)) and one scan, in parallel; a decoded token O(E (d_model + K)).

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
        a = torch.empty(width).uniform_(*(radius**2 for radius in RADII)).sqrt()
        self.decay = nn.Parameter(torch.log(torch.expm1(-a.log())))  # softplus of it: -log(a)
        self.out_proj = nn.Linear(width, d_model)
        self._initialise()
        for parameter in (self.decay, self.bias):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _initialise(self) -> None:
        for linear in (self.in_proj, self.gate_proj, self.out_proj):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        if self.conv1d is not None and self.conv1d.bias is not None:
            nn.init.normal_(self.conv1d.weight, std=(CONV_VARIANCE / self._n_taps()) ** 0.5)
            nn.init.zeros_(self.conv1d.bias)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (window, h, position)."""
        return *super().init_state(batch_size, max_len), torch.tensor(position, device=self.decay.device)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        *kept, position = state
        y, filled = super().prefill(x, tuple(kept))
        return y, (*filled, position + x.shape[1])

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        window, h, position = state
        u_t, (gate,) = self._project(x_t)
        if self.conv1d is not None:
            u_t, window = causal_conv_step(u_t, window, self.conv1d.weight, self.conv1d.bias)
        a, b = self._recurrence(u_t, position == 0)
        h = h.mul_(a).add_(b)
        return self.out_proj(h.to(gate.dtype) * gate), (window, h, position + 1)

    def flops_per_token(self, seq_len: int) -> float:
        """Count projections, convolution and gates."""
        return self._projection_flops() + 2 * (self.W_r.numel() + self.W_i.numel())

    def _activate(self, u: Tensor) -> Tensor:
        return u

    def _project(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.in_proj(x), (F.gelu(self.gate_proj(x), approximate="tanh"),)

    def _mix(self, u: Tensor, rest: tuple[Tensor, ...], state: Tensor | None) -> tuple[Tensor, Tensor]:
        is_first = torch.arange(u.shape[1], device=u.device)[:, None] == 0
        h = linear_recurrence(*self._recurrence(u, is_first), kernel=self.kernel)
        (gate,) = rest
        return self.out_proj(h.to(gate.dtype) * gate), h[:, -1].detach()

    def _recurrence(self, u: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a_t and the recurrence's input, (..., E) in float32 or wider. u: (..., E)."""
        r, i = (self._gate(u, weight, bias) for weight, bias in zip((self.W_r, self.W_i), self.bias, strict=True))
        log_a = -SHARPNESS * F.softplus(self.decay) * r
        taken = torch.sqrt((-torch.expm1(2 * log_a)).clamp(min=torch.finfo(log_a.dtype).tiny))
        return log_a.exp(), torch.where(is_first, 1, taken) * i * u.to(log_a.dtype)

    def _gate(self, u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply one block-diagonal map and its sigmoid, (..., E)."""
        blocks = u.reshape(-1, *weight.shape[:2]).transpose(0, 1)
        mapped = torch.bmm(blocks, weight).transpose(0, 1).reshape(u.shape)
        return torch.sigmoid(mapped.to(torch.promote_types(mapped.dtype, torch.float32)) + bias)
