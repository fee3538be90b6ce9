"""Documents in files of every supported kind: plain text, packed text after unpacking, each row of a table."""

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
"""Bytes of a file that are read at a time."""
ROWS_AT_ONCE = 100
"""Rows of a data set that are read at a time: 40 MB if rows are books."""

Document = Iterable[bytes]
"""Pieces of a document, in order: a document may be larger than memory."""


class Part(NamedTuple):
    """File to read: a given one, or one unpacked from it."""

    name: str
    """Name in messages: `docs.zip/letters/1.txt`."""
    path: Path
    kind: str
    """`text`, or the loader of `datasets` for its rows."""


class Unreadable(ValueError):
    """Raised when a file or a data set cannot be read, in one line that names it."""


class Packs:
    """Reader of files. Packed files are first unpacked into a folder: only then is the size of their text known."""

    def __init__(self, path: str, text_column: str, workplace: Path) -> None:
        """Keep the settings. path: `task.path`, for messages. workplace: our folder, kept until all parts are read."""
        self.path = path
        self.text_column = text_column
        self.workplace = workplace
        self._names = map(str, count())

    def parts(self, file: Path, name: str) -> Iterator[Part]:
        """Yield the parts of a file, in order of names; none for an empty file. Raises Unreadable."""
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
        """Yield the documents of one part: its text, or the text of each row of a table. Raises Unreadable."""
        if part.kind == "text":
            yield _pieces(part.path)
            return
        with self._complaints(part.name, part.kind):
            rows = self._rows(part)
            check_column(rows, self.text_column, f"task.path={self.path}: {part.name}")
            yield from ((text,) for text in texts(rows, self.text_column))

    def _rows(self, part: Part) -> Any:
        """Stream the rows of a table: the cache of `datasets` would not be keyed by the content."""
        import datasets

        datasets.utils.logging.set_verbosity(logging.CRITICAL)  # it logs many lines about errors that it then raises
        plain = self.workplace / f"{next(self._names)}.{part.kind}"  # a file's own name may be read as a pattern
        plain.symlink_to(part.path.resolve())
        how = _csv_columns(part) if part.kind == "csv" else {"parse_agent_traces": False} if part.kind == "json" else {}
        file, cache = glob.escape(str(plain.absolute())), str(self.workplace)
        return datasets.load_dataset(part.kind, data_files=file, split="train", streaming=True, cache_dir=cache, **how)

    @contextmanager
    def _complaints(self, name: str, kind: str) -> Iterator[None]:
        """Raise Unreadable instead of the errors that each library defines for itself."""
        try:
            yield
        except Unreadable:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the disk, not of the content
            raise Unreadable(f"task.path={self.path}: {name} cannot be read as {kind} ({brief(error)})") from error


def check_column(rows: Any, text_column: str, where: str) -> None:
    """Raise Unreadable if a data set has no text column of this name."""
    if rows.features is None:  # a stream of files without a schema: use the first row
        columns = [name for name, value in next(iter(rows), {}).items() if isinstance(value, str)]
    else:
        kinds = {name: getattr(kind, "dtype", "") for name, kind in rows.features.items()}
        columns = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
    if text_column not in columns:
        known = f"choose from: {', '.join(columns)}" if columns else "it has none"
        raise Unreadable(f"task.text_column={text_column} is no text column of {where}; {known}")


def texts(rows: Any, text_column: str) -> Iterator[bytes]:
    """Yield the text of each row, except rows without one."""
    for batch in rows.select_columns([text_column]).iter(batch_size=ROWS_AT_ONCE):
        yield from (text.encode() for text in batch[text_column] if text is not None)


def brief(error: Exception) -> str:
    """Return the message of an exception, shorter than a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _csv_columns(part: Part) -> dict[str, Any]:
    """Return CSV options that read every column as text: `NA` stays a word and 1.0 is not parsed as a number."""
    from datasets import Features, Value

    separator = "\t" if PurePath(part.name).suffix.lower() == ".tsv" else ","
    with part.path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=separator))
    return {"sep": separator, "na_filter": False, "features": Features({name: Value("string") for name in names})}


def _is_content(path: Path, folder: Path) -> bool:
    """Return True for a file of an archive that the packing program did not add for itself."""
    is_own = any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)
    return path.is_file() and not is_own


def _pieces(file: Path) -> Iterator[bytes]:
    """Yield the bytes of a file without a byte order mark, which is no part of the text."""
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
