"""The delta rule: a state that corrects the value stored under a key instead of adding to it.

Legend: B batch, T positions, H heads, K and V widths of a head's key and value.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer
from arch_bench.mixers.convolved import ConvolvedMixer
from arch_bench.mixers.mamba2 import inverse_softplus_of_steps
from arch_bench.mixers.sizes import head_width
from arch_bench.ops.chunks import wide
from arch_bench.ops.delta_rule import Heads, delta_rule, delta_rule_step, obstacles

NORM_EPS = 1e-5
A_RANGE = (0.0, 16.0)  # decay rates at initialisation (Yang et al. 2025, their code)


class Inputs(NamedTuple):
    """Inputs of `delta_rule`, heads before widths."""

    q: Tensor  # (..., H, K)
    k: Tensor  # (..., H, K)
    v: Tensor  # (..., H, V)
    beta: Tensor  # (..., H)
    log_decay: Tensor | None  # (..., H)


class DeltaNet(ConvolvedMixer):
    """DeltaNet as Yang et al. 2024 train it (arXiv:2406.06484, section 3.4; the rule is Schlag et al. 2021's).

        q_t, k_t, v_t    = silu(conv1d over the last d_conv of W x), q_t and k_t then of length 1
        S_t              = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,   beta_t = sigmoid(w^T x_t)
        output_t         = out(rms_norm(K^-1/2 S_t^T q_t)), the norm over each head by itself

    The norm takes K^-1/2 back but for its epsilon, 1e-5. It stands there as in the authors' code (fla): without it an
    output would be 2 % larger at the start at d_model=64, of the first position twice as large, at 512 by a quarter.

    `negative_eigenvalues` doubles beta, so that I - beta k k^T can reflect as well as forget, which takes the model
    to problems like parity (Grazzi et al. 2024, arXiv:2411.12537).

    State: S, d_model^2 / H numbers in float32, and the last d_conv - 1 projections, 3 d_model each. A token costs
    d_model (4 d_model + H + 3 d_conv) multiply-adds in projections and convolution and 3 d_model^2 / H in the state.

    Raises ValueError if `n_heads` does not divide `d_model`.
    """

    card = Card(
        "linear attention", "d^2 / n_heads + 3 (d_conv - 1) d", "d^2 / n_heads", "d^2 / n_heads", "Yang et al. 2024"
    )

    def __init__(self, *, d_model: int, n_heads: int, d_conv: int, negative_eigenvalues: bool, kernel: str) -> None:
        super().__init__()
        d_head = head_width(d_model, n_heads)
        self._build((n_heads, d_head, d_head), d_model, d_conv)
        self._decide(kernel, negative_eigenvalues, is_gated=False)

    def _build(self, state_shape: tuple[int, int, int], d_model: int, d_conv: int) -> None:
        self.state_shape = H, K, V = state_shape
        self._widths = (H * K, H * K, H * V)
        self.qkv = nn.Linear(d_model, sum(self._widths), bias=False)
        self._build_conv(sum(self._widths), d_conv, bias=False)
        self.beta = nn.Linear(d_model, H, bias=False)
        self.norm = nn.RMSNorm(V, NORM_EPS)
        self.out = nn.Linear(H * V, d_model, bias=False)

    def _decide(self, kernel: str, negative_eigenvalues: bool, is_gated: bool) -> None:
        self.beta_limit = 2 if negative_eigenvalues else 1
        H, K, V = self.state_shape
        self.choose(kernel, obstacles(Heads(self.out.weight.device, self.cache_dtype(), H, K, V, is_gated)))

    def flops_per_token(self, seq_len: int) -> float:
        """Count the projections, the convolution, and S^T k, k u^T and S^T q: 6 H K V."""
        return self._projection_flops() + 6 * math.prod(self.state_shape)

    def _project(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.qkv(x), (x,)

    def _mix(self, u: Tensor, rest: tuple[Tensor, ...], state: Tensor | None) -> tuple[Tensor, Tensor]:
        (x,) = rest
        q, k, v = (each.unflatten(-1, (self.state_shape[0], -1)) for each in u.split(self._widths, -1))
        q, k = (F.normalize(wide(each), dim=-1) for each in (q, k))
        beta = self.beta_limit * wide(self.beta(x)).sigmoid()
        o, last = self._recur(Inputs(q, k, v, beta, self._log_decay(x)), state)
        read = wide(o) * self.state_shape[1] ** -0.5
        return self._output(self.norm(read).flatten(-2).to(x.dtype), x), last

    def _recur(self, inputs: Inputs, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute o of all positions or of one, heads before widths, and the last S."""
        if state is not None:
            return delta_rule_step(*inputs, state=state), state
        heads_first = Inputs(*(None if each is None else each.transpose(1, 2) for each in inputs))  # type: ignore[arg-type]
        o, last = delta_rule(*heads_first, kernel=self.kernel)
        return o.transpose(1, 2), last

    def _log_decay(self, x: Tensor) -> Tensor | None:
        return None

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        """Norm and merge o into (..., H V)."""
        return self.out(o)


class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet: a gate also decays the whole state, as in Mamba-2 (Yang et al. 2025, arXiv:2412.06464).

        S_t       = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T            (eq. 10)
        alpha_t   = exp(-exp(A_log) softplus(w^T x_t + dt_bias))                         one number per head
        output_t  = out(rms_norm(K^-1/2 S_t^T q_t) * silu(gate(x_t)))

    all else as in DeltaNet; K and V are expand_k and expand_v times d_model / H.

    State: S, expand_k expand_v d_model^2 / H numbers in float32, and the last d_conv - 1 projections. A token costs
    (2 expand_k + 3 expand_v) d_model^2 multiply-adds in its large projections and 3 times the state's size.

    Raises ValueError if `n_heads` does not divide the widths.
    """

    card = Card(
        "linear attention",
        "expand_k expand_v d^2 / n_heads + (2 expand_k + expand_v) (d_conv - 1) d",
        "expand_k expand_v d^2 / n_heads",
        "as training",
        "Yang et al. 2025",
    )

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        expand_k: float,
        expand_v: float,
        d_conv: int,
        negative_eigenvalues: bool,
        kernel: str,
    ) -> None:
        Mixer.__init__(self)
        d_key = head_width(int(expand_k * d_model), n_heads, "expand_k * d_model")
        d_value = head_width(int(expand_v * d_model), n_heads, "expand_v * d_model")
        self._build((n_heads, d_key, d_value), d_model, d_conv)
        self.gate = nn.Linear(d_model, n_heads * d_value, bias=False)
        self.dt = nn.Linear(d_model, n_heads, bias=False)
        self.dt_bias = nn.Parameter(inverse_softplus_of_steps(n_heads))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(*A_RANGE).log())
        for parameter in (self.A_log, self.dt_bias):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self._decide(kernel, negative_eigenvalues, is_gated=True)

    def _log_decay(self, x: Tensor) -> Tensor | None:
        return -torch.exp(wide(self.A_log)) * F.softplus(wide(self.dt(x)) + self.dt_bias)

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        return self.out(o * F.silu(self.gate(x)))
