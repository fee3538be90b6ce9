"""Recurrent networks: a hidden state that is rewritten at every token.

Legend: B batch, T positions, H hidden width (= d_model), G gates.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops

CUDNN_MAX_LEN = 16_384
"""Positions per cuDNN call: it refuses 65,536 (CUDNN_STATUS_NOT_SUPPORTED on an H200, torch 2.11)."""


class Recurrent(Mixer):
    """One recurrent layer of PyTorch, which cuDNN or ATen runs fused over time; a subclass defines its update.

    State: `n_states` vectors of d_model numbers, the output h first, whatever the length. Training costs
    O(T G d_model^2), one position after the other; a decoded token O(G d_model^2). The recurrent weights start
    orthogonal, gate by gate, and the biases at zero.

    All of it runs in the parameters' precision, also under autocast, which would give cuDNN fp16 whatever dtype it was
    asked for (ATen/cudnn/AutocastRNN.cpp): a state that is rewritten T times keeps its rounding errors.
    """

    layer_class: ClassVar[type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]]
    n_gates: ClassVar[int]
    n_states: ClassVar[int] = 1
    keeps_precision = True

    def __init__(self, *, d_model: int, kernel: str) -> None:
        super().__init__()
        self.layer = self.layer_class(d_model, d_model, batch_first=True)
        self._initialise()
        on_cuda = self._weights()[0].is_cuda
        obstacles = {
            "cudnn": None if on_cuda else "cuDNN needs a CUDA device; use kernel=aten",
            "aten": "on CUDA the same call runs cuDNN; use kernel=cudnn" if on_cuda else None,
            "reference": None,
        }
        self.choose(kernel, obstacles)
        if self.kernel == "reference":
            self.step_kernel = "reference"

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return W (G H, H), U (G H, H) and their biases (G H,), gate after gate."""
        w_ih, w_hh, b_ih, b_hh = self.layer.all_weights[0]
        return w_ih, w_hh, b_ih, b_hh

    @torch.no_grad()
    def _initialise(self) -> None:
        _, w_hh, b_ih, b_hh = self._weights()
        for gate in w_hh.chunk(self.n_gates):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(b_ih)
        nn.init.zeros_(b_hh)

    def forward(self, x: Tensor) -> Tensor:
        return self.prefill(x, self.init_state(x.shape[0], x.shape[1]))[0]

    def flops_per_token(self, seq_len: int) -> float:
        """Count W x_t and U h: 4 G d_model^2."""
        w_ih, w_hh, _, _ = self._weights()
        return count_flops(w_ih, w_hh)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return h and the other states, each (B, H), in the parameters' dtype."""
        weight = self._weights()[0]
        return tuple(weight.new_zeros(batch_size, self.layer.hidden_size) for _ in range(self.n_states))

    @torch.compiler.disable  # tracing skips nn.RNNBase, and could not resume inside a context
    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):
            scan = self._prefill_reference if self.kernel == "reference" else self._prefill_fused
            return scan(x.to(state[0].dtype), state)

    def _prefill_fused(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run in parts of CUDNN_MAX_LEN, each from the state that the previous part left."""
        past = tuple(s[None] for s in state)  # nn.LSTM takes and gives a pair, the others a tensor
        ys = []
        for part in x.split(CUDNN_MAX_LEN, dim=1):
            y, last = self.layer(part, past if len(past) > 1 else past[0])
            past = last if len(past) > 1 else (last,)
            ys.append(y)
        return ys[0] if len(ys) == 1 else torch.cat(ys, dim=1), tuple(s[0] for s in past)

    def bare(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {f"torch.nn.{self.layer_class.__name__}": self._plain}

    @torch.compiler.disable
    def _plain(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = self.layer(x)[0]
        return y

    def _prefill_reference(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        ys = []
        for x_t in x.unbind(1):
            state = self._reference_cell(x_t, state)
            ys.append(state[0])
        return torch.stack(ys, dim=1), state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        cell = self._reference_cell if self.kernel == "reference" else self._fused_cell
        with torch.autocast(x_t.device.type, enabled=False):
            state = cell(x_t.to(state[0].dtype), state)
        return state[0], state

    @abstractmethod
    def _fused_cell(self, x_t: Tensor, state: State) -> State:
        """Compute the state after one token, by PyTorch's kernel. x_t: (B, H)."""

    @abstractmethod
    def _reference_cell(self, x_t: Tensor, state: State) -> State:
        """Compute the same, written out."""


class RNN(Recurrent):
    """The simple recurrent network (Elman 1990): h = tanh(W x_t + U h + b). State: h, d_model numbers."""

    card = Card("recurrent", "d", "d^2, one after the other", "d^2", "Elman 1990")
    layer_class = nn.RNN
    n_gates = 1
    step_kernel = "rnn_tanh_cell"

    def _fused_cell(self, x_t: Tensor, state: State) -> State:
        return (torch.rnn_tanh_cell(x_t, state[0], *self._weights()),)

    def _reference_cell(self, x_t: Tensor, state: State) -> State:
        w_ih, w_hh, b_ih, b_hh = self._weights()
        return (torch.tanh(x_t @ w_ih.T + b_ih + state[0] @ w_hh.T + b_hh),)


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078, section 2.3), the reset gate after the product.

    r, z = sigmoid(W x_t + U h + b); n = tanh(W x_t + b + r (U h + b')); h = (1 - z) n + z h, as cuDNN has it; the
    paper resets h before the product with U. State: h, d_model numbers.
    """

    card = Card("recurrent", "d", "3 d^2, one after the other", "3 d^2", "Cho et al. 2014")
    layer_class = nn.GRU
    n_gates = 3
    step_kernel = "gru_cell"

    def _fused_cell(self, x_t: Tensor, state: State) -> State:
        return (torch.gru_cell(x_t, state[0], *self._weights()),)

    def _reference_cell(self, x_t: Tensor, state: State) -> State:
        (h,) = state
        w_ih, w_hh, b_ih, b_hh = self._weights()
        r_x, z_x, n_x = (x_t @ w_ih.T + b_ih).chunk(3, dim=-1)
        r_h, z_h, n_h = (h @ w_hh.T + b_hh).chunk(3, dim=-1)
        z = torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        return ((1 - z) * n + z * h,)


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    i, f, o = sigmoid(W x_t + U h + b); g = tanh(W x_t + U h + b); c = f c + i g; h = o tanh(c).

    State: h and c, 2 d_model numbers. `forget_bias` >= 1 keeps the gradient alive over distance (Jozefowicz et al.
    2015). `chrono_max` > 0 takes its place: each unit starts with a memory of its own of up to that many tokens, the
    forget bias log u with u uniform in [1, chrono_max - 1], the input bias -log u (Tallec & Ollivier 2018,
    arXiv:1804.11188).

    Raises ValueError if `chrono_max` is neither 0 nor at least 3.
    """

    card = Card("recurrent", "2 d", "4 d^2, one after the other", "4 d^2", "Hochreiter & Schmidhuber 1997")
    layer_class = nn.LSTM
    n_gates = 4
    n_states = 2
    step_kernel = "lstm_cell"

    def __init__(self, *, d_model: int, forget_bias: float, chrono_max: int, kernel: str) -> None:
        if chrono_max and chrono_max < 3:
            raise ValueError(f"chrono_max={chrono_max} must be 0 (off) or at least 3")
        super().__init__(d_model=d_model, kernel=kernel)
        with torch.no_grad():
            i, f, _, _ = self._weights()[2].chunk(4)
            if chrono_max:
                f.uniform_(1, chrono_max - 1).log_()
                i.copy_(-f)
            else:
                f.fill_(forget_bias)

    def _fused_cell(self, x_t: Tensor, state: State) -> State:
        h, c = state
        return torch.lstm_cell(x_t, (h, c), *self._weights())

    def _reference_cell(self, x_t: Tensor, state: State) -> State:
        h, c = state
        w_ih, w_hh, b_ih, b_hh = self._weights()
        gates = x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
