"""A corpus on disk: all its bytes in one memory-mapped Arrow file, built once, with a range for each split."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NotRequired, TypedDict, Unpack, get_args

import numpy as np
import torch
from torch import Tensor

from tasks import documents
from tasks.base import Split
from tasks.cache import kept
from tasks.packs import Document
from tasks.pages import PagedBytes, PageWriter
from tasks.source import SPLIT_SHARES, Source
from tasks.windows import Windowed

LAYOUT = 3
"""Part of the cache key: raise it when the meaning of a corpus's files changes."""


class Facts(TypedDict):
    """Facts that are available without reading the bytes, in `facts.json` beside them."""

    n_documents: int
    n_bytes: int
    sha256: str
    """SHA-256 of all bytes: train, validation and test, in this order."""
    ranges: dict[Split, list[int]]
    """First byte of each split, and the one after its last."""
    counts: dict[Split, list[int]]
    """Number of occurrences of each of the 256 byte values."""
    source: dict[str, str]
    """Facts about the source that rows must record besides its path: the commit of a data set of the hub."""


class Knobs(TypedDict):
    """Settings that name a corpus; `conf/task/text.yaml` explains each."""

    path: str
    glob: str
    config_name: str | None
    text_column: str
    max_bytes: int | None
    revision: NotRequired[str | None]
    sha256: NotRequired[str | None]
    cache_dir: str | None


class Corpus(Windowed):
    """Bytes of the corpus that `task.path` names. A byte is a token.

    The first use builds it under `cache_dir`, keyed by `Source.fingerprint` (for files, their content), so that an edit
    is noticed; later uses map it after verifying its checksums (`tasks.cache`). Nothing is read before the first use.
    The documents of a split follow each other, with a newline between where one ends without it (so that rows that are
    lines stay lines). A corpus of any size is never held in memory whole.

    Raises (at first use):
        ValueError: the documents cannot be loaded, or their hash is not `sha256`; the message is one line.
    """

    unit = "bytes"
    vocab_size = 256
    token_bytes = 1

    def __init__(self, **knobs: Unpack[Knobs]) -> None:
        super().__init__()
        self.path = knobs["path"]
        self.cache_dir = knobs["cache_dir"]
        self.sha256 = knobs.get("sha256")
        self.knobs = knobs

    @cached_property
    def folder(self) -> Path:
        """Folder of the corpus; built if it is missing or damaged."""
        with self.complaints():
            source = self._source()
            key = hashlib.sha256(f"{LAYOUT}\0{source.fingerprint()}".encode()).hexdigest()[:16]
            folder = _cache(self.cache_dir) / f"{re.sub(r'[^A-Za-z0-9]+', '-', Path(self.path).name)[:100]}-{key}"
            kept(folder, lambda built: _build(source, built, self.path, self.sha256))
            found = json.loads((folder / "facts.json").read_text())["sha256"]
            _check_sha256(self.path, self.sha256, found)
        return folder

    def _source(self) -> Source:
        knobs = self.knobs
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise ValueError(f"task.sha256={self.sha256} is no SHA-256: needs 64 hexadecimal digits")
        return documents.find(
            *(knobs["path"], knobs["glob"], knobs["config_name"], knobs["text_column"], knobs["max_bytes"]),
            revision=knobs.get("revision"),
            sha256=self.sha256,
        )

    @contextmanager
    def complaints(self) -> Iterator[None]:
        """Turn errors of the file system into one line."""
        try:
            yield
        except OSError as error:
            raise ValueError(f"task.path={self.path}, task.cache_dir={self.cache_dir}: {error}") from error

    @cached_property
    def facts(self) -> Facts:
        with self.complaints():
            facts: Facts = json.loads((self.folder / "facts.json").read_text())
        return facts

    @property
    def ranges(self) -> dict[Split, list[int]]:
        return self.facts["ranges"]

    @property
    def counts(self) -> dict[Split, list[int]]:
        return self.facts["counts"]

    def bytes_per_token_of(self, split: Split) -> float:
        return 1.0

    def n_bytes(self, device: torch.device) -> Tensor:
        return torch.ones(self.vocab_size, dtype=torch.long, device=device)

    @cached_property
    def _numbers(self) -> PagedBytes:
        with self.complaints():
            return PagedBytes(self.folder / "bytes.arrow")

    def pieces(self, split: Split) -> Iterator[np.ndarray]:
        """Yield the bytes of a split, in order, as views of the map."""
        return self._numbers.pieces(*self.ranges[split])

    def word(self, token: int) -> str:
        return chr(token) if 32 < token < 127 else {10: "\\n", 32: "␣"}.get(token, f"{token:02x}")

    def provenance(self) -> dict[str, str | int]:
        return {
            "corpus": self.path,
            "n_documents": self.facts["n_documents"],
            "n_bytes": self.facts["n_bytes"],
            "sha256": self.facts["sha256"],
            **self.facts["source"],
        }


def _cache(cache_dir: str | None) -> Path:
    if cache_dir == "":
        raise ValueError("task.cache_dir= is empty. Give a folder, or null")
    try:
        if cache_dir is not None:
            return Path(cache_dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "arch_bench"
    except RuntimeError as error:  # HOME is not set, and this machine has no entry for the user
        raise ValueError(f"task.cache_dir={cache_dir}: {error} Give task.cache_dir=FOLDER") from error


def _build(source: Source, folder: Path, path: str, sha256: str | None = None) -> None:
    """Fill a folder with the documents of the source."""
    before = source.fingerprint()
    with tempfile.TemporaryDirectory(dir=folder.parent) as workplace:
        facts = _write(source.groups(Path(workplace)), folder / "bytes.arrow")
    if source.fingerprint() != before:
        raise ValueError(f"task.path={path} was changed while it was read. Start again when it is whole")
    facts["source"] = source.provenance()
    try:
        _check_sha256(path, sha256, facts["sha256"])
    except ValueError:
        source.reject()
        raise
    for split, (start, end) in facts["ranges"].items():
        if start == end:
            raise ValueError(f"task.path={path}: no text for the {split} split ({facts['n_bytes']} bytes in all)")
    (folder / "facts.json").write_text(json.dumps(facts))


def _check_sha256(path: str, expected: str | None, found: str) -> None:
    if expected is not None and expected.lower() != found:
        raise ValueError(
            f"task.path={path}: its text has SHA-256 {found}, not task.sha256={expected}. Get the right one, or set "
            "task.sha256=null"
        )


def _write(groups: list[Iterator[Document]], file: Path) -> Facts:
    """Write the documents of all groups, one group after the other."""
    pages = PageWriter(file)
    ends, n_documents = [0], 0
    for group in groups:
        last = b"\n"
        for document in group:
            pages.add(b"" if last == b"\n" else b"\n")
            last = b""
            for piece in document:
                pages.add(piece)
                last = piece[-1:] or last
            n_documents += 1
        ends.append(pages.n_bytes)
    pages.close()
    if len(groups) == 1:
        shares = np.cumsum([0.0, *SPLIT_SHARES.values()])
        ends = [round(share * pages.n_bytes) for share in shares]
    written = PagedBytes(file)
    ranges = {split: list(ends_of) for split, ends_of in zip(get_args(Split), pairwise(ends), strict=True)}
    return Facts(
        n_documents=n_documents,
        n_bytes=pages.n_bytes,
        sha256=pages.sha256.hexdigest(),
        ranges=ranges,
        counts={split: written.counts(*range_) for split, range_ in ranges.items()},
        source={},
    )
