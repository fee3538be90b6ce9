"""Mamba-3: a trapezoidal state space model whose state rotates by an angle from the token (Lahoti et al. 2026).

Legend: B batch, T positions, E d_inner = expand * d_model, H heads, P d_head = E / H, N d_state, R rotated pairs of N.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops
from arch_bench.mixers.mamba2 import inverse_softplus_of_steps
from arch_bench.mixers.sizes import at_least
from arch_bench.ops.chunks import wide
from arch_bench.ops.fused import TRIAL, missing, refusal
from arch_bench.ops.linear_attention import Heads, obstacles
from arch_bench.ops.trapezoid import Inputs, trapezoid, trapezoid_step

SLOWEST_DECAY = 1e-4  # the least rate
NORM_EPS = 1e-5
CHUNK = 64  # positions, of mamba-ssm's kernel


def heavy_tail(a: Tensor) -> Tensor:
    """Compute 1 + a above zero and 1 / (1 - a) below: positive, and smooth at zero."""
    return a.clamp(min=0) + 1 / (1 - a.clamp(max=0))


DECAYS: dict[str, Callable[[Tensor], Tensor]] = {"softplus": F.softplus, "heavy_tail": heavy_tail}


class Projected(NamedTuple):
    """Values that the token determines, of all positions or of one."""

    z: Tensor  # (..., H, P)
    x: Tensor  # (..., H, P)
    B: Tensor  # (..., N), normed
    C: Tensor  # (..., N), normed
    delta: Tensor  # (..., H)
    log_decay: Tensor  # (..., H)
    trap: Tensor  # (..., H), before its sigmoid
    angles: Tensor  # (..., R), before their tanh

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the weights of this token's B x^T and of the last one's."""
        share = wide(self.trap).sigmoid()
        return self.delta * share, self.delta * (1 - share)

    def turns(self) -> Tensor:
        """Return the angles by which the state turns: (..., H, R)."""
        return math.pi * wide(self.angles).tanh().unsqueeze(-2) * self.delta.unsqueeze(-1)


