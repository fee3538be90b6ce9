"""Data sets of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from tasks.base import Split
from tasks.packs import Document, brief, check_column, texts
from tasks.source import SPLIT_SHARES, Source

HUB_TIMEOUT_S = 5.0


class Hub(Source):
    """Data set of the Hugging Face hub: one text column, one document per row.

    Its own train, validation and test splits are kept if it has all three. Otherwise all rows are joined in order and
    cut by position: rows are often single lines, and assigning them one by one would put neighbouring lines of one
    article into different splits.

    With `max_bytes` it is streamed, not downloaded: whole documents from its start until they reach that size (each of
    its own splits, until it has its share of `SPLIT_SHARES` or ends).
    """

    def __init__(
        self, name: str, config_name: str | None, text_column: str, max_bytes: int | None, revision: str | None
    ) -> None:
        self.name = name
        self.config_name = config_name
        self.text_column = text_column
        self.max_bytes = max_bytes
        self.revision = revision
        self._commit: str | None = None

    def fingerprint(self) -> str:
        # The hub is not contacted: a finished build must open without a network. Provenance has the content's hash and,
        # if the hub reported it, the commit.
        taken = "" if self.max_bytes is None else f"\0{self.max_bytes}"
        asked = f"hub\0{self.name}\0{self.config_name}\0{self.text_column}{taken}\0@{self.revision}"
        return hashlib.sha256(asked.encode()).hexdigest()

    def provenance(self) -> dict[str, str]:
        return {} if self._commit is None else {"revision": self._commit}

    def groups(self, workplace: Path) -> list[Iterator[Document]]:
        splits = self._load()
        for rows in splits.values():
            check_column(rows, self.text_column, f"task.path={self.name}")
        if set(splits) >= set(get_args(Split)):
            return [self._documents([splits[split]], SPLIT_SHARES[split]) for split in get_args(Split)]
        return [self._documents(list(splits.values()), 1.0)]

    def _load(self) -> Any:
        import datasets
        from huggingface_hub import HfApi

        streaming = {} if self.max_bytes is None else {"streaming": True}
        self._commit = self.revision
        try:
            if not datasets.config.HF_HUB_OFFLINE:  # fails at once if offline; load_dataset alone retries for 23 s
                self._commit = HfApi().dataset_info(self.name, revision=self.revision, timeout=HUB_TIMEOUT_S).sha
            splits = datasets.load_dataset(self.name, self.config_name, revision=self._commit, **streaming)
        except Exception as error:  # the hub's HTTP library and its error classes change between versions
            at = "" if self.revision is None else f" at task.revision={self.revision}"
            raise ValueError(
                f"task.path={self.name} is no file or folder, and cannot be loaded as a data set of the hub{at} "
                f"({brief(error)}); without a network give a local path "
                "or task.path=stdlib, or set HF_HUB_OFFLINE=1 to use a data set downloaded before"
            ) from error
        self._commit = self._commit or _downloaded(splits)
        return splits

    def _documents(self, splits: list[Any], share: float) -> Iterator[Document]:
        room = math.inf if self.max_bytes is None else self.max_bytes * share
        for text in chain.from_iterable(texts(rows, self.text_column) for rows in splits):
            yield (text,)
            room -= len(text)
            if room <= 0:
                return


def _downloaded(splits: Any) -> str | None:
    """Return the commit of an earlier download of a data set, if its files record it."""
    for rows in splits.values():
        for address in rows.info.download_checksums or {}:
            if found := re.search("@([0-9a-f]{40})/", address):
                return found[1]
    return None
