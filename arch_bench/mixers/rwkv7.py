"""RWKV-7 "Goose" (Peng et al. 2025, arXiv:2503.14456): a generalised delta rule behind a shift by one token.

Legend: B batch, T positions, D d_model, H heads, K width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops
from arch_bench.mixers.sizes import head_width
from arch_bench.ops.chunks import wide
from arch_bench.ops.generalised_delta_rule import (
    Heads,
    Inputs,
    generalised_delta_rule,
    generalised_delta_rule_step,
    obstacles,
)

NORM_EPS = 1e-5  # times the width of a head
SLOWEST_LOG_DECAY = -math.exp(-0.5)  # the decay is at least exp(-0.61) (eq. 12)
DEPTH = (
    0.5  # of the layer, 0 first, 1 last: the authors' initialisation depends on it, and a mixer does not have its index
)
SHIFT_POWERS = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}


class RWKV7(Mixer):
    """The time mixing of figure 1 and section 4.1, without the value residual from the first layer to the others.

        x^j_t    = x_t + mu_j (x_{t-1} - x_t)   for j = r, w, k, v, a, g                                 (D,)
        r, k, v  = W_r x^r, W_k x^k, W_v x^v;   a = sigmoid(lora(x^a));   g = lora(x^g)                  (H, K)
        w        = exp(-e^(-1/2) sigmoid(lora(x^w)))                                                     (H, K)
        kappa    = k * xi, then of length 1;   k~ = k * (1 + (a - 1) * alpha)
        S_t      = diag(w) S_{t-1} - (a * kappa) (kappa^T S_{t-1}) + k~ v^T                              (K, K)
        output_t = W_o (g * (group_norm(S_t^T r) + (r^T (rho * k~)) v))

    A lora is a product of two thin matrices with tanh (w), sigmoid (g) or nothing between, and a bias but for g.

    State: S, D^2 / H numbers in float32, and the last token, D, whatever the length. A token costs 4 D^2 multiply-adds
    in the large projections and 4 D^2 / H in the state.

    Raises ValueError if `n_heads` does not divide `d_model`.
    """

    card = Card("linear attention", "d^2 / n_heads + d", "d^2 / n_heads", "d^2 / n_heads", "Peng et al. 2025")

    step_kernel = "eager"

    def __init__(self, *, d_model: int, n_heads: int, kernel: str) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, head_width(d_model, n_heads)
        self.shift = nn.Parameter(torch.empty(len(SHIFT_POWERS), d_model))
        self.r, self.k, self.v, self.out = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.w = _lora(d_model, 2.5, nn.Tanh())
        self.a = _lora(d_model, 2.5, nn.Identity())
        self.g = _lora(d_model, 5.0, nn.Sigmoid(), bias=False)
        self.xi, self.alpha, self.rho = (nn.Parameter(torch.empty(d_model)) for _ in range(3))
        self.norm = nn.GroupNorm(n_heads, d_model, eps=NORM_EPS * self.d_head)
        for parameter in (self.shift, self.xi, self.alpha, self.rho):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self._initialise(d_model)
        self.choose(kernel, obstacles(Heads(self.shift.device, self.cache_dtype(), n_heads, self.d_head)))

    @torch.no_grad()
    def _initialise(self, d_model: int) -> None:
        """Initialise as the authors do (BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py, generate_init_weight).

        But for `out`: their zeros would hide any error of the rest, so it is small and uniform instead.
        """
        place = torch.linspace(0, 1, d_model)
        within = torch.linspace(-1, 1, self.d_head).repeat(self.n_heads)
        zigzag = within * within.abs()
        for shift, power in zip(self.shift, SHIFT_POWERS.values(), strict=True):
            shift.copy_(1 - (torch.arange(d_model) / d_model) ** (power * (1 - DEPTH)))
        for projection, gain in ((self.r, 1.0), (self.k, 0.1), (self.v, 1.0)):
            nn.init.orthogonal_(projection.weight, gain=gain)
        self.out.weight.uniform_(-0.5 * d_model**-0.5, 0.5 * d_model**-0.5)
        self.norm.weight.fill_(DEPTH**0.7)
        self.w.get_parameter("2.bias").copy_(-5.5 + 6 * place ** (1 + DEPTH**0.3) + 2.5 * zigzag)
        self.a.get_parameter("2.bias").copy_(-0.19 + 0.3 * zigzag + 0.4 * (place - 0.5))
        self.xi.copy_(0.71 - 0.1 * (place - 0.5))
        self.alpha.fill_(1.02)
        self.rho.fill_(-0.04)

    def flops_per_token(self, seq_len: int) -> float:
        """Count the linear maps, and S^T kappa, b u^T, k v^T and S^T r: 8 H K^2."""
        weights = (module.weight for module in self.modules() if isinstance(module, nn.Linear))
        return count_flops(*weights) + 8 * self.n_heads * self.d_head**2

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (x_{t-1}, S): (B, D) and (B, H, K, K)."""
        weight = self.shift
        last = weight.new_zeros(batch_size, weight.shape[-1], dtype=self.cache_dtype())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return last, weight.new_zeros(batch_size, self.n_heads, self.d_head, self.d_head, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x)[0]

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, matrix = self._parallel(x)
        state[0].copy_(x[:, -1])
        state[1].copy_(matrix)
        return y, state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        before, matrix = state
        inputs, gate = self._inputs(x_t, before.to(x_t.dtype))
        o = generalised_delta_rule_step(inputs, matrix)
        return self._output(o, inputs, gate), (x_t.to(before.dtype), matrix)

    def _parallel(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the last S. x: (B, T, D)."""
        inputs, gate = self._inputs(x, F.pad(x[:, :-1], (0, 0, 1, 0)))
        heads_first = Inputs(*(each.transpose(1, 2) for each in inputs))
        o, last = generalised_delta_rule(heads_first, kernel=self.kernel)
        return self._output(o.transpose(1, 2), inputs, gate), last

    def _inputs(self, x: Tensor, before: Tensor) -> tuple[Inputs, Tensor]:
        """Return the recurrence's inputs, (..., H, K) each, and the gate (..., D). x, the tokens before: (..., D)."""
        step_back = before - x
        x_r, x_w, x_k, x_v, x_a, x_g = (x + step_back * shift for shift in self.shift)
        k, a = wide(self.k(x_k)), wide(self.a(x_a)).sigmoid()
        kappa = F.normalize(self._heads(k * self.xi), dim=-1)
        log_decay = SLOWEST_LOG_DECAY * wide(self.w(x_w)).sigmoid()
        written = k * (1 + (a - 1) * self.alpha)
        r, written, v, a, log_decay = (self._heads(y) for y in (self.r(x_r), written, self.v(x_v), a, log_decay))
        return Inputs(r, written, v, kappa, -a * kappa, log_decay), self.g(x_g)

    def _output(self, o: Tensor, inputs: Inputs, gate: Tensor) -> Tensor:
        """Map (..., H, K) to (..., D)."""
        normed = self.norm(wide(o).flatten(0, -3).flatten(1)).view(gate.shape)
        direct = (inputs.q * self._heads(self.rho) * inputs.k).sum(-1, keepdim=True) * inputs.v
        return self.out((normed + direct.flatten(-2)).to(gate.dtype) * gate)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1))


def _lora(d_model: int, factor: float, between: nn.Module, bias: bool = True) -> nn.Sequential:
    """Build two thin matrices, the first zero, the second orthogonal; rank as the authors', who do not decay them."""
    rank = max(32, 32 * round(factor * d_model**0.5 / 32))
    down, up = nn.Linear(d_model, rank, bias=False), nn.Linear(rank, d_model, bias=bias)
    nn.init.zeros_(down.weight)
    nn.init.orthogonal_(up.weight, gain=0.1 * max(1.0, (rank / d_model) ** 0.5))
    for linear in (down, up):
        linear.weight._no_weight_decay = True  # type: ignore[attr-defined]
    return nn.Sequential(down, between, up)
