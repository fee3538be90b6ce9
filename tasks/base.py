"""The contract of every task, and the random streams that tasks draw from."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

IGNORE = -100
"""Target of a position that is not scored (the default `ignore_index` of PyTorch's cross-entropy)."""

Split = Literal["train", "validation", "test"]


class Batch(NamedTuple):
    """Inputs and targets, int64 of shape (batch, seq_len); float32 targets in a regression."""

    inputs: Tensor
    """Token ids in [0, vocab_size)."""
    targets: Tensor
    """The token to predict at that position (in a regression, the number), or `IGNORE`."""


class Task(ABC):
    """A distribution over (inputs, targets) at one sequence length.

    Constructors are keyword-only, take `seq_len` first, set `vocab_size` and end with `self.check()`. They are cheap:
    reading data waits for `sample`.
    """

    vocab_size: int
    bytes_per_token: float | None = None
    """Bytes per token, set by language modelling: the headline metric is then `bits_per_byte`, not `token_accuracy`."""

    tolerance: float | None = None
    """Tolerance of a regression, whose targets are floating-point numbers. The model's output for token 0, never
    an input, is scored by its squared error and counts as right within this tolerance."""

    shows_answers: bool = False
    """True if later inputs contain the targets, as in language modelling: an encoder could read them off."""

    def __init__(self, *, seq_len: int) -> None:
        self.seq_len = seq_len
        Task.check(self)

    def check(self) -> None:
        """Raise ValueError, naming the keys and the failed inequality, if the settings do not fit together.

        A constructor with settings of its own calls it last; `with_length` calls it again.
        """
        if self.seq_len < 1:
            raise ValueError(f"seq_len={self.seq_len} is too short: needs seq_len >= 1")

    @abstractmethod
    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        """Draw `batch_size` examples on `device`; every random number comes from `rng`, which is on the same device."""

    @property
    def max_scored(self) -> int:
        """Maximum number of scored positions per example. Fewer than seq_len make the loss cheaper, never different."""
        return self.seq_len

    @property
    def mean_scored(self) -> float:
        """Mean number of scored positions in an example: the weight of its share in the mean of a mixture."""
        return self.max_scored

    @property
    def n_prompt(self) -> int | None:
        """Number of prompt tokens, the same for every example (shorter prompts are padded on the left).

        The answer follows token by token: the target at the prompt's last position and at every later one is the
        next input. Generation gives a model the prompt and then its own tokens. None: the inputs do not depend on
        the answer (markers ask for it, or it is one token), or the whole sequence is the answer (a text).
        """
        return None

    def n_source(self, seq_len: int) -> int:
        """Return how many leading positions, of `seq_len`, precede the first scored one: an encoder may read these.

        0 if the answers begin at once. The formula holds for any length, even one that no example has. The default
        is the prompt without its last position, at which the answer begins.
        """
        asked = copy.copy(self)
        asked.seq_len = seq_len
        return 0 if asked.n_prompt is None else asked.n_prompt - 1

    def parts(self) -> dict[str, Task]:
        """Return the tasks that a test reports separately, by name: components of a mixture, depths of a needle.

        All have this length and the same tokens, and each is tested on examples of its own.
        """
        return {}

    def slices(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return masks (batch, seq_len) of positions whose loss a test reports separately, by name, from the inputs.

        They need not cover every position and may overlap.
        """
        return {}

    def bytes_of(self, targets: Tensor) -> Tensor | None:
        """Count the bytes of text that each target stands for: the loss of a slice is divided by their sum.

        None: every target counts as `bytes_per_token`.
        """
        return None

    def word(self, token: int) -> str:
        """Return a readable form of a token, a few characters long."""
        return str(token)

    def source(self, device: torch.device) -> torch.device:
        """Return the device to sample batches for `device` on: the same, unless the data do not fit there."""
        return device

    @abstractmethod
    def baselines(self) -> dict[str, float]:
        """Return the score of each guess in the headline metric, by the name of the guess."""

    @abstractmethod
    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        """Return a baseline's guess: probabilities, broadcastable to (batch, seq_len, vocab_size).

        In a regression: numbers, (batch, seq_len).
        """

    def oracle(self, inputs: Tensor) -> Tensor | None:
        """Return the right token at every scored position, (batch, seq_len), computed from the input alone.

        None for a task that has no certain answer (language modelling).
        """
        return None

    def with_length(self, seq_len: int) -> Self:
        """Return the same task at another length, to test a model trained at this one. Raises ValueError."""
        return self.resized(seq_len)

    def resized(self, seq_len: int) -> Self:
        """Return the task as if built with another `seq_len`; a mixture trains on it. Raises ValueError."""
        resized = copy.copy(self)
        resized.seq_len = seq_len
        resized.check()
        return resized

    def for_split(self, split: Split) -> Self:
        """Return the task on one split: a generated task differs in its stream only, a corpus in its range."""
        if split not in get_args(Split):
            raise ValueError(f"split={split} is unknown; choose from: {', '.join(get_args(Split))}")
        return self

    def provenance(self) -> dict[str, str | int]:
        """Return facts that a row must record so that others can find the same data (a corpus and its hash)."""
        return {}


def stream(seed: int, split: Split, step: int, device: torch.device) -> torch.Generator:
    """Return the generator for one batch, a function of (seed, split, step) only: order and resuming change nothing."""
    digest = hashlib.blake2b(f"{seed}/{split}/{step}".encode(), digest_size=8).digest()
    rng = torch.Generator(device=device)
    rng.manual_seed(int.from_bytes(digest, "big") >> 1)  # 63 bits: a CPU generator takes a signed 64-bit seed
    return rng
