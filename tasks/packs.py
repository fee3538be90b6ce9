"""The documents in files of any kind that is read: text as it is, packed text unpacked, each row of a table."""

from __future__ import annotations

import bz2
import codecs
import csv
import glob
import gzip
import logging
import lzma
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from tasks import formats

PIECE_BYTES = 1 << 20
"""What is read of a file at a time."""
ROWS_AT_ONCE = 100
"""What is read of a data set at a time: 40 MB, where rows are books."""

Document = Iterable[bytes]
"""Its pieces, one after the other: a document may be larger than memory."""


class Part(NamedTuple):
    """A file to read: one that is given, or that was packed in one."""

    name: str
    """For people: `docs.zip/letters/1.txt`."""
    path: Path
    kind: str
    """`text`, or the loader of `datasets` that reads its rows."""


class Unreadable(ValueError):
    """Raised when a file or a data set cannot be read, in one line that names it."""


class Packs:
    """Reads files. What is packed is first unpacked into a folder: only then is the size of the text known."""

    def __init__(self, path: str, text_column: str, workplace: Path) -> None:
        """path: `task.path`, for complaints. workplace: a folder of ours that lasts until all parts have been read."""
        self.path = path
        self.text_column = text_column
        self.workplace = workplace
        self._names = map(str, count())

    def parts(self, file: Path, name: str) -> Iterator[Part]:
        """Yield what a file holds, in order of names; nothing of an empty one. Raises Unreadable."""
        if not file.stat().st_size:
            return
        try:
            kind = formats.kind_of(file, name, self.text_column)
        except ValueError as error:
            raise Unreadable(f"task.path={self.path}: {name} {error}") from None
        if kind in formats.PACKED:
            inner = self.workplace / next(self._names)
            with self._complaints(name, kind), _OPENERS[kind](file) as packed, inner.open("wb") as out:
                shutil.copyfileobj(packed, out)
            yield from self.parts(inner, formats.unpacked_name(name))
        elif kind in formats.ARCHIVES:
            folder = self.workplace / next(self._names)
            with self._complaints(name, kind):
                shutil.unpack_archive(file, folder, kind, filter="data" if kind == "tar" else None)
            for member in sorted(each for each in folder.rglob("*") if _is_content(each, folder)):
                yield from self.parts(member, f"{name}/{member.relative_to(folder).as_posix()}")
        else:
            yield Part(name, file, kind)

    def documents(self, part: Part) -> Iterator[Document]:
        """Yield the documents of one part: the text, or that of each row of a table. Raises Unreadable."""
        if part.kind == "text":
            yield _pieces(part.path)
            return
        with self._complaints(part.name, part.kind):
            rows = self._rows(part)
            check_column(rows, self.text_column, f"task.path={self.path}: {part.name}")
            yield from ((text,) for text in texts(rows, self.text_column))

    def _rows(self, part: Part) -> Any:
        """The rows of a table as a stream: what `datasets` copies to its cache is not known by its content."""
        import datasets

        datasets.utils.logging.set_verbosity(logging.CRITICAL)  # it says in many lines what it then raises
        plain = self.workplace / f"{next(self._names)}.{part.kind}"  # any other name may be a pattern to it
        plain.symlink_to(part.path.resolve())
        how = _csv_columns(part) if part.kind == "csv" else {"parse_agent_traces": False} if part.kind == "json" else {}
        file, cache = glob.escape(str(plain.absolute())), str(self.workplace)
        return datasets.load_dataset(part.kind, data_files=file, split="train", streaming=True, cache_dir=cache, **how)

    @contextmanager
    def _complaints(self, name: str, kind: str) -> Iterator[None]:
        """Raise Unreadable in place of what each library has errors of its own for."""
        try:
            yield
        except Unreadable:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk, not of what it holds
            raise Unreadable(f"task.path={self.path}: {name} cannot be read as {kind} ({brief(error)})") from error


def check_column(rows: Any, text_column: str, where: str) -> None:
    """Raise Unreadable if a data set has no such column of text."""
    if rows.features is None:  # a stream of files that do not say: its first row does
        columns = [name for name, value in next(iter(rows), {}).items() if isinstance(value, str)]
    else:
        kinds = {name: getattr(kind, "dtype", "") for name, kind in rows.features.items()}
        columns = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
    if text_column not in columns:
        known = f"choose from: {', '.join(columns)}" if columns else "it has none"
        raise Unreadable(f"task.text_column={text_column} is no text column of {where}; {known}")


def texts(rows: Any, text_column: str) -> Iterator[bytes]:
    """Yield the text of each row that has one."""
    for batch in rows.select_columns([text_column]).iter(batch_size=ROWS_AT_ONCE):
        yield from (text.encode() for text in batch[text_column] if text is not None)


def brief(error: Exception) -> str:
    """Return what an exception says, in less than a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _csv_columns(part: Part) -> dict[str, Any]:
    """How CSV is read: every column is text, in which `NA` is a word and 1.0 no number."""
    from datasets import Features, Value

    separator = "\t" if PurePath(part.name).suffix.lower() == ".tsv" else ","
    with part.path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=separator))
    return {"sep": separator, "na_filter": False, "features": Features({name: Value("string") for name in names})}


def _is_content(path: Path, folder: Path) -> bool:
    """Whether it is a file of an archive, and not one that the packer made for itself."""
    is_own = any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)
    return path.is_file() and not is_own


def _pieces(file: Path) -> Iterator[bytes]:
    """A file as it is, but for a byte order mark, which is no part of the text."""
    with file.open("rb") as stream:
        piece = stream.read(PIECE_BYTES).removeprefix(codecs.BOM_UTF8)
        while piece:
            yield piece
            piece = stream.read(PIECE_BYTES)


def _unpacked_by_arrow(compression: str) -> Callable[[Path], Any]:
    def opened(file: Path) -> Any:
        import pyarrow

        return pyarrow.input_stream(str(file), compression=compression)

    return opened


_OPENERS: dict[str, Callable[[Path], Any]] = {
    "gzip": gzip.open,
    "bzip2": bz2.open,
    "xz": lzma.open,
    "zstd": _unpacked_by_arrow("zstd"),
    "lz4": _unpacked_by_arrow("lz4"),
}
