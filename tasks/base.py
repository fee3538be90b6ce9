"""The contract every task keeps, and the random streams that all of them draw from."""

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
    """What a task hands out: int64 of shape (batch, seq_len); the targets of a regression are float32."""

    inputs: Tensor
    """Token ids in [0, vocab_size)."""
    targets: Tensor
    """The token (of a regression, the number) to predict at that position, or `IGNORE`."""


class Task(ABC):
    """A distribution over (inputs, targets) at one sequence length.

    Constructors are keyword-only, take `seq_len` first, set `vocab_size` and end with `self.check()`. They are cheap:
    reading data waits for `sample`.
    """

    vocab_size: int
    bytes_per_token: float | None = None
    """Set by language modelling: the headline metric is then `bits_per_byte` instead of `token_accuracy`."""

    tolerance: float | None = None
    """Set by regression: targets are floating-point numbers. The model's output for token 0, which is never an input,
    is compared with them by the squared error, and is right within so much."""

    shows_answers: bool = False
    """Whether later inputs contain the targets, as in language modelling: an encoder would read them off."""

    def __init__(self, *, seq_len: int) -> None:
        self.seq_len = seq_len
        Task.check(self)

    def check(self) -> None:
        """Raise ValueError, naming the keys and the inequality that failed, if the knobs do not fit together.

        A constructor with knobs of its own ends with it; `with_length` asks again.
        """
        if self.seq_len < 1:
            raise ValueError(f"seq_len={self.seq_len} is too short: needs seq_len >= 1")

    @abstractmethod
    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        """Draw `batch_size` examples on `device`; every random number comes from `rng`, which lives there too."""

    @property
    def max_scored(self) -> int:
        """Scored positions of an example, at most. Fewer than all make the loss cheaper, never different."""
        return self.seq_len

    @property
    def mean_scored(self) -> float:
        """Scored positions of an example, on average: what its share in the mean of a mixture goes by."""
        return self.max_scored

    @property
    def n_prompt(self) -> int | None:
        """Tokens of the prompt, the same for every example (shorter ones are padded on the left).

        An answer follows that is written token by token: what is scored at the prompt's last position and at every
        later one is the next input. Generation gives a model the prompt and then its own tokens. None: the inputs do
        not depend on the answer (markers ask for it, or it is one token), or the whole sequence is one (a text).
        """
        return None

    def n_source(self, seq_len: int) -> int:
        """Leading positions, of `seq_len`, that are given whole before the first scored one: what an encoder may read.

        0: none, where the answers begin at once. The arithmetic of any length, whether or not an example is so long.
        Here all of a prompt but its last position, at which the answer begins.
        """
        asked = copy.copy(self)
        asked.seq_len = seq_len
        return 0 if asked.n_prompt is None else asked.n_prompt - 1

    def parts(self) -> dict[str, Task]:
        """What a test reports apart, by name: the components of a mixture, the depths of a needle. All of this length.

        Each speaks the same tokens, and is tested on examples of its own.
        """
        return {}

    def slices(self, inputs: Tensor) -> dict[str, Tensor]:
        """Kinds of positions whose loss a test reports apart, by name: masks (batch, seq_len), made from the inputs.

        They need not cover everything, and may overlap.
        """
        return {}

    def bytes_of(self, targets: Tensor) -> Tensor | None:
        """Count the bytes of the text that each target stands for: what the loss of a slice is shared by.

        None: every target counts as `bytes_per_token`.
        """
        return None

    def word(self, token: int) -> str:
        """How a token is written for people, in a few characters."""
        return str(token)

    def source(self, device: torch.device) -> torch.device:
        """Where `sample` should make the batches that `device` trains on: there, unless the data do not fit."""
        return device

    @abstractmethod
    def baselines(self) -> dict[str, float]:
        """What guessing scores in the headline metric, by the name of the guess."""

    @abstractmethod
    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        """The guess behind a baseline: probabilities, broadcastable to (batch, seq_len, vocab_size).

        Of a regression: numbers, (batch, seq_len).
        """

    def oracle(self, inputs: Tensor) -> Tensor | None:
        """The right token at every scored position, (batch, seq_len), computed from the input alone.

        None for a task that has no certain answer (language modelling).
        """
        return None

    def with_length(self, seq_len: int) -> Self:
        """The same task at another length: what a model trained at one length is tested on. Raises ValueError."""
        return self.resized(seq_len)

    def resized(self, seq_len: int) -> Self:
        """The same task, as if built with another `seq_len`: what a mixture trains on. Raises ValueError."""
        resized = copy.copy(self)
        resized.seq_len = seq_len
        resized.check()
        return resized

    def for_split(self, split: Split) -> Self:
        """The task on one split. A generated task differs by its stream only; a corpus by its range of the text."""
        if split not in get_args(Split):
            raise ValueError(f"split={split} is unknown; choose from: {', '.join(get_args(Split))}")
        return self

    def provenance(self) -> dict[str, str | int]:
        """Facts about the data that a row must carry so that others can find the same (a corpus and its hash)."""
        return {}


def stream(seed: int, split: Split, step: int, device: torch.device) -> torch.Generator:
    """The generator for one batch: a function of (seed, split, step) only, so order and resuming change nothing."""
    digest = hashlib.blake2b(f"{seed}/{split}/{step}".encode(), digest_size=8).digest()
    rng = torch.Generator(device=device)
    rng.manual_seed(int.from_bytes(digest, "big") >> 1)  # 63 bits: a CPU generator takes a signed 64-bit seed
    return rng
