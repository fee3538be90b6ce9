"""Bytes in a memory-mapped Arrow file, written and read in pages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PAGE_BYTES = 1 << 20
"""Size of one row of the Arrow file."""
CHUNK_BYTES = 64 * PAGE_BYTES
"""Size of one record batch, which is contiguous in memory."""


class PagedBytes:
    """Bytes in a memory-mapped Arrow file, as written by `PageWriter`."""

    def __init__(self, file: Path) -> None:
        import pyarrow  # `datasets` maps files with it too; importing pyarrow alone is half a second faster

        column = pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all().column("bytes")
        self.chunks: list[np.ndarray] = [_view(chunk.flatten()) for chunk in column.chunks]
        """Views of the map, uint8, each CHUNK_BYTES long but the last."""

    def pieces(self, start: int, end: int) -> Iterator[np.ndarray]:
        """Yield the bytes from `start` to `end` as views, one per chunk that holds some of them."""
        for i in range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES)):
            yield self.chunks[i][max(start - i * CHUNK_BYTES, 0) : end - i * CHUNK_BYTES]

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Return the bytes at `positions`, of any shape; loops over the chunks they are in, not over the positions."""
        chunk_of, place = np.divmod(positions, CHUNK_BYTES)
        gathered = np.empty(positions.shape, dtype=np.uint8)
        for i in np.unique(chunk_of):
            here = chunk_of == i
            gathered[here] = self.chunks[i][place[here]]
        return gathered

    def counts(self, start: int, end: int) -> list[int]:
        """Count each byte value from `start` to `end`."""
        totals = np.zeros(256, dtype=np.int64)
        for piece in self.pieces(start, end):
            for page in range(0, len(piece), PAGE_BYTES):  # bincount widens its input to 8 bytes per element
                totals += np.bincount(piece[page : page + PAGE_BYTES], minlength=256)
        return totals.tolist()


def _view(values: Any) -> np.ndarray:
    """View a uint8 Arrow array as NumPy without a copy; its own `to_numpy` would import pandas first."""
    return np.frombuffer(values.buffers()[1], dtype=np.uint8, count=len(values), offset=values.offset)


class PageWriter:
    """Writer that cuts a stream of bytes into the rows of an Arrow file."""

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
