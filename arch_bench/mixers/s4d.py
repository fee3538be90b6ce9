"""S4D: a linear time-invariant state space model with a diagonal state matrix (Gu et al. 2022, arXiv:2206.11893).

Legend: B batch, T positions, D d_model, N complex states per channel = d_state / 2, C positions per chunk.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops
from arch_bench.ops.long_convolution import long_convolution

DT_RANGE = (1e-3, 1e-1)  # step sizes at initialisation (section 4.1)


class Dynamics(NamedTuple):
    """One step of every channel's states: h_t = exp(log_decay) h_{t-1} + u_t, y_t = Re sum_n weight h_t."""

    log_decay: Tensor  # (D, N) complex
    weight: Tensor  # (D, N) complex


class S4D(Mixer):
    """The layer of the authors' `s4d.py`: each channel is filtered by a state space model of its own.

        h_t[d, n] = exp(dt[d] A[d, n]) h_{t-1}[d, n] + (exp(dt[d] A[d, n]) - 1) / A[d, n] u_t[d]     (zero-order hold)
        y_t[d]    = 2 Re sum_n C[d, n] h_t[d, n] + D[d] u_t[d]
        output_t  = a * sigmoid(b),   a, b = out(gelu(y_t))

    A = -exp(log_A_real) + i A_imag starts as -1/2 + i pi n (S4D-Lin, equation 9); B is 1, C complex normal, dt
    log-uniform in DT_RANGE. Each state stands for itself and its conjugate, hence the 2 Re. As nothing in the
    recurrence depends on the input, it is a convolution with its response to one impulse.

    State: h (D, N, 2) in float32, d_model d_state numbers, whatever the length. Training costs O(T log T d_model) for
    the convolution, O(T d_model d_state) for the impulse response that a batch shares, and 4 T d_model^2
    multiply-adds in `out`; a decoded token O(d_model d_state + d_model^2).

    Raises ValueError if `d_state` is not even.
    """

    card = Card("state space", "d d_state", "d log T", "d d_state", "Gu et al. 2022")
    step_kernel = "eager"

    def __init__(self, *, d_model: int, d_state: int, kernel: str) -> None:
        super().__init__()
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state={d_state} must be even and at least 2: states come in conjugate pairs")
        self.choose(kernel, {"fft": None, "reference": None})
        low, high = (math.log(limit) for limit in DT_RANGE)
        shape = (d_model, d_state // 2)
        self.log_dt = nn.Parameter(torch.empty(d_model).uniform_(low, high))
        self.log_A_real = nn.Parameter(torch.full(shape, 0.5).log())
        self.A_imag = nn.Parameter(math.pi * torch.arange(d_state // 2).expand(shape).clone())
        self.C = nn.Parameter(torch.randn(*shape, 2) * 0.5**0.5)  # of variance 1 as a complex number
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = nn.Linear(d_model, 2 * d_model)
        for parameter in (self.log_dt, self.log_A_real, self.A_imag, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def _dynamics(self) -> Dynamics:
        """Discretise in float32 or wider. (exp(dt A) - 1) / A acts on the output instead: a state is linear in it."""
        parameters = (self.log_dt, self.log_A_real, self.A_imag, self.C)
        log_dt, log_A_real, A_imag, C = (p.to(torch.promote_types(p.dtype, torch.float32)) for p in parameters)
        A = torch.complex(-log_A_real.exp(), A_imag)
        log_decay = log_dt.exp().unsqueeze(-1) * A
        return Dynamics(log_decay, 2 * torch.view_as_complex(C) * (log_decay.exp() - 1) / A)

    @torch.compiler.disable  # a compiler gains nothing on complex numbers
    def _filter(self, x: Tensor, state: State | None = None) -> Tensor:
        """Compute y (B, T, D), in float32 or wider; fills a state with the last h."""
        with torch.autocast(x.device.type, enabled=False):
            u = x.to(torch.promote_types(x.dtype, torch.float32))
            dynamics = self._dynamics()
            if self.kernel == "reference":
                y, h = _recurrence(u, dynamics)
            else:
                y = long_convolution(u, _impulse_response(dynamics, u.shape[1]), kernel="fft")
                h = _last_state(u, dynamics) if state is not None else u
            if state is not None:
                state[0].copy_(torch.view_as_real(h))
            return y + self.D * u

    def _mix(self, y: Tensor) -> Tensor:
        return F.glu(self.out(F.gelu(y)), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(self._filter(x))

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._mix(self._filter(x, state)), state

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return h (B, D, N, 2): real and imaginary part."""
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        return (self.C.new_zeros(batch_size, *self.C.shape, dtype=dtype),)

    @torch.compiler.disable
    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        with torch.autocast(x_t.device.type, enabled=False):
            u_t = x_t.to(state[0].dtype)
            log_decay, weight = self._dynamics()
            h = torch.view_as_complex(state[0])
            h.mul_(log_decay.exp()).add_(u_t.unsqueeze(-1))
            y_t = (weight * h).sum(-1).real + self.D * u_t
        return self._mix(y_t), state

    def flops_per_token(self, seq_len: int) -> float:
        """Count `out`: 4 d_model^2."""
        return count_flops(self.out.weight)

    def elementwise_flops_per_token(self, seq_len: int) -> float:
        """Count the recurrence, 12 d_model N: a complex product (6) and u (2), a real part of one and its sum (4)."""
        return 12 * self.log_A_real.numel()


def _recurrence(u: Tensor, dynamics: Dynamics) -> tuple[Tensor, Tensor]:
    """Compute y (B, T, D) and the last h, one step after the other."""
    decay = dynamics.log_decay.exp()
    h = torch.zeros_like(decay).expand(len(u), *decay.shape)
    ys = []
    for u_t in u.unbind(1):
        h = decay * h + u_t.unsqueeze(-1)
        ys.append((dynamics.weight * h).sum(-1).real)
    return torch.stack(ys, 1), h


def _impulse_response(dynamics: Dynamics, length: int) -> Tensor:
    """Compute Re sum_n weight exp(t log_decay), (D, T): per channel a matrix product of C rows and T / C columns.

    exp((c C + j) log_decay) = exp(c C log_decay) exp(j log_decay): with C = sqrt(T) nothing is as large as (T, D, N).
    """
    n_chunk = _chunk(length)
    starts = dynamics.weight.unsqueeze(-1) * _powers(dynamics, -(-length // n_chunk), n_chunk)  # (D, N, T / C)
    within = _powers(dynamics, n_chunk)  # (D, N, C)
    taps = _real_parts(starts, conjugate=False).mT @ _real_parts(within, conjugate=True)  # (D, T / C, C)
    return taps.flatten(1)[:, :length]


def _last_state(u: Tensor, dynamics: Dynamics) -> Tensor:
    """Compute sum_t exp((T - 1 - t) log_decay) u_t, (B, D, N) complex: within chunks, then over chunks."""
    n_chunk = _chunk(u.shape[1])
    padding = -u.shape[1] % n_chunk
    chunks = F.pad(u, (0, 0, padding, 0)).unflatten(1, (-1, n_chunk))  # (B, T / C, C, D), ends with the end
    within = torch.view_as_real(_powers(dynamics, n_chunk).flip(-1))
    ends = torch.view_as_complex(torch.einsum("bkcd,dncr->bkdnr", chunks, within).contiguous())
    return torch.einsum("bkdn,dnk->bdn", ends, _powers(dynamics, chunks.shape[1], n_chunk).flip(-1))


def _chunk(length: int) -> int:
    return max(1, math.isqrt(length))


def _powers(dynamics: Dynamics, n: int, stride: int = 1) -> Tensor:
    """Compute exp(k stride log_decay) for k < n: (D, N, n) complex."""
    exponents = stride * torch.arange(n, device=dynamics.log_decay.device)
    return (dynamics.log_decay.unsqueeze(-1) * exponents).exp()


def _real_parts(z: Tensor, *, conjugate: bool) -> Tensor:
    """Return (D, 2 N, n): a product with a conjugate one over 2 N is the real part of the complex product."""
    return torch.cat((z.real, -z.imag if conjugate else z.imag), 1)
