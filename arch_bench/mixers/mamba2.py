"""Mamba-2: a state space model whose decay is one number per head, so that it is linear attention (Dao & Gu 2024).

Legend: B batch, T positions, E d_inner = expand * d_model, H heads, P d_head = E / H, N d_state, K d_conv.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card
from arch_bench.mixers.convolved import ConvolvedMixer
from arch_bench.mixers.sizes import at_least
from arch_bench.ops.chunks import wide
from arch_bench.ops.fused import TRIAL, cast, missing, refusal
from arch_bench.ops.linear_attention import Heads, linear_attention, linear_attention_step, obstacles

A_RANGE = (1.0, 16.0)  # decay rates at initialisation (mamba_ssm 2.3)
DT_RANGE = (1e-3, 1e-1)  # step sizes at initialisation
DT_FLOOR = 1e-4
NORM_EPS = 1e-5
CHUNK = 256  # positions, of mamba-ssm's kernel


class Mamba2(ConvolvedMixer):
    """The block of figure 6, right, arXiv:2405.21060, with SSD inside; parameters as in `mamba_ssm.Mamba2`, ngroups 1.

        z_t, xBC_t, dt_t     = in_proj(input_t)                                     (E,) (E + 2 N,) (H,)
        x_t, B_t, C_t        = silu(conv1d over xBC_{t-K+1..t})                     (H, P) (N,) (N,)
        delta_t              = softplus(dt_t + dt_bias)                             (H,)
        S_t[h]               = exp(delta_t[h] A[h]) S_{t-1}[h] + B_t (delta_t[h] x_t[h])^T,   A = -exp(A_log)    (N, P)
        y_t[h]               = S_t[h]^T C_t + D[h] x_t[h]
        output_t             = out_proj(rms_norm(y_t * silu(z_t)))

    State: the last K-1 xBC (K-1, E + 2 N) and S (H, N, P) = E N numbers in float32, whatever the length. A token costs
    d_model (3 E + 2 N + H) + K (E + 2 N) multiply-adds in projections and convolution and 2 E N in the state.

    `d_head` is 64 as published where it is `auto`, less where that does not divide the width. A pre-norm model starts
    as mamba_ssm's do: `Backbone._damp`.

    Raises ValueError if `d_head` does not divide expand * d_model.
    """

    card = Card(
        "state space",
        "expand d d_state + (d_conv - 1) (expand d + 2 d_state)",
        "expand d d_state",
        "expand d d_state",
        "Dao & Gu 2024",
    )
    damps_with_depth = True  # as `_init_weights` in mamba_ssm's mixer_seq_simple.py

    def __init__(
        self, *, d_model: int, d_state: int, d_head: int | Literal["auto"], d_conv: int, expand: int, kernel: str
    ) -> None:
        super().__init__()
        at_least(1, d_state=d_state, expand=expand)
        d_inner = expand * d_model
        d_head = math.gcd(64, d_inner) if d_head == "auto" else d_head
        if d_head < 1 or d_inner % d_head:
            raise ValueError(f"d_head={d_head} must divide expand * d_model={d_inner}")
        n_heads = d_inner // d_head
        self.state_shape = (n_heads, d_state, d_head)
        self.in_proj = nn.Linear(d_model, 2 * d_inner + 2 * d_state + n_heads, bias=False)
        self._build_conv(d_inner + 2 * d_state, d_conv, bias=True)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(*A_RANGE).log())
        self.D = nn.Parameter(torch.ones(n_heads))
        self.dt_bias = nn.Parameter(inverse_softplus_of_steps(n_heads))
        self.norm = nn.RMSNorm(d_inner, NORM_EPS)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        for parameter in (self.A_log, self.D, self.dt_bias):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        heads = Heads(self.D.device, self.cache_dtype(), n_heads, d_state, d_head, "token")
        self.choose(kernel, {"mamba_ssm": _mamba_ssm_obstacle(heads), **obstacles(heads)})

    def flops_per_token(self, seq_len: int) -> float:
        """Count the projections, the convolution, and B x^T and S^T C: 4 E N."""
        return self._projection_flops() + 4 * math.prod(self.state_shape)

    def _project(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        z, xBC, dt = self.in_proj(x).split((self.norm.weight.numel(), self.n_channels, self.state_shape[0]), -1)
        return xBC, (z, dt)

    def _mix(self, u: Tensor, rest: tuple[Tensor, ...], state: Tensor | None) -> tuple[Tensor, Tensor]:
        z, dt = rest
        H, N, P = self.state_shape
        x, B, C = u.split((H * P, N, N), -1)
        x = x.unflatten(-1, (H, P))
        y, last = self._scan(x, F.softplus(wide(dt) + self.dt_bias), B, C, state)
        y = (y + self.D[:, None] * x).flatten(-2) * F.silu(wide(z))
        return self.out_proj(self.norm(y)), last

    def _scan(self, x: Tensor, delta: Tensor, B: Tensor, C: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return S^T C of all positions or of one, and the last S. x: (..., H, P), delta: (..., H), B, C: (..., N)."""
        A = -torch.exp(wide(self.A_log))
        if state is None:
            return _scanned(x, delta, A, B, C, kernel=self.kernel)
        values = delta.unsqueeze(-1) * x
        return linear_attention_step(C.unsqueeze(1), B.unsqueeze(1), values, delta * A, state=state), state

    def bare(self) -> dict[str, Callable[[Tensor], Tensor]]:
        if find_spec("mamba_ssm") is None or not self.D.is_cuda:
            return {}
        _, d_state, d_head = self.state_shape
        layer: Callable[[Tensor], Tensor] = importlib.import_module("mamba_ssm").Mamba2(
            self.in_proj.in_features,
            d_state=d_state,
            d_conv=self._n_taps(),
            expand=self.norm.weight.numel() // self.in_proj.in_features,
            headdim=d_head,
            use_mem_eff_path=find_spec("causal_conv1d") is not None,  # which it calls without looking
            device=self.D.device,
        )
        return {"mamba_ssm.Mamba2": layer}