class Mamba3(Mixer):
    """Mamba-3 with one input and one output per head (SISO), arXiv:2603.15569; parameters as in `mamba_ssm.Mamba3`.

        z_t, x_t, B_t, C_t, dt_t, a_t, l_t, w_t = in_proj(input_t)              (E,) (E,) (N,) (N,) (H,) (H,) (H,) (R,)
        delta_t    = softplus(dt_t + dt_bias),  A_t = -decay(a_t),  lambda_t = sigmoid(l_t)                        (H,)
        theta_t    = theta_{t-1} + pi tanh(w_t) delta_t                                                          (H, R)
        B_t, C_t   = pairs of the first 2 R of rms_norm(B_t) + B_bias[h] turned by theta_t[h], and C_t likewise  (H, N)
        S_t        = exp(delta_t A_t) (S_{t-1} + delta_t (1 - lambda_t) B_{t-1} x_{t-1}^T) + delta_t lambda_t B_t x_t^T
        output_t   = out_proj((S_t^T C_t + D[h] x_t[h]) * silu(z_t))

    `decay` is softplus as in the paper and the last release of mamba_ssm, 2.3.2. Its repository has heavy_tail since:
    1 + a above zero and 1 / (1 - a) below, by which a state decays 1 / ln 2 = 1.44 times as fast where a is 0.

    R is half of rope_fraction d_state. There is no convolution: the two terms of a step do its work. The form with
    several inputs and outputs per head (MIMO) is left out.

    State: S (H, N, P) = E N numbers, the last B (H, N) and x (E,), and theta (H, R), in float32 but x, whatever the
    length. A token costs d_model (3 E + 2 N + 3 H + R) multiply-adds in projections and 2 E N in the state.

    `d_head` is 64 as published where it is `auto`, less where that does not divide the width. A pre-norm model starts
    as mamba_ssm's do: `Backbone._damp`.

    Raises ValueError if `d_head` does not divide expand * d_model, or nothing is left to rotate.
    """

    card = Card(
        "state space",
        "expand d (d_state + 1 + d_state (1 + rope_fraction / 2) / d_head)",
        "expand d d_state",
        "expand d d_state",
        "Lahoti et al. 2026",
    )
    step_kernel = "eager"
    damps_with_depth = True  # as `_init_weights` in mamba_ssm's mixer_seq_simple.py

    def __init__(
        self,
        *,
        d_model: int,
        d_state: int,
        d_head: int | Literal["auto"],
        expand: int,
        rope_fraction: float,
        decay: Literal["softplus", "heavy_tail"],
        kernel: str,
    ) -> None:
        super().__init__()
        at_least(1, expand=expand)
        if decay not in DECAYS:
            raise ValueError(f"decay={decay} is unknown here; choose from: {', '.join(DECAYS)}")
        self.decay = DECAYS[decay]
        d_inner = expand * d_model
        d_head = math.gcd(64, d_inner) if d_head == "auto" else d_head
        if d_head < 1 or d_inner % d_head:
            raise ValueError(f"d_head={d_head} must divide expand * d_model={d_inner}")
        n_pairs = int(d_state * rope_fraction) // 2
        if rope_fraction not in (0.5, 1.0) or n_pairs < 1:
            raise ValueError(f"rope_fraction={rope_fraction} must be 0.5 or 1.0 and leave d_state={d_state} a pair")
        n_heads = d_inner // d_head
        self.state_shape = (n_heads, d_state, d_head)
        self.widths = (d_inner, d_inner, d_state, d_state, n_heads, n_heads, n_heads, n_pairs)
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.dt_bias = nn.Parameter(inverse_softplus_of_steps(n_heads))
        self.B_bias, self.C_bias = (nn.Parameter(torch.ones(n_heads, 1, d_state)) for _ in "BC")
        self.B_norm, self.C_norm = (nn.RMSNorm(d_state, NORM_EPS) for _ in "BC")
        self.D = nn.Parameter(torch.ones(n_heads))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        for parameter in (self.dt_bias, self.B_bias, self.C_bias, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        heads = Heads(self.D.device, self.cache_dtype(), n_heads, d_state, d_head, "token")
        self.choose(kernel, {"mamba_ssm": _mamba_ssm_obstacle(heads, n_pairs), **obstacles(heads)})

    def flops_per_token(self, seq_len: int) -> float:
        """Count the projections, and B x^T and S^T C: 4 E N."""
        return count_flops(self.in_proj.weight, self.out_proj.weight) + 4 * math.prod(self.state_shape)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (S, the last B, the last x, theta): (B, H, N, P), (B, H, N), (B, H, P), (B, H, R)."""
        H, N, P = self.state_shape
        make = self.D.new_zeros
        dtype = torch.promote_types(self.D.dtype, torch.float32)
        S, B, theta = (make(batch_size, H, *size, dtype=dtype) for size in ((N, P), (N,), self.widths[-1:]))
        return S, B, make(batch_size, H, P, dtype=self.cache_dtype()), theta

    def forward(self, x: Tensor) -> Tensor:
        return self._all(x, with_state=False)[0]

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, found = self._all(x, with_state=True)
        for kept, new in zip(state, found, strict=True):
            kept.copy_(new)
        return y, state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        S, B, x, theta = state
        p = self._project(x_t)
        theta = (theta + p.turns()).remainder(2 * math.pi)
        q, k = _turned(p, *self._biases(), theta)
        o = trapezoid_step(Inputs(q, k, p.x, p.log_decay, *p.weights()), B, x, state=S)
        return self.out_proj(_gated(o, p, self.D).flatten(-2)), (S, k, p.x.to(x.dtype), theta)

    def _project(self, x: Tensor) -> Projected:
        z, x, B, C, dt, a, trap, angles = self.in_proj(x).split(self.widths, -1)
        z, x = (each.unflatten(-1, (self.state_shape[0], -1)) for each in (z, x))
        delta = F.softplus(wide(dt) + self.dt_bias)
        log_decay = delta * -self.decay(wide(a)).clamp(min=SLOWEST_DECAY)
        return Projected(z, x, self.B_norm(wide(B)), self.C_norm(wide(C)), delta, log_decay, trap, angles)

    def _biases(self) -> tuple[Tensor, Tensor]:
        """Return the biases of B and C, (H, N) each."""
        return self.B_bias.squeeze(1), self.C_bias.squeeze(1)

    def _all(self, x: Tensor, *, with_state: bool) -> tuple[Tensor, State]:
        p = self._project(x)
        if self.kernel == "mamba_ssm":
            y, state = _mamba_ssm(p, *self._biases(), self.D, with_state=with_state)
        else:
            y, state = _parallel(p, *self._biases(), self.D, kernel=self.kernel)
        return self.out_proj(y.flatten(-2).to(p.x.dtype)), state

    def bare(self) -> dict[str, Callable[[Tensor], Tensor]]:
        if find_spec("mamba_ssm") is None or not self.D.is_cuda:
            return {}
        _, d_state, d_head = self.state_shape
        layer: Callable[[Tensor], Tensor] = importlib.import_module("mamba_ssm").Mamba3(
            self.in_proj.in_features,
            d_state=d_state,
            expand=self.out_proj.in_features // self.in_proj.in_features,
            headdim=d_head,
            rope_fraction=1.0 if 4 * self.widths[-1] > d_state else 0.5,
            device=self.D.device,
        )
        return {"mamba_ssm.Mamba3": layer}


def _parallel(p: Projected, B_bias: Tensor, C_bias: Tensor, D: Tensor, *, kernel: str) -> tuple[Tensor, State]:
    """Return the gated S^T C (B, T, H, P), and the state after the last position."""
    # angles add up over the whole sequence: in float32 a late one would be off by their number of roundings
    theta = p.turns().cumsum(1, dtype=torch.float64).remainder(2 * math.pi).to(p.delta.dtype)
    q, k = _turned(p, B_bias, C_bias, theta)
    heads_first = (each.transpose(1, 2) for each in (q, k, p.x, p.log_decay, *p.weights()))
    o, last = trapezoid(Inputs(*heads_first), kernel=kernel)
    return _gated(o.transpose(1, 2), p, D), (last, k[:, -1], p.x[:, -1], theta[:, -1])


def _turned(p: Projected, B_bias: Tensor, C_bias: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate C and B of each head (..., H, N)."""
    q, k = (_rotated(wide(each).unsqueeze(-2) + bias, theta) for each, bias in ((p.C, C_bias), (p.B, B_bias)))
    return q, k


def _gated(o: Tensor, p: Projected, D: Tensor) -> Tensor:
    """Apply the gate: (..., H, P)."""
    return (wide(o) + D[:, None] * p.x) * F.silu(wide(p.z))


def _rotated(x: Tensor, theta: Tensor) -> Tensor:
    """Rotate the first pairs of neighbours by theta (..., R); the rest is unchanged. x: (..., N)."""
    R = theta.shape[-1]
    first, second = x[..., : 2 * R].unflatten(-1, (R, 2)).unbind(-1)
    cos, sin = theta.cos(), theta.sin()
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), -1)
    return torch.cat((turned.flatten(-2), x[..., 2 * R :]), -1)


