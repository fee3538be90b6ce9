"""Linear attention whose state decays, with a gate on its output: RetNet, GLA.

Legend: B batch, T positions, H heads, K and V widths of a head's key and value.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State
from arch_bench.mixers.linear_attention import Inputs, LinearMixer
from arch_bench.mixers.sizes import at_least, head_width
from arch_bench.ops.chunks import wide
from arch_bench.ops.linear_attention import Decay
from arch_bench.positions import first_waves, rotate, waves

GAIN = 2**-2.5  # of Xavier's initialisation, where the authors' code has it: by class below
OUT_GAIN = 2**-1  # of RetNet's last projection


class GatedLinearMixer(LinearMixer):
    """output_t = out(norm(o_t) * silu(gate(x_t))), the norm over each head by itself."""

    norm: nn.Module

    def _build(self, d_model: int, n_heads: int, d_key: int, d_value: int) -> None:
        self._widths = (n_heads * d_key, n_heads * d_key, n_heads * d_value)
        self.qkv = nn.Linear(d_model, sum(self._widths), bias=False)
        self.gate = nn.Linear(d_model, n_heads * d_value, bias=False)
        self.out = nn.Linear(n_heads * d_value, d_model, bias=False)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project to (..., H, K) twice and (..., H, V); keys are scaled by K^-1/2."""
        q, k, v = (each.unflatten(-1, (self.n_heads, -1)) for each in self.qkv(x).split(self._widths, -1))
        return q, k * self.d_key**-0.5, v

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        return self.out(self.norm(wide(o)).flatten(-2).to(x.dtype) * F.silu(self.gate(x)))


class RetNet(GatedLinearMixer):
    """Multi-scale retention: rotated queries and keys, and a fixed decay per head (Sun et al. 2023, eq. 6-8).

        S_t = gamma_h S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t,   gamma_h = 1 - 2^(-5-h), h = 0 ... H-1
        output_t = out(rms_norm(o_t) * silu(gate(x_t))), the norm over each head by itself, without weights

    State: S, d_model expand d_model / H numbers in float32, and the position, whatever the length. A token costs
    (2 + 3 expand) d_model^2 multiply-adds in projections and 2 expand d_model^2 / H in the state.

    As in the authors' code (microsoft/torchscale, multiscale_retention.py), all projections start by Xavier's rule with
    GAIN, the last with OUT_GAIN, and the norm does not centre, where the paper has a group norm. Theirs also divides
    the scores of a query by their sum, where it is above 1, for the range of fp16: the norm takes that back.

    Raises ValueError if `n_heads` does not divide `d_model`, or leaves the rotation an odd width.
    """

    card = Card("linear attention", "expand d^2 / n_heads", "as state", "as state", "Sun et al. 2023")

    decay: ClassVar[Decay] = "head"
    NORM_EPS: ClassVar[float] = 1e-6

    def __init__(self, *, d_model: int, n_heads: int, expand: int, kernel: str) -> None:
        Mixer.__init__(self)
        d_head = head_width(d_model, n_heads)
        if d_head % 2:
            raise ValueError(f"n_heads={n_heads} leaves d_head={d_head} of d_model={d_model}; a rotation needs it even")
        at_least(1, expand=expand)
        self._build(d_model, n_heads, d_head, expand * d_head)
        for weight in (*self.qkv.weight.split(self._widths), self.gate.weight):
            nn.init.xavier_uniform_(weight, gain=GAIN)
        nn.init.xavier_uniform_(self.out.weight, gain=OUT_GAIN)
        self.norm = nn.RMSNorm(expand * d_head, self.NORM_EPS, elementwise_affine=False)
        self.register_buffer("log_decay", torch.log1p(-(2.0 ** (-5.0 - torch.arange(n_heads)))), persistent=False)
        self.log_decay: Tensor
        self._decide(kernel, n_heads, d_head, expand * d_head)

    def _inputs(self, x: Tensor, *extra: Tensor) -> Inputs:
        q, k, v = self._qkv(x)
        if extra:
            sines = waves(extra[0][None], self.d_key)
            return Inputs(rotate(q, sines), rotate(k, sines), v, self.log_decay)
        sines = first_waves(x.shape[1], self.d_key, x.device)
        q, k = (rotate(each.transpose(1, 2), sines).transpose(1, 2) for each in (q, k))
        return Inputs(q, k, v, self.log_decay)

    def _parallel(self, x: Tensor) -> tuple[Tensor, State]:
        y, state = super()._parallel(x)
        return y, (*state, torch.full((), x.shape[1], device=x.device))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        y_t, (last, position) = super().step(x_t, state)
        return y_t, (last, position + 1)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (S, position)."""
        return *super().init_state(batch_size, max_len), torch.tensor(position, device=self.out.weight.device)


class GLA(GatedLinearMixer):
    """Gated linear attention: every channel of the key decays as the token says (Yang et al. 2023, eq. 4, section 4.4).

        S_t = diag(alpha_t) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t,   alpha_t = sigmoid(W2 W1 x_t + b)^(1 / 16)
        output_t = out(rms_norm(o_t) * silu(gate(x_t)))

    W1 has rank d_gate; K and V are expand_k and expand_v times d_model / H.

    State: S, expand_k expand_v d_model^2 / H numbers in float32, whatever the length. A token costs
    (2 expand_k + 3 expand_v) d_model^2 + d_gate (1 + expand_k) d_model multiply-adds in projections and twice the
    state's size.

    As in the authors' code (berlino/gated_linear_attention, gla.py), q, k and W start by Xavier's rule with GAIN, the
    other projections as PyTorch's do.

    Raises ValueError if `n_heads` does not divide the widths.
    """

    card = Card("linear attention", "expand_k expand_v d^2 / n_heads", "as state", "as state", "Yang et al. 2023")

    decay: ClassVar[Decay] = "channel"
    NORM_EPS: ClassVar[float] = 1e-5
    TEMPERATURE: ClassVar[int] = 16
    """Temperature of the gate, which starts near 1, so that the state lasts."""

    def __init__(
        self, *, d_model: int, n_heads: int, expand_k: float, expand_v: float, d_gate: int, kernel: str
    ) -> None:
        Mixer.__init__(self)
        d_key = head_width(int(expand_k * d_model), n_heads, "expand_k * d_model")
        d_value = head_width(int(expand_v * d_model), n_heads, "expand_v * d_model")
        at_least(1, d_gate=d_gate)
        self._build(d_model, n_heads, d_key, d_value)
        self.norm = nn.RMSNorm(d_value, self.NORM_EPS)
        self.decay_proj = nn.Sequential(nn.Linear(d_model, d_gate, bias=False), nn.Linear(d_gate, n_heads * d_key))
        q, k, _ = self.qkv.weight.split(self._widths)
        for weight in (q, k, *(weight for weight in self.decay_proj.parameters() if weight.dim() > 1)):
            nn.init.xavier_uniform_(weight, gain=GAIN)
        self._decide(kernel, n_heads, d_key, d_value)

    def _inputs(self, x: Tensor, *extra: Tensor) -> Inputs:
        log_decay = F.logsigmoid(wide(self.decay_proj(x))) / self.TEMPERATURE
        return Inputs(*self._qkv(x), log_decay.unflatten(-1, (self.n_heads, -1)))