def inverse_softplus_of_steps(n: int) -> Tensor:
    """Return biases whose softplus, the step size, is log-uniform in DT_RANGE."""
    low, high = (math.log(limit) for limit in DT_RANGE)
    dt = torch.empty(n).uniform_(low, high).exp().clamp(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))


def _scanned(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, kernel: str) -> tuple[Tensor, Tensor]:
    """Compute S^T C and the last S. x: (B, T, H, P), delta: (B, T, H), A: (H,), B and C: (B, T, N)."""
    if kernel == "mamba_ssm":
        return _mamba_ssm(x, delta, A, B, C)
    values, log_decay = (delta.unsqueeze(-1) * x).transpose(1, 2), (delta * A).transpose(1, 2)
    y, last = linear_attention(C.unsqueeze(1), B.unsqueeze(1), values, log_decay, kernel=kernel)
    return y.transpose(1, 2), last


@torch.compiler.disable
def _mamba_ssm(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Run mamba-ssm's kernels in Triton. x: (B, T, H, P), delta: (B, T, H), B and C: (B, T, N)."""
    scan = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    B, C = (cast(each).unsqueeze(2).contiguous() for each in (B, C))
    y, last = scan(cast(x).contiguous(), delta.contiguous(), A, B, C, chunk_size=CHUNK, return_final_states=True)
    return y, wide(last).mT.detach()


@cache
def _mamba_ssm_obstacle(heads: Heads) -> str | None:
    """Return why the kernel cannot run, by trial on CUDA, once per process."""
    if obstacle := missing(heads.device, "mamba_ssm"):
        return obstacle
    (batch, T), H = TRIAL, heads.n_heads
    x = torch.ones(batch, T, H, heads.d_value, device=heads.device, dtype=heads.dtype)
    B = torch.ones(batch, T, heads.d_key, device=heads.device, dtype=heads.dtype)
    delta = torch.full((batch, T, H), 0.1, device=heads.device)

    def by(kernel: str) -> Callable[..., Tensor]:
        return lambda *inputs: _scanned(*inputs, kernel=kernel)[0]

    inputs = (x, delta, -delta[0, 0], B, B)
    return refusal("mamba_ssm", by("mamba_ssm"), inputs, ("mamba2", heads), truth=by("chunked"))