@torch.compiler.disable
def _mamba_ssm(
    p: Projected, B_bias: Tensor, C_bias: Tensor, D: Tensor, *, with_state: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run mamba-ssm's kernels in Triton: S^T C, D and the gate, in bf16, and if requested the state."""
    scan = importlib.import_module("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined").mamba3_siso_combined
    angles = wide(p.angles).unsqueeze(2).expand(-1, -1, p.x.shape[2], -1)
    over_time = (each.mT.contiguous() for each in (p.log_decay, p.delta, p.trap))
    found = scan(
        *(each.unsqueeze(2) for each in (p.C, p.B)),
        p.x,
        *over_time,
        C_bias,
        B_bias,
        angles,
        D=D,
        Z=p.z,
        chunk_size=CHUNK,
        return_final_states=with_state,
    )
    if not with_state:
        return found, ()
    y, theta, S, B, x = found
    return y, (S.mT.detach(), B, x, theta)


@cache
def _mamba_ssm_obstacle(heads: Heads, n_pairs: int) -> str | None:
    """Return why the kernel cannot run, by trial on CUDA, once per process."""
    if obstacle := missing(heads.device, "mamba_ssm"):
        return obstacle
    if heads.dtype != torch.bfloat16:
        return "mamba-ssm computes this in bf16 only; use kernel=fla or chunked, or precision=bf16"
    H, N, P = heads.n_heads, heads.d_key, heads.d_value
    if N & (N - 1) or P & (P - 1) or n_pairs % 2:
        return f"mamba-ssm takes powers of two and an even number of rotated pairs, not d_state={N}, d_head={P}"
    make = torch.ones((*TRIAL, 1), device=heads.device)
    x, B, delta = make.expand(-1, -1, H * P).unflatten(-1, (H, P)), make.expand(-1, -1, N), make.expand(-1, -1, H) / 10
    biases = torch.ones(2, H, N, device=heads.device)

    D = torch.ones(H, device=heads.device)

    def projected(x: Tensor, B: Tensor, delta: Tensor) -> Projected:
        return Projected(x, x, B, B, delta, -delta, delta, B[..., :n_pairs])

    def run(x: Tensor, B: Tensor, delta: Tensor, biases: Tensor) -> Tensor:
        return _mamba_ssm(projected(x, B, delta), *biases, D, with_state=False)[0]

    def truth(x: Tensor, B: Tensor, delta: Tensor, biases: Tensor) -> Tensor:
        return _parallel(projected(x, B, delta), biases[0], biases[1], D, kernel="chunked")[0]

    inputs = (x.to(heads.dtype), B.to(heads.dtype), delta, biases)
    return refusal("mamba_ssm", run, inputs, ("mamba3", heads, n_pairs), truth=truth)
