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
from typing import Any, TypedDict, Unpack, get_args

import numpy as np

from tasks import documents
from tasks.base import Split
from tasks.windows import Windowed

LAYOUT = 2
"""Part of the cache key: raise it when the files of a corpus change their meaning."""

PAGE_BYTES = 1 << 20
"""One row of the Arrow file."""
CHUNK_BYTES = 64 * PAGE_BYTES
"""One record batch: contiguous in memory."""


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


class Knobs(TypedDict):
    """What names a corpus; `conf/task/text.yaml` says what each is."""

    path: str
    glob: str
    config_name: str | None
    text_column: str
    max_bytes: int | None
    cache_dir: str | None


class Corpus(Windowed):
    """The bytes that `task.path` names. A byte is a token.

    The first use builds it under `cache_dir`, keyed by what the documents are (`Source.fingerprint`), so that an edit
    is noticed; later uses map it. Nothing is read before that. The documents of a split follow each other, with a
    newline between them where the former ends without one (so that rows that are lines stay lines). However large, it
    is never held in memory whole.

    Raises (at first use):
        ValueError: the documents cannot be had, in one line.
    """

    unit = "bytes"
    vocab_size = 256
    bytes_per_token = 1.0
    token_bytes = 1

    def __init__(self, **knobs: Unpack[Knobs]) -> None:
        super().__init__()
        self.path = knobs["path"]
        self.cache_dir = knobs["cache_dir"]
        self.knobs = knobs

    @cached_property
    def folder(self) -> Path:
        """Where the corpus is kept; built if it is not there yet."""
        with self.complaints():
            knobs = self.knobs
            source = documents.find(
                knobs["path"], knobs["glob"], knobs["config_name"], knobs["text_column"], knobs["max_bytes"]
            )
            key = hashlib.sha256(f"{LAYOUT}\0{source.fingerprint()}".encode()).hexdigest()[:16]
            folder = _cache(self.cache_dir) / f"{re.sub(r'[^A-Za-z0-9]+', '-', Path(self.path).name)[:100]}-{key}"
            if not folder.exists():
                _build(source, folder, self.path)
        return folder

    @contextmanager
    def complaints(self) -> Iterator[None]:
        """What the file system refuses, in one line."""
        try:
            yield
        except OSError as error:
            raise ValueError(f"task.path={self.path}, task.cache_dir={self.cache_dir}: {error}") from error

    @cached_property
    def facts(self) -> Facts:
        facts: Facts = json.loads((self.folder / "facts.json").read_text())
        return facts

    @property
    def ranges(self) -> dict[Split, list[int]]:
        return self.facts["ranges"]

    @property
    def counts(self) -> dict[Split, list[int]]:
        return self.facts["counts"]

    @cached_property
    def _numbers(self) -> PagedBytes:
        return PagedBytes(self.folder / "bytes.arrow")

    def pieces(self, split: Split) -> Iterator[np.ndarray]:
        """The bytes of a split, in order, as views of the map."""
        return self._numbers.pieces(*self.ranges[split])

    def word(self, token: int) -> str:
        return chr(token) if 32 < token < 127 else {10: "\\n", 32: "␣"}.get(token, f"{token:02x}")

    def provenance(self) -> dict[str, str | int]:
        return {
            "corpus": self.path,
            "n_documents": self.facts["n_documents"],
            "n_bytes": self.facts["n_bytes"],
            "sha256": self.facts["sha256"],
        }


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


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A folder to fill that then becomes `folder`: no process sees half of one, the first of several wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as workplace:
        built = Path(workplace, "corpus")
        built.mkdir()
        yield built
        try:
            built.replace(folder)
        except OSError:  # a folder that is not empty is never replaced
            if not folder.exists():
                raise


def _build(source: documents.Source, folder: Path, path: str) -> None:
    with building(folder) as built:
        facts = _write(source.groups(), built / "bytes.arrow")
        for split, (start, end) in facts["ranges"].items():
            if start == end:
                raise ValueError(f"task.path={path}: no text for the {split} split ({facts['n_bytes']} bytes in all)")
        (built / "facts.json").write_text(json.dumps(facts))


def _write(groups: list[Iterator[documents.Document]], file: Path) -> Facts:
    """Write the documents of each group after those of the one before."""
    pages = _PageWriter(file)
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
