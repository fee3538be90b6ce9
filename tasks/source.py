"""What a corpus is made from: documents of each split, and a way to tell that they have changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from tasks.base import Split
from tasks.packs import Document

SPLIT_SHARES: dict[Split, float] = {"train": 0.9, "validation": 0.05, "test": 0.05}
"""Of the bytes, where the source does not say which document belongs to which split."""


class Source(ABC):
    """Documents, and a way to tell that they have changed."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the documents do. Computed at every start, so it decodes and unpacks nothing."""

    @abstractmethod
    def groups(self, workplace: Path) -> list[Iterator[Document]]:
        """The documents of train, validation and test; or all in one group, to be cut by position.

        workplace: a folder to unpack into, which lasts until all have been read.
        """

    def provenance(self) -> dict[str, str]:
        """What a row must say of it besides `task.path`; known once `groups` has been asked."""
        return {}

    def reject(self) -> None:
        """Forget what was downloaded, for it is not what was asked for."""
        return
