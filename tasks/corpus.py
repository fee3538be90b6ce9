"""A corpus on disk: all its bytes in one memory-mapped Arrow file, built once, with a range for each split."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor

from tasks import documents
from tasks.base import Split

LAYOUT = 1
"""Part of the cache key: raise it when the files of a corpus change their meaning."""

PAGE_BYTES = 1 << 20
"""One row of the Arrow file."""
CHUNK_BYTES = 64 * PAGE_BYTES
"""One record batch: contiguous in memory."""
RESIDENT_MAX_BYTES = 1 << 30
"""A split up to this size is copied to the device that samples; a larger one is read from the memory map."""


class Facts(TypedDict):
    """What is known without reading the bytes: `facts.json` beside them."""

    n_documents: int
    n_bytes: int
    sha256: str
    """Of all bytes: train, validation and test, one after the other."""
    ranges: dict[Split, list[int]]
    """The first byte of each split and the one after its last."""
    counts: dict[Split, list[int]]
    """How often each of the 256 byte values occurs."""


class Corpus:
    """The bytes that `task.path` names, in disjoint train, validation and test ranges.

    The first use builds it under `cache_dir`, keyed by what the documents are (`Source.fingerprint`), so that an edit
    is noticed; later uses map it. Nothing is read before that. The documents of a split follow each other, with a
    newline between them where the former ends without one (so that rows that are lines stay lines).

    Raises (at first use):
        ValueError: the documents cannot be had, in one line.
    """

    def __init__(
        self, *, path: str, glob: str, config_name: str | None, text_column: str, cache_dir: str | None
    ) -> None:
        self.path = path
        self.glob = glob
        self.config_name = config_name
        self.text_column = text_column
        self.cache_dir = cache_dir
        self._resident: dict[tuple[Split, torch.device], Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the bytes: another process opens the file again."""
        state = vars(self) | {"_resident": {}}
        state.pop("_bytes", None)
        return state

    @cached_property
    def folder(self) -> Path:
        """Where the corpus is kept; built if it is not there yet."""
        try:
            source = documents.find(self.path, self.glob, self.config_name, self.text_column)
            key = hashlib.sha256(f"{LAYOUT}\0{source.fingerprint()}".encode()).hexdigest()[:16]
            folder = _cache(self.cache_dir) / f"{re.sub(r'[^A-Za-z0-9]+', '-', Path(self.path).name)}-{key}"
            if not folder.exists():
                _build(source, folder, self.path)
        except OSError as error:
            raise ValueError(f"task.path={self.path}, task.cache_dir={self.cache_dir}: {error}") from error
        return folder

    @cached_property
    def facts(self) -> Facts:
        facts: Facts = json.loads((self.folder / "facts.json").read_text())
        return facts

    @cached_property
    def _bytes(self) -> PagedBytes:
        return PagedBytes(self.folder / "bytes.arrow")

    def is_resident(self, split: Split) -> bool:
        """Whether the split is kept in the memory of the device that samples."""
        start, end = self.facts["ranges"][split]
        return end - start <= RESIDENT_MAX_BYTES

    def windows(self, split: Split, n: int, length: int, rng: torch.Generator, device: torch.device) -> Tensor:
        """`n` windows of the split, every offset equally likely: uint8 (n, length) on `device`."""
        start, end = self.facts["ranges"][split]
        if end - start < length:
            raise ValueError(
                f"seq_len={length - 1} is too long for the {split} split of task.path={self.path}: "
                f"needs seq_len + 1 = {length} <= {end - start} bytes"
            )
        offsets = torch.randint(end - start - length + 1, (n,), generator=rng, device=device)
        if self.is_resident(split):
            return self._on_device(split, device).unfold(0, length, 1)[offsets]
        positions = start + offsets.cpu().numpy()[:, None] + np.arange(length)
        return torch.from_numpy(self._bytes.gather(positions)).to(device)

    def _on_device(self, split: Split, device: torch.device) -> Tensor:
        if (split, device) not in self._resident:
            pieces = self._bytes.pieces(*self.facts["ranges"][split])
            self._resident[split, device] = torch.from_numpy(np.concatenate(list(pieces))).to(device)
        return self._resident[split, device]


