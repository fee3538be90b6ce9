"""Causal convolutions: stacked short dilated ones, and one as long as the sequence.

Legend: B batch, T positions, D d_model, K taps, W width of the filter's network, F features of a position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops
from arch_bench.mixers.sizes import at_least
from arch_bench.ops.causal_conv import causal_conv, causal_conv_step, causal_window
from arch_bench.ops.long_convolution import long_convolution


class TCN(Mixer):
    """Temporal convolutional network: a stack of residual units, one per dilation (Bai et al. 2018, arXiv:1803.01271,
    figure 1). The paper doubles the dilation from layer to layer; a mixer has no layer index, so it holds them all.

        unit(x) = relu(x + relu(conv2(relu(conv1(x))))),    conv(x)_t = bias + sum_k weight_k x_{t - (K-1-k) dilation}

    Weight normalisation and dropout inside the unit are left out. A position sees 2 (K - 1) sum(dilations) before it.

    State: the inputs that each convolution still sees, 2 (K - 1) sum(dilations) d_model numbers at any length. A token
    costs 2 K d_model^2 multiply-adds per dilation, in training as in decoding.

    Raises ValueError if `d_conv` or a dilation is less than 1, or there is none.
    """

    card = Card(
        "convolution", "2 (d_conv - 1) sum(dilations) d", "as decoding", "2 d_conv d^2 per dilation", "Bai et al. 2018"
    )
    step_kernel = "conv1d"

    def __init__(self, *, d_model: int, d_conv: int, dilations: list[int], kernel: str) -> None:
        super().__init__()
        at_least(1, d_conv=d_conv)
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations={dilations} must be one or more numbers of at least 1")
        self.choose(kernel, {"conv1d": None, "reference": None})
        self.convs = nn.ModuleList(
            nn.Conv1d(d_model, d_model, d_conv, dilation=dilation) for dilation in dilations for _ in range(2)
        )

    @property
    def _layers(self) -> list[nn.Conv1d]:
        return cast("list[nn.Conv1d]", list(self.convs))

    def _units(self, x: Tensor, conv: Callable[[nn.Conv1d, int, Tensor], Tensor]) -> Tensor:
        """Apply all units; `conv` applies a convolution, given as itself and its number."""
        layers = list(enumerate(self._layers))
        for (i, first), (j, second) in zip(layers[::2], layers[1::2], strict=True):
            x = F.relu(x + F.relu(conv(second, j, F.relu(conv(first, i, x)))))
        return x

    def _conv(self, layer: nn.Conv1d, _: int, x: Tensor) -> Tensor:
        """Convolve all positions. x: (B, T, D)."""
        n_before = _reach(layer)
        if self.kernel == "reference":
            padded = F.pad(x, (0, 0, n_before, 0))
            starts = range(0, n_before + 1, layer.dilation[0])
            taps = zip(layer.weight.unbind(-1), starts, strict=True)
            y = torch.stack([padded[:, start : start + x.shape[1]] @ tap.mT for tap, start in taps]).sum(0)
            return y if layer.bias is None else y + layer.bias
        return F.conv1d(F.pad(x.mT, (n_before, 0)), layer.weight, layer.bias, dilation=layer.dilation).mT

    def forward(self, x: Tensor) -> Tensor:
        return self._units(x, self._conv)

    def flops_per_token(self, seq_len: int) -> float:
        """Count 4 K d_model^2 per dilation."""
        return count_flops(*(layer.weight for layer in self._layers))

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return the last (K - 1) dilation inputs of each convolution, (B, (K - 1) dilation, D), the oldest first."""
        dtype = self.cache_dtype()
        shapes = ((batch_size, _reach(layer), layer.in_channels) for layer in self._layers)
        return tuple(self._layers[0].weight.new_zeros(shape, dtype=dtype) for shape in shapes)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        def conv(layer: nn.Conv1d, i: int, x: Tensor) -> Tensor:
            state[i].copy_(causal_window(x, _reach(layer) + 1))
            return self._conv(layer, i, x)

        return self._units(x, conv), state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        def conv(layer: nn.Conv1d, i: int, x_t: Tensor) -> Tensor:
            window = state[i]
            seen = torch.cat((window, x_t.unsqueeze(1).to(window.dtype)), 1)
            window.copy_(seen[:, 1:])
            taken = seen[:, :: layer.dilation[0]]  # (B, K, D)
            return F.conv1d(taken.mT, layer.weight, layer.bias).squeeze(-1)

        return self._units(x_t, conv), state


def _reach(layer: nn.Conv1d) -> int:
    """Return how many inputs before the current one a convolution sees."""
    return (layer.kernel_size[0] - 1) * layer.dilation[0]


