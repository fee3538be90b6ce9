"""Base of mixers that see the last few tokens by a short convolution and the rest by a recurrent state."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Mixer, State, count_flops
from arch_bench.mixers.sizes import at_least
from arch_bench.ops.causal_conv import causal_conv, causal_conv_step, causal_window


class ConvolvedMixer(Mixer):
    """Mixer with u = silu(conv1d over the last d_conv projections), then a recurrence on u: `_project`, `_mix`.

    State: d_conv - 1 projections in the activations' dtype, and one of `state_shape` in float32.
    """

    step_kernel = "eager"
    conv1d: nn.Conv1d | None
    n_channels: int
    """Channels of the convolution."""
    state_shape: tuple[int, ...]
    """Shape of the state of one sequence; mostly heads, width of a key, width of a value."""

    def _build_conv(self, n_channels: int, d_conv: int, bias: bool) -> None:
        """Build the convolution; without taps u = silu(projection)."""
        at_least(0, d_conv=d_conv)
        self.n_channels = n_channels
        self.conv1d = nn.Conv1d(n_channels, n_channels, d_conv, groups=n_channels, bias=bias) if d_conv else None

    def _activate(self, u: Tensor) -> Tensor:
        return F.silu(u)

    @abstractmethod
    def _project(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Project (..., d_model) to the convolution's input (..., n_channels) and the token's other values."""

    @abstractmethod
    def _mix(self, u: Tensor, rest: tuple[Tensor, ...], state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return output (..., d_model) and last state, of all positions from an empty state or of one from `state`."""

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x)[0]

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, found = self._parallel(x)
        for kept, new in zip(state, found, strict=True):
            kept.copy_(new)
        return y, state

    def _parallel(self, x: Tensor) -> tuple[Tensor, State]:
        """Return the output and the state after the last position. x: (B, T, d_model)."""
        projected, rest = self._project(x)
        conv = self.conv1d
        u = self._activate(projected if conv is None else causal_conv(projected, conv.weight, conv.bias))
        y, last = self._mix(u, rest, None)
        return y, (causal_window(projected, self._n_taps()), last)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        window, last = state
        u_t, rest = self._project(x_t)
        if self.conv1d is not None:
            u_t, window = causal_conv_step(u_t, window, self.conv1d.weight, self.conv1d.bias)
        y_t, last = self._mix(self._activate(u_t), rest, last)
        return y_t, (window, last)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        weight = next(self.parameters())
        window = weight.new_zeros(batch_size, self._n_taps() - 1, self.n_channels, dtype=self.cache_dtype())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return window, weight.new_zeros(batch_size, *self.state_shape, dtype=dtype)

    def _n_taps(self) -> int:
        return self.conv1d.kernel_size[0] if self.conv1d else 1

    def _projection_flops(self) -> int:
        """Count the operations of the linear maps and the convolution."""
        return count_flops(*(m.weight for m in self.modules() if isinstance(m, nn.Linear | nn.Conv1d)))