class PagedBytes:
    """Bytes in a memory-mapped Arrow file, as written by `_write`."""

    def __init__(self, file: Path) -> None:
        import pyarrow  # what `datasets` would map it with, without half a second to import that

        column = pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all().column("bytes")
        self.chunks: list[np.ndarray] = [_view(chunk.flatten()) for chunk in column.chunks]
        """Views of the map, uint8, each CHUNK_BYTES long but the last."""

    def pieces(self, start: int, end: int) -> Iterator[np.ndarray]:
        """The bytes from `start` to `end` as views, one for each chunk that holds some of them."""
        for i in range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES)):
            yield self.chunks[i][max(start - i * CHUNK_BYTES, 0) : end - i * CHUNK_BYTES]

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """The bytes at `positions`, of any shape; loops over the chunks they are in, not over the positions."""
        chunk_of, place = np.divmod(positions, CHUNK_BYTES)
        gathered = np.empty(positions.shape, dtype=np.uint8)
        for i in np.unique(chunk_of):
            here = chunk_of == i
            gathered[here] = self.chunks[i][place[here]]
        return gathered

    def counts(self, start: int, end: int) -> list[int]:
        """How often each byte value occurs from `start` to `end`."""
        totals = np.zeros(256, dtype=np.int64)
        for piece in self.pieces(start, end):
            for page in range(0, len(piece), PAGE_BYTES):  # bincount widens what it counts to 8 bytes each
                totals += np.bincount(piece[page : page + PAGE_BYTES], minlength=256)
        return totals.tolist()


def _view(values: Any) -> np.ndarray:
    """A uint8 Arrow array where it lies; its own `to_numpy` imports pandas first."""
    return np.frombuffer(values.buffers()[1], dtype=np.uint8, count=len(values), offset=values.offset)


class _PageWriter:
    """Cuts a stream of bytes into the rows of an Arrow file."""

    def __init__(self, file: Path) -> None:
        from datasets import Features, List, Value
        from datasets.arrow_writer import ArrowWriter

        features = Features({"bytes": List(Value("uint8"))})
        self.rows = ArrowWriter(path=str(file), features=features, writer_batch_size=CHUNK_BYTES // PAGE_BYTES)
        self.pending = bytearray()
        self.n_bytes = 0
        self.sha256 = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self.sha256.update(data)
        self.n_bytes += len(data)
        self.pending += data
        while len(self.pending) >= PAGE_BYTES:
            self._write(self.pending[:PAGE_BYTES])
            del self.pending[:PAGE_BYTES]

    def close(self) -> None:
        if self.pending:
            self._write(self.pending)
        self.rows.finalize()

    def _write(self, page: bytearray) -> None:
        self.rows.write({"bytes": np.frombuffer(bytes(page), dtype=np.uint8)})


def _cache(cache_dir: str | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "arch_bench"


def _build(source: documents.Source, folder: Path, path: str) -> None:
    """Build a corpus beside its final place and rename it: no process sees half of one, the first of several wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as workplace:
        built = Path(workplace, "corpus")
        built.mkdir()
        facts = _write(source.groups(), built / "bytes.arrow")
        for split, (start, end) in facts["ranges"].items():
            if start == end:
                raise ValueError(f"task.path={path}: no text for the {split} split ({facts['n_bytes']} bytes in all)")
        (built / "facts.json").write_text(json.dumps(facts))
        try:
            built.replace(folder)
        except OSError:  # a folder that is not empty is never replaced
            if not folder.exists():
                raise


def _write(groups: list[Iterator[bytes]], file: Path) -> Facts:
    """Write the documents of each group after those of the one before."""
    pages = _PageWriter(file)
    ends, n_documents = [0], 0
    for group in groups:
        former = b"\n"
        for document in group:
            pages.add(document if former.endswith(b"\n") else b"\n" + document)
            former = document
            n_documents += 1
        ends.append(pages.n_bytes)
    pages.close()
    if len(groups) == 1:
        shares = np.cumsum([0.0, *documents.SPLIT_SHARES.values()])
        ends = [round(share * pages.n_bytes) for share in shares]
    written = PagedBytes(file)
    ranges = {split: list(ends_of) for split, ends_of in zip(get_args(Split), pairwise(ends), strict=True)}
    return Facts(
        n_documents=n_documents,
        n_bytes=pages.n_bytes,
        sha256=pages.sha256.hexdigest(),
        ranges=ranges,
        counts={split: written.counts(*range_) for split, range_ in ranges.items()},
    )
