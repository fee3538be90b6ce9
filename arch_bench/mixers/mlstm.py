"""The matrix memory of xLSTM (Beck et al. 2024, arXiv:2405.04517).

Legend: B batch, T positions, H heads, K width of a head.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, State
from arch_bench.mixers.linear_attention import Inputs, LinearMixer
from arch_bench.mixers.sizes import head_width
from arch_bench.norm import HeadNorm
from arch_bench.ops.chunks import wide
from arch_bench.ops.linear_attention import Decay, linear_attention_step

NORM_EPS = 1e-5
FORGET_BIAS = (3.0, 6.0)  # at initialisation, from the first head to the last (the authors' code)
INPUT_BIAS_STD = 0.1
TINY = 1e-30  # a divisor for a query of zeros


class MLSTM(LinearMixer):
    """A long short-term memory with a matrix for a cell and an exponential input gate (section 2.3, eq. 19-27).

        C_t      = f_t C_{t-1} + i_t k_t v_t^T,   n_t = f_t n_{t-1} + i_t k_t           (K, K) (K,)
        i_t      = exp(w_i^T x_t + b_i),   f_t = sigmoid or exp of w_f^T x_t + b_f      one number per head each
        h_t      = C_t^T q_t / max(|n_t^T q_t|, 1)
        output_t = out(norm(h_t) * sigmoid(W_o x_t)),   the norm over each head by itself

    It is linear attention with C and n kept relative to exp(m_t), where m_t = max(log f_t + m_{t-1}, log i_t), so that
    no gate overflows (eq. 15-17); n is the column of a value that is always 1. h does not depend on m, which therefore
    has no gradient.

    This is the layer of xLSTM 7B (Beck et al. 2025, arXiv:2503.13427; `xlstm_large` of NX-AI/xlstm): dense q, k and v,
    a sigmoid output gate, then the block's MLP. The block of 2024 (figure 11) has instead an up-projection to twice the
    width, q and k from a convolution over 4 positions, all three in blocks of 4 channels, a skip from the convolution,
    a gate by silu, and no MLP: 30,100 parameters at d_model=64 with 4 heads, where this layer has 21,100, and 54,200
    with its MLP. backbone.d_conv=4 adds a convolution. Left out of xLSTM 7B are the caps of its gates at 15, its input
    gate's bias of -10, and keys of half the width. As in both, the norm has a gain for each channel of each head.

    State: C and n, d_model (d_model / H + 1) numbers, and H of m, in float32, whatever the length. A token costs
    d_model (5 d_model + 2 H) multiply-adds in projections and 2 d_model (d_model / H + 1) in the state.

    Raises ValueError if `n_heads` does not divide `d_model`, or the gate is unknown.
    """

    card = Card("recurrent", "d (d / n_heads + 1) + n_heads", "d^2 / n_heads", "d^2 / n_heads", "Beck et al. 2024")

    decay: ClassVar[Decay] = "token"

    def __init__(self, *, d_model: int, n_heads: int, forget_gate: Literal["sigmoid", "exp"], kernel: str) -> None:
        super().__init__()
        d_head = head_width(d_model, n_heads)
        if forget_gate not in ("sigmoid", "exp"):
            raise ValueError(f"forget_gate={forget_gate} is unknown here; choose from: sigmoid, exp")
        self.has_exp_forget_gate = forget_gate == "exp"
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.gates = nn.Linear(d_model, 2 * n_heads)  # input, forget
        self.output_gate = nn.Linear(d_model, d_model, bias=False)
        self.norm = HeadNorm(n_heads, d_head, NORM_EPS)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self._initialise(n_heads)
        self._decide(kernel, n_heads, d_head, d_head + 1)

    @torch.no_grad()
    def _initialise(self, n_heads: int) -> None:
        """Initialise the gates so that they do not depend on the token yet."""
        nn.init.zeros_(self.gates.weight)
        self.gates.bias[:n_heads].normal_(std=INPUT_BIAS_STD)
        self.gates.bias[n_heads:].copy_(torch.linspace(*FORGET_BIAS, n_heads))

    def _inputs(self, x: Tensor, *extra: Tensor) -> Inputs:
        return self._stabilised(x, *extra)[0]

    def _stabilised(self, x: Tensor, before: Tensor | None = None) -> tuple[Inputs, Tensor]:
        """Return the inputs and m, of all positions, or of one after m = `before`."""
        q, k, v = (each.unflatten(-1, (self.n_heads, -1)) for each in self.qkv(x).chunk(3, -1))
        log_i, log_f = wide(self.gates(x)).chunk(2, -1)
        log_f = log_f if self.has_exp_forget_gate else F.logsigmoid(log_f)
        m, before = _stabilisers(log_i.detach(), log_f.detach(), before)
        k = wide(k) * ((log_i - m).exp() * self.d_key**-0.5).unsqueeze(-1)
        return Inputs(q, k, F.pad(v, (0, 1), value=1.0), log_f + before - m), m

    def _parallel(self, x: Tensor) -> tuple[Tensor, State]:
        inputs, m = self._stabilised(x)
        o, last = self._attend(inputs)
        return self._output(_normalised(o, m), x), (last, m[:, -1])

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        last, m = state
        inputs, m = self._stabilised(x_t, m)
        o = linear_attention_step(*inputs, state=last)
        return self._output(_normalised(o, m), x_t), (last, m)

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        return self.out(self.norm(o).flatten(-2).to(x.dtype) * self.output_gate(x).sigmoid())

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (C and n, m): (B, H, K, K + 1) and (B, H); m starts as the exponent of an empty state."""
        (last,) = super().init_state(batch_size, max_len)
        return last, last.new_full((batch_size, self.n_heads), float("-inf"))


def _stabilisers(log_i: Tensor, log_f: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return m and the m before it, of all positions (B, T, H), or of one (B, H) after m = `before`.

    All at once m_t = F_t + max over s <= t of (log i_s - F_s), with F_t the sum of log f up to t. F_t is large at great
    lengths and m_t no more precise; any m gives the same h, so long as it is the same m everywhere. What decays at the
    first token is zero; that it does so by 1 keeps infinity out of sums.
    """
    if before is not None:
        return torch.maximum(log_f + before, log_i), before
    total = log_f.cumsum(1)
    m = total + (log_i - total).cummax(1).values
    return m, torch.cat((m[:, :1] - log_f[:, :1], m[:, :-1]), 1)


def _normalised(o: Tensor, m: Tensor) -> Tensor:
    """Compute C^T q / max(|n^T q|, exp(-m)), both relative to exp(m). o: (..., H, K + 1), m: (..., H)."""
    o = wide(o)
    floor = (-m).exp().clamp(min=TINY).unsqueeze(-1)
    return o[..., :-1] / torch.maximum(o[..., -1:].abs(), floor)
