"""The contract of a sequence mixer: one parallel form, one stepwise form, one honest state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from arch_bench.ops.kernel import choose_kernel

State = tuple[Any, ...]
"""What `step` carries from token to token: a tuple of tensors, or of such tuples."""


class Card(NamedTuple):
    """What the table of backbones says of a mixer. T positions, d d_model; other letters as the mixer's arguments."""

    family: str
    state: str
    """Numbers that one sequence carries per layer, after T tokens."""
    training: str
    """Operations per token and layer besides the projections, which take O(d^2) in every mixer."""
    decoding: str
    """The same for a token that is decoded."""
    source: str


class Mixer(nn.Module, ABC):
    """Moves information between positions: (batch, seq_len, d_model) -> the same shape, causally.

    Constructors are keyword-only, and raise ValueError for a size that cannot be, by its name. The device is the
    default device at construction (`with torch.device(...)`), so that a kernel is decided there, once.
    """

    card: ClassVar[Card | None] = None
    kernel: str
    """The implementation that runs, decided at construction; a row records it."""
    kernels: Mapping[str, str | None]
    """Every implementation of the parallel form, the fastest first, and why it cannot run here, or None."""
    step_kernel: str
    """The implementation behind `step`, which need not be that of the parallel form."""
    is_causal: ClassVar[bool] = True
    """Whether no position sees a later one."""
    takes_relative_positions: ClassVar[bool] = False
    """Whether the mixer itself can apply rotary or ALiBi positions, as attention can."""
    picks_by_score: ClassVar[bool] = False
    """Whether it picks what to see by comparing scores: rounded ones may pick otherwise, which is no error."""
    keeps_precision: ClassVar[bool] = False
    """Whether it computes in its weights' precision, also under autocast."""
    reads_whole_state: ClassVar[bool] = True
    """Whether each step reads all of its state: only then can the bytes be told that it moves."""
    counts_all_flops: ClassVar[bool] = True
    """Whether `flops_per_token` holds all of them, so that utilisation can be told."""

    damps_with_depth: ClassVar[bool] = False
    """Whether its authors start all that a model adds to its residual stream smaller, the deeper the model is."""

    def choose(self, kernel: str, kernels: Mapping[str, str | None]) -> None:
        """Decide `kernel` among `kernels`. Raises as `choose_kernel`."""
        self.kernels = kernels
        self.kernel = choose_kernel(kernel, kernels)

    def bare(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """The same work by plain calls of a library, to be compared with: name -> function of x."""
        return {}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """All positions at once, the way it is trained. x: (batch, seq_len, d_model)."""

    @abstractmethod
    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """An empty state for up to `max_len` tokens, on the module's device.

        `position` > 0 gives a state of the size and cost it has after that many tokens, for timing a decode at a
        context length without running the prompt first.
        """

    @abstractmethod
    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """`forward` over a prompt from an empty state, which it also fills. x: (batch, seq_len, d_model)."""

    @abstractmethod
    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """One token. x_t: (batch, d_model) -> (batch, d_model). May update the given state's tensors in place."""

    @abstractmethod
    def flops_per_token(self, seq_len: int) -> float:
        """Floating-point operations of `forward` per token, averaged over a causal sequence of `seq_len` tokens.

        What model FLOP utilisation counts: products with weights (`count_flops`) and between positions, 2 operations
        per multiply-add. The mathematics, whatever the kernel: masked pairs and recomputation are left out.
        """

    def elementwise_flops_per_token(self, seq_len: int) -> float:
        """The same for a recurrence that is no matrix product, where it is more than a few operations per channel."""
        return 0.0

    def state_bytes(self, max_len: int) -> int:
        """Bytes that one sequence carries, counted from the tensors themselves."""
        return count_bytes(self.init_state(1, max_len))

    def cache_dtype(self) -> torch.dtype:
        """The dtype activations have when they are cached: autocast's where it is on, else the parameters'."""
        weight = next(self.parameters())
        kind = weight.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return weight.dtype


def tensors(state: State) -> Iterator[Tensor]:
    """Every tensor of a nested state."""
    for item in state:
        if isinstance(item, Tensor):
            yield item
        else:
            yield from tensors(item)


def count_bytes(state: State) -> int:
    """Bytes of all tensors in a state."""
    return sum(t.numel() * t.element_size() for t in tensors(state))


def count_flops(*weights: Tensor) -> int:
    """Floating-point operations per token of linear maps and convolutions: a multiply-add for each entry."""
    return 2 * sum(weight.numel() for weight in weights)
