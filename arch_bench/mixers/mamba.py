"""Mamba: a selective state space model with a short convolution and a gate (Gu & Dao 2023, arXiv:2312.00752).

Legend: B batch, L seq_len, E d_inner = expand * d_model, N d_state, K d_conv, R dt_rank.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops
from arch_bench.mixers.sizes import at_least
from arch_bench.ops.causal_conv import causal_conv, causal_conv_step, causal_window
from arch_bench.ops.selective_scan import ScanInputs, obstacles, selective_scan, selective_scan_step

DT_RANGE = (1e-3, 1e-1)  # step sizes at initialisation (section 3.6)
DT_FLOOR = 1e-4


class Mamba(Mixer):
    """The block of figure 3, with S6 (Algorithm 2) inside; parameters named and shaped as in `mamba_ssm.Mamba`.

        x_t, z_t         = in_proj(input_t)                                         (E,) each
        u_t              = silu(conv1d over x_{t-K+1..t})
        dt_t, B_t, C_t   = x_proj(u_t)                                              (R,) (N,) (N,)
        delta_t          = softplus(dt_proj(dt_t))                                  (E,)
        h_t[e, n]        = exp(delta_t[e] A[e, n]) h_{t-1}[e, n] + delta_t[e] B_t[n] u_t[e],   A = -exp(A_log)
        y_t[e]           = sum_n C_t[n] h_t[e, n] + D[e] u_t[e]
        output_t         = out_proj(y_t * silu(z_t))

    State: the last K-1 x (K-1, E) and h (E, N) in float32, whatever the length. A token costs
    E (3 d_model + 2 R + 2 N + K) multiply-adds in projections and convolution and about 4 E N with E N exponentials in
    the scan, in training as in decoding; a decoded token moves all parameters and the state through memory once.

    A pre-norm model with Mamba in it starts as mamba_ssm's do: `Backbone._damp`.
    """

    card = Card(
        "state space", "expand d (d_state + d_conv - 1)", "expand d d_state", "expand d d_state", "Gu & Dao 2023"
    )
    step_kernel = "eager"
    damps_with_depth = True  # as `_init_weights` in mamba_ssm's mixer_seq_simple.py

    def __init__(
        self,
        *,
        d_model: int,
        d_state: int,
        d_conv: int,
        expand: int,
        dt_rank: int | Literal["auto"],
        kernel: str,
    ) -> None:
        super().__init__()
        at_least(1, d_state=d_state, d_conv=d_conv, expand=expand)
        self.choose(kernel, obstacles(torch.get_default_device(), d_state))
        self.d_state, self.d_conv, self.d_inner = d_state, d_conv, expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        at_least(1, dt_rank=self.dt_rank)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.d_inner, 1))  # S4D-Real
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self._init_steps()

    def _init_steps(self) -> None:
        """Initialise softplus(dt_proj.bias) log-uniform in DT_RANGE; the weight keeps the variance of its input."""
        low, high = (math.log(limit) for limit in DT_RANGE)
        dt = torch.empty(self.d_inner).uniform_(low, high).exp().clamp(min=DT_FLOOR)
        inverse_softplus = dt + torch.log(-torch.expm1(-dt))
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
            self.dt_proj.bias.copy_(inverse_softplus)
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x)[0]

    def flops_per_token(self, seq_len: int) -> float:
        """Count 2 E (3 d_model + 2 R + 2 N + K): the projections and the convolution, without the scan."""
        projections = (self.in_proj, self.x_proj, self.dt_proj, self.out_proj)
        return count_flops(*(projection.weight for projection in projections), self.conv1d.weight)

    def elementwise_flops_per_token(self, seq_len: int) -> float:
        """Count the scan: 9 E N as its author counts a parallel one (state-spaces/mamba issue 110); 7 E N stepwise."""
        return 9 * self.A_log.numel()

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        weight = self.A_log
        window = weight.new_zeros(batch_size, self.d_conv - 1, self.d_inner, dtype=self.cache_dtype())
        h = weight.new_zeros(
            batch_size, self.d_inner, self.d_state, dtype=torch.promote_types(weight.dtype, torch.float32)
        )
        return window, h

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, conv_input, last = self._parallel(x)
        window, h = state
        window.copy_(causal_window(conv_input, self.d_conv))
        h.copy_(last)
        return y, state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        window, h = state
        x_t, z_t = self._project(x_t, self.in_proj.weight).chunk(2, -1)
        u_t, window = causal_conv_step(x_t, window, self.conv1d.weight, self.conv1d.bias)
        y_t = selective_scan_step(self._select(F.silu(u_t), z_t), h)
        return self.out_proj(y_t), (window, h)

    def _parallel(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, convolution input and last h. x: (B, L, d_model)."""
        x, z = (self._project(x, half) for half in self.in_proj.weight.chunk(2))  # no joining of their gradients
        u = F.silu(causal_conv(x, self.conv1d.weight, self.conv1d.bias))
        y, h = selective_scan(self._select(u, z), kernel=self.kernel)
        return self.out_proj(y), x, h

    def bare(self) -> dict[str, Callable[[Tensor], Tensor]]:
        if find_spec("mamba_ssm") is None or not self.A_log.is_cuda:
            return {}
        module = importlib.import_module("mamba_ssm")
        layer: Callable[[Tensor], Tensor] = module.Mamba(
            self.out_proj.out_features,
            d_state=self.d_state,
            d_conv=self.d_conv,
            expand=self.d_inner // self.out_proj.out_features,
            dt_rank=self.dt_rank,
            device=self.A_log.device,
        )
        return {"mamba_ssm.Mamba": layer}

    def _select(self, u: Tensor, z: Tensor) -> ScanInputs:
        """Compute the scan's inputs, with step size, B and C selected by the input. u, z: (..., E)."""
        dt, B, C = self.x_proj(u).split((self.dt_rank, self.d_state, self.d_state), -1)
        delta = self._project(dt, self.dt_proj.weight)
        return ScanInputs(u, delta, -torch.exp(self.A_log), B, C, self.D, z, self.dt_proj.bias)

    def _project(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute x @ weight.T, contiguous over L for the fused kernel, which reads along time, else over channels."""
        if self.kernel != "mamba_ssm" or x.ndim == 2:
            return F.linear(x, weight)
        return (weight @ x.flatten(0, 1).mT).unflatten(1, x.shape[:2]).permute(1, 2, 0)
