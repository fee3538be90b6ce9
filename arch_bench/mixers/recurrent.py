"""Recurrent networks: a hidden state that is rewritten at every token.

Legend: B batch, T positions, H hidden width (= d_model).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops

CUDNN_MAX_LEN = 16_384
"""Positions that cuDNN is given at once: 65,536 it refuses (CUDNN_STATUS_NOT_SUPPORTED on an H200, torch 2.11)."""


class LSTM(Mixer):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    i, f, o = sigmoid(W x_t + U h + b); g = tanh(W x_t + U h + b); c = f c + i g; h = o tanh(c).

    State: h and c, 2 d_model numbers, whatever the length. Training costs O(T d_model^2), one position after the
    other; a decoded token O(d_model^2). `forget_bias` >= 1 keeps the gradient alive over distance (Jozefowicz et al.
    2015); the recurrent weights start orthogonal, gate by gate.

    All of it runs in the parameters' precision, also under autocast, which would give cuDNN fp16 whatever dtype it was
    asked for (ATen/cudnn/AutocastRNN.cpp): a state that is rewritten T times keeps its rounding errors.
    """

    card = Card("recurrent", "2 d", "d^2, one after the other", "d^2", "Hochreiter & Schmidhuber 1997")

    def __init__(self, *, d_model: int, forget_bias: float, kernel: str) -> None:
        super().__init__()
        self.lstm = nn.LSTM(d_model, d_model, batch_first=True)
        self._initialise(forget_bias)
        on_cuda = self._weights()[0].is_cuda
        obstacles = {
            "cudnn": None if on_cuda else "cuDNN needs a CUDA device; use kernel=aten",
            "aten": "on CUDA the same call runs cuDNN; use kernel=cudnn" if on_cuda else None,
            "reference": None,
        }
        self.choose(kernel, obstacles)
        self.step_kernel = "reference" if self.kernel == "reference" else "lstm_cell"

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W (4 H, H), U (4 H, H) and their biases (4 H,), the gates in the order i, f, g, o."""
        w_ih, w_hh, b_ih, b_hh = self.lstm.all_weights[0]
        return w_ih, w_hh, b_ih, b_hh

    @torch.no_grad()
    def _initialise(self, forget_bias: float) -> None:
        _, w_hh, b_ih, b_hh = self._weights()
        for gate in w_hh.chunk(4):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(b_ih)
        nn.init.zeros_(b_hh)
        b_ih.chunk(4)[1].fill_(forget_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.prefill(x, self.init_state(x.shape[0], x.shape[1]))[0]

    def flops_per_token(self, seq_len: int) -> float:
        """W x_t and U h: 16 d_model^2."""
        w_ih, w_hh, _, _ = self._weights()
        return count_flops(w_ih, w_hh)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """(h, c), each (B, H), in the parameters' dtype."""
        h = self._weights()[0].new_zeros(batch_size, self.lstm.hidden_size)
        return h, torch.zeros_like(h)

    @torch.compiler.disable  # tracing skips nn.LSTM, and could not resume inside a context
    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, _ = state
        with torch.autocast(x.device.type, enabled=False):
            if self.kernel == "reference":
                return self._prefill_reference(x.to(h.dtype), state)
            return self._prefill_fused(x.to(h.dtype), state)

    def _prefill_fused(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """In parts of CUDNN_MAX_LEN, each from the state that the one before has left."""
        h, c = (s[None] for s in state)
        ys = []
        for part in x.split(CUDNN_MAX_LEN, dim=1):
            y, (h, c) = self.lstm(part, (h, c))
            ys.append(y)
        return ys[0] if len(ys) == 1 else torch.cat(ys, dim=1), (h[0], c[0])

    def bare(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"torch.nn.LSTM": self._plain}

    @torch.compiler.disable
    def _plain(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = self.lstm(x)[0]
        return y

    def _prefill_reference(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        ys = []
        for x_t in x.unbind(1):
            y_t, state = self._step_reference(x_t, state)
            ys.append(y_t)
        return torch.stack(ys, dim=1), state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        x_t = x_t.to(state[0].dtype)
        with torch.autocast(x_t.device.type, enabled=False):
            if self.kernel == "reference":
                return self._step_reference(x_t, state)
            h, c = torch.lstm_cell(x_t, state, *self._weights())
        return h, (h, c)

    def _step_reference(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = state
        w_ih, w_hh, b_ih, b_hh = self._weights()
        gates = x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, (h, c)
