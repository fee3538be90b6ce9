"""Sources of a corpus: the documents of each split, and a fingerprint that changes with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from tasks.base import Split
from tasks.packs import Document

SPLIT_SHARES: dict[Split, float] = {"train": 0.9, "validation": 0.05, "test": 0.05}
"""Shares of the bytes, used if the source does not assign documents to splits."""


class Source(ABC):
    """Documents and their fingerprint."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a key that changes with the documents. Computed at every start: nothing is decoded or unpacked."""

    @abstractmethod
    def groups(self, workplace: Path) -> list[Iterator[Document]]:
        """Return the documents of train, validation and test; or all in one group, to be cut by position.

        workplace: a folder to unpack into, kept until all documents have been read.
        """

    def provenance(self) -> dict[str, str]:
        """Return the facts that a row must record besides `task.path`; complete once `groups` has been called."""
        return {}

    def reject(self) -> None:
        """Delete the download, because it is not the requested text."""
        return