class Hyena(Mixer):
    """The Hyena operator of order 2 (Poli et al. 2023, arXiv:2302.10866, section 3), as in the authors' code.

        p_t, q_t, v_t = in_proj(x_t), each channel convolved over its last K positions
        u_t           = q_t v_t
        z_t           = sum_{j <= t} taps_j u_{t-j} + skip u_t
        output_t      = out_proj(p_t z_t)

    taps_j = exp(-rate j / L) network(features of j): a network of sines, four layers deep, writes a filter of any
    length. The features are j / L, and cosine and sine of 2 pi f j / L at (F - 1) / 2 frequencies f from 0 up; the
    rates are such that channels fall to a hundredth after 0.3 L to 1.5 L tokens. L = `filter_len`: tokens after it are
    seen through taps that training at that length never used.

    State: u of all tokens and the taps they meet, 2 T d_model numbers, and the K - 1 inputs of the short convolution.
    Training costs O(T log T d_model) in the convolution, O(T W (W + F + d_model)) for the filter that a batch shares,
    and 4 T d_model^2 multiply-adds in projections; a decoded token O(T d_model), as nothing sums its past up.

    Raises ValueError if `filter_len` is less than 2 or `n_features` not odd and at least 3.
    """

    card = Card("convolution", "2 T d + 3 (d_conv - 1) d", "d log T", "T d", "Poli et al. 2023")
    step_kernel = "eager"

    def __init__(
        self,
        *,
        d_model: int,
        d_conv: int,
        filter_len: int,
        filter_width: int,
        n_features: int,
        sine_freq: float,
        kernel: str,
    ) -> None:
        super().__init__()
        at_least(0, d_conv=d_conv)
        at_least(1, filter_width=filter_width)
        at_least(2, filter_len=filter_len)
        if n_features < 3 or n_features % 2 == 0:
            raise ValueError(f"n_features={n_features} must be odd and at least 3: time, then cosines and sines")
        self.choose(kernel, {"fft": None, "reference": None})
        self.filter_len, self.n_features = filter_len, n_features
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.conv1d = nn.Conv1d(3 * d_model, 3 * d_model, d_conv, groups=3 * d_model) if d_conv else None
        self.out_proj = nn.Linear(d_model, d_model)
        self.skip = nn.Parameter(torch.randn(d_model))
        widths = (n_features, filter_width, filter_width, filter_width)
        self.filter = nn.ModuleList(nn.Linear(width, filter_width) for width in widths[:-1])
        self.filter_out = nn.Linear(filter_width, d_model, bias=False)
        self.sine_freq = nn.Parameter(torch.full((filter_width,), sine_freq))  # shared by all layers
        for parameter in (self.skip, self.sine_freq, *self.filter.parameters(), *self.filter_out.parameters()):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def _taps(self, length: int) -> Tensor:
        """Compute the filter (length, D), in float32 or wider: rounding time to bf16 would quantise it into steps."""
        dtype = torch.promote_types(self.skip.dtype, torch.float32)
        j = torch.arange(length, device=self.skip.device, dtype=dtype).unsqueeze(-1)
        with torch.autocast(j.device.type, enabled=False):
            n_waves = (self.n_features - 1) // 2
            waves = torch.linspace(1e-4, n_waves - 1, n_waves, device=j.device, dtype=dtype)
            angle = 2 * math.pi / self.filter_len * j * waves
            time = j / (self.filter_len - 1)
            h = torch.cat((time, angle.cos(), -angle.sin()), -1)  # exp(-i angle)
            for layer in self.filter:
                h = torch.sin(self.sine_freq * layer(h))
            fastest, slowest = (-math.log(1e-2) / reach for reach in (0.3, 1.5))
            rates = torch.linspace(slowest, fastest, len(self.skip), device=j.device, dtype=dtype)
            return torch.exp(-time * rates) * self.filter_out(h)

    def _gate(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        p, q, v = projected.chunk(3, -1)
        return p, q * v

    def _parallel(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, the input of the short convolution, and u."""
        projected = self.in_proj(x)
        p, u = self._gate(causal_conv(projected, self.conv1d.weight, self.conv1d.bias) if self.conv1d else projected)
        z = long_convolution(u, self._taps(x.shape[1]).mT, kernel=self.kernel) + self.skip * u
        return self.out_proj(p * z.to(p.dtype)), projected, u

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x)[0]

    def flops_per_token(self, seq_len: int) -> float:
        """Count projections, short convolution, and 10 d_model log2 T for the long one: two transforms of 5 n log2 n.

        The filter is left out, as it depends on no token: 2 W (F + 2 W + d_model) per position, once for a whole batch.
        """
        short = self.conv1d.weight.numel() if self.conv1d else 0
        d_model = self.out_proj.in_features
        return count_flops(self.in_proj.weight, self.out_proj.weight) + 2 * short + 10 * d_model * math.log2(seq_len)

    @torch.no_grad()
    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (window, u of all tokens (B, max_len, D), taps (max_len, D), position)."""
        d_model, dtype = self.out_proj.in_features, self.cache_dtype()
        n_before = self.conv1d.kernel_size[0] - 1 if self.conv1d else 0
        window = self.skip.new_zeros(batch_size, n_before, 3 * d_model, dtype=dtype)
        us = self.skip.new_zeros(batch_size, max_len, d_model, dtype=dtype)
        return window, us, self._taps(max_len), torch.tensor(position, device=us.device)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        window, us, taps, position = state
        y, projected, u = self._parallel(x)
        window.copy_(causal_window(projected, window.shape[1] + 1))
        us[:, : x.shape[1]] = u
        return y, (window, us, taps, position + x.shape[1])

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        window, us, taps, position = state
        projected = self.in_proj(x_t)
        if self.conv1d:
            projected, window = causal_conv_step(projected, window, self.conv1d.weight, self.conv1d.bias)
        p, u = self._gate(projected)
        us.index_copy_(1, position[None], u.unsqueeze(1).to(us.dtype))
        age = (position - torch.arange(len(taps), device=us.device)) % len(taps)  # entries of u for later tokens are 0
        z = torch.einsum("btd,td->bd", us.to(taps.dtype), taps[age]) + self.skip * u
        return self.out_proj(p * z.to(p.dtype)), (window, us, taps, position + 1)
