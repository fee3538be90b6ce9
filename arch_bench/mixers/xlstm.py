"""xLSTM's recurrent half: an LSTM with exponential gates (Beck et al. 2024, arXiv:2405.04517).

Legend: B batch, T positions, D d_model, H heads, K head width = D / H, C taps of the convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops
from arch_bench.mixers.sizes import at_least, head_width
from arch_bench.norm import HeadNorm
from arch_bench.ops.causal_conv import causal_conv, causal_conv_step, causal_window
from arch_bench.ops.slstm import OBSTACLES, Cell, empty_cell, slstm, slstm_step

NORM_EPS = 1e-5


class SLSTM(Mixer):
    """The sLSTM layer of section 2.2 and figure 10; the recurrence stands in `ops/slstm.py`.

        u_t      = silu(conv of x_{t-C+1..t})
        i, f     = u_t W_if + h_{t-1} R + b;    z, o = x_t W_zo + h_{t-1} R + b      per head: W, R block-diagonal
        output_t = norm(h_t), each head by itself

    State: h, c, n and m, 4 d_model numbers in float32, and the last C - 1 inputs, whatever the length. A token costs
    8 K d_model multiply-adds, one position after the other in training as in decoding.

    As in the authors' code, R starts at zero, W with standard deviation sqrt(2 / (5 d_model)), and the forget biases of
    a head fall from 5 to -7 by a power law (there steeper in early blocks: a mixer has no block index, and takes
    the first one's).

    Raises ValueError if `n_heads` does not divide `d_model`.
    """

    card = Card(
        "recurrent", "(3 + d_conv) d", "8 d^2 / n_heads, one after the other", "8 d^2 / n_heads", "Beck et al. 2024"
    )
    step_kernel = "eager"

    def __init__(self, *, d_model: int, n_heads: int, d_conv: int, kernel: str) -> None:
        super().__init__()
        at_least(0, d_conv=d_conv)
        self.choose(kernel, OBSTACLES)
        self.n_heads, d_head = n_heads, head_width(d_model, n_heads)
        self.conv1d = nn.Conv1d(d_model, d_model, d_conv, groups=d_model) if d_conv else None
        self.W_if, self.W_zo = (nn.Parameter(torch.empty(n_heads, d_head, 2 * d_head)) for _ in range(2))
        self.R = nn.Parameter(torch.zeros(n_heads, d_head, 4 * d_head))
        self.bias = nn.Parameter(torch.zeros(n_heads, 4, d_head))
        self.norm = HeadNorm(n_heads, d_head, NORM_EPS)
        self._initialise(d_model, d_head)

    @torch.no_grad()
    def _initialise(self, d_model: int, d_head: int) -> None:
        for weight in (self.W_if, self.W_zo):
            nn.init.normal_(weight, std=(2 / (5 * d_model)) ** 0.5)
        self.bias[:, 1] = 5 - 12 * torch.linspace(0, 1, d_head) ** 0.3
        for exempt in (self.R, self.bias):  # in the authors' code (xlstm 2.0.6, utils.py), too
            exempt._no_weight_decay = True  # type: ignore[attr-defined]

    def _gates(self, x: Tensor, u: Tensor) -> Tensor:
        """Compute the gates (..., H, 4, K) before the contribution of h. x, u: (..., D)."""
        i, f = self._per_head(u, self.W_if)
        z, o = self._per_head(x, self.W_zo)
        return torch.stack((i, f, z, o), -2) + self.bias

    def _per_head(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Apply two maps to each head, (..., H, K) each."""
        heads = x.reshape(-1, self.n_heads, weight.shape[1]).transpose(0, 1)
        first, second = torch.bmm(heads, weight).transpose(0, 1).unflatten(0, x.shape[:-1]).chunk(2, -1)
        return first, second

    def _parallel(self, x: Tensor) -> tuple[Tensor, Cell]:
        u = F.silu(causal_conv(x, self.conv1d.weight, self.conv1d.bias)) if self.conv1d else x
        h, last = slstm(self._gates(x, u), self.R, kernel=self.kernel)
        return self._normed(h), last

    def _normed(self, h: Tensor) -> Tensor:
        """Norm (..., H, K) and merge it into (..., D)."""
        return self.norm(h).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x)[0]

    def flops_per_token(self, seq_len: int) -> float:
        """Count W and R, 16 K d_model, and the convolution."""
        conv = () if self.conv1d is None else (self.conv1d.weight,)
        return count_flops(self.W_if, self.W_zo, self.R, *conv)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (window (B, C - 1, D), and h, c, n, m (B, H, K))."""
        n_heads, d_head, _ = self.R.shape
        n_before = self.conv1d.kernel_size[0] - 1 if self.conv1d else 0
        window = self.R.new_zeros(batch_size, n_before, n_heads * d_head, dtype=self.cache_dtype())
        dtype = torch.promote_types(self.R.dtype, torch.float32)
        return window, *empty_cell(self.R.new_empty(batch_size, n_heads, d_head, dtype=dtype))

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        window, *cell = state
        y, last = self._parallel(x)
        window.copy_(causal_window(x, window.shape[1] + 1))
        for old, new in zip(cell, last, strict=True):
            old.copy_(new)
        return y, state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        window, *cell = state
        u_t = x_t
        if self.conv1d:
            u_t, window = causal_conv_step(x_t, window, self.conv1d.weight, self.conv1d.bias)
            u_t = F.silu(u_t)
        gates = self._gates(x_t, u_t)
        with torch.autocast(x_t.device.type, enabled=False):
            new = slstm_step(gates.to(cell[0].dtype), Cell(*cell), self.R.to(cell[0].dtype))
        return self._normed(new.h), (window, *new)
