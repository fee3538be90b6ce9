"""The contract of a sequence mixer: a parallel form, a stepwise form, and a state with all that they carry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from arch_bench.ops.kernel import choose_kernel

State = tuple[Any, ...]
"""State that `step` carries from token to token: a tuple of tensors, or of such tuples."""


class Card(NamedTuple):
    """Costs of a mixer in the table of backbones. T positions, d d_model; other letters as the mixer's arguments."""

    family: str
    state: str
    """Numbers that one sequence carries per layer after T tokens."""
    training: str
    """Operations per token and layer in training, besides the projections, which take O(d^2) in every mixer."""
    decoding: str
    """Operations per decoded token and layer, likewise."""
    source: str


class Mixer(nn.Module, ABC):
    """Module that moves information between positions, causally: (batch, seq_len, d_model) -> the same shape.

    Constructors are keyword-only and raise ValueError for an invalid size, by its name. The device is the default
    device at construction (`with torch.device(...)`), where the kernel is chosen, once.
    """

    card: ClassVar[Card | None] = None
    kernel: str
    """Implementation that runs, chosen at construction; a row records it."""
    kernels: Mapping[str, str | None]
    """Every implementation of the parallel form, the fastest first, with the reason it cannot run here, or None."""
    step_kernel: str
    """Implementation behind `step`, which may differ from that of the parallel form."""
    is_causal: ClassVar[bool] = True
    """True if no position sees a later one."""
    takes_relative_positions: ClassVar[bool] = False
    """True if the mixer can apply rotary or ALiBi positions itself, as attention can."""
    picks_by_score: ClassVar[bool] = False
    """True if it selects positions by comparing scores: rounded scores may select others, which is no error."""
    keeps_precision: ClassVar[bool] = False
    """True if it computes in its weights' precision, also under autocast."""
    reads_whole_state: ClassVar[bool] = True
    """True if each step reads all of its state: only then is the number of bytes moved known."""
    counts_all_flops: ClassVar[bool] = True
    """True if `flops_per_token` is complete, so that utilisation can be computed."""

    damps_with_depth: ClassVar[bool] = False
    """True if its authors initialise all that a model adds to its residual stream smaller, the deeper the model is."""

    def choose(self, kernel: str, kernels: Mapping[str, str | None]) -> None:
        """Choose `kernel` among `kernels`. Raises as `choose_kernel`."""
        self.kernels = kernels
        self.kernel = choose_kernel(kernel, kernels)

    def bare(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return the same work by plain library calls, as a reference for speed: name -> function of x."""
        return {}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Compute all positions at once, as in training. x: (batch, seq_len, d_model)."""

    @abstractmethod
    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return an empty state for up to `max_len` tokens, on the module's device.

        `position` > 0 gives a state of the size and cost it has after that many tokens, for timing a decode at a
        context length without running the prompt first.
        """

    @abstractmethod
    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run `forward` over a prompt from an empty state and fill that state. x: (batch, seq_len, d_model)."""

    @abstractmethod
    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one token: (batch, d_model) -> (batch, d_model). May update the given state's tensors in place."""

    @abstractmethod
    def flops_per_token(self, seq_len: int) -> float:
        """Count floating-point operations of `forward` per token, averaged over a causal sequence of `seq_len` tokens.

        As for model FLOP utilisation: products with weights (`count_flops`) and between positions, 2 operations per
        multiply-add. The mathematics only, for any kernel: masked pairs and recomputation are left out.
        """

    def elementwise_flops_per_token(self, seq_len: int) -> float:
        """Count operations of a recurrence that is no matrix product, if above a few operations per channel."""
        return 0.0

    def state_bytes(self, max_len: int) -> int:
        """Count the bytes that one sequence carries, from the tensors themselves."""
        return count_bytes(self.init_state(1, max_len))

    def cache_dtype(self) -> torch.dtype:
        """Return the dtype of cached activations: autocast's if it is on, else the parameters'."""
        weight = next(self.parameters())
        kind = weight.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return weight.dtype


def tensors(state: State) -> Iterator[Tensor]:
    """Yield every tensor of a nested state."""
    for item in state:
        if isinstance(item, Tensor):
            yield item
        else:
            yield from tensors(item)


def count_bytes(state: State) -> int:
    """Count the bytes of all tensors in a state."""
    return sum(t.numel() * t.element_size() for t in tensors(state))


def count_flops(*weights: Tensor) -> int:
    """Count floating-point operations per token of linear maps and convolutions: a multiply-add for each entry."""
    return 2 * sum(weight.numel() for weight in weights)
