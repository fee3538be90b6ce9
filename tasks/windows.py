"""Windows of tokens on disk, at random offsets of a split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tasks.base import Split

RESIDENT_MAX_BYTES = 1 << 30
"""Largest split that is copied to the sampling device; a larger one is read from the memory map."""


class Numbers(Protocol):
    """Numbers in a memory map."""

    def pieces(self, start: int, end: int) -> Iterable[np.ndarray]:
        """Yield the numbers from `start` to `end` as views, in order."""

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Return the numbers at `positions`, of any shape."""


class Windowed(ABC):
    """Tokens on disk in disjoint train, validation and test ranges, and the meaning of each token."""

    unit = "tokens"
    path: str

    def __init__(self) -> None:
        self._resident: dict[tuple[Split, torch.device], Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the numbers: another process opens the file again."""
        state = vars(self) | {"_resident": {}}
        state.pop("_numbers", None)
        return state

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @property
    @abstractmethod
    def ranges(self) -> dict[Split, list[int]]:
        """First token of each split, and the one after its last."""

    @property
    @abstractmethod
    def counts(self) -> dict[Split, list[int]]:
        """Number of occurrences of each token, by split."""

    @abstractmethod
    def bytes_per_token_of(self, split: Split) -> float:
        """Return the mean number of bytes per token of the split, which converts its loss to bits per byte."""

    @abstractmethod
    def n_bytes(self, device: torch.device) -> Tensor:
        """Return the number of bytes that each token stands for: (vocab_size,)."""

    @property
    @abstractmethod
    def token_bytes(self) -> int:
        """Bytes of one token on disk and in memory."""

    @cached_property
    @abstractmethod
    def _numbers(self) -> Numbers: ...

    @abstractmethod
    def word(self, token: int) -> str:
        """Return a token as at most 8 printable characters; no two tokens look the same."""

    @abstractmethod
    def provenance(self) -> dict[str, str | int]:
        """Return the facts that others need to find the same tokens."""

    def is_resident(self, split: Split) -> bool:
        """Return True if the split is kept in the memory of the sampling device."""
        start, end = self.ranges[split]
        return (end - start) * self.token_bytes <= RESIDENT_MAX_BYTES

    def windows(self, split: Split, n: int, length: int, rng: torch.Generator, device: torch.device) -> Tensor:
        """Draw `n` windows of the split, offsets equally likely: (n, length) on `device`, in the type on disk."""
        start, end = self.ranges[split]
        if end - start < length:
            raise ValueError(
                f"seq_len={length - 1} is too long for the {split} split of task.path={self.path}: "
                f"needs seq_len + 1 = {length} <= {end - start} {self.unit}"
            )
        offsets = below(end - start - length + 1, n, rng, device)
        if self.is_resident(split):
            return self._on_device(split, device).unfold(0, length, 1)[offsets]
        positions = start + offsets.cpu().numpy()[:, None] + np.arange(length)
        return torch.from_numpy(self._numbers.gather(positions)).to(device)

    def _on_device(self, split: Split, device: torch.device) -> Tensor:
        if (split, device) not in self._resident:
            pieces = self._numbers.pieces(*self.ranges[split])
            self._resident[split, device] = torch.from_numpy(np.concatenate(list(pieces))).to(device)
        return self._resident[split, device]


_NEARLY_EVEN = 1 << 24


def below(limit: int, n: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """Draw `n` numbers from 0 ... limit - 1, each equally often.

    `torch.randint` takes the remainder of 32 bits, so with a limit of 2 * 10^8 the lower half is drawn 5 % more often.
    Up to _NEARLY_EVEN the bias is below 0.4 %, and earlier draws from small corpora stay the same.
    """
    if limit <= _NEARLY_EVEN:
        return torch.randint(limit, (n,), generator=rng, device=device)
    return torch.randint(1 << 62, (n,), generator=rng, device=device) % limit
