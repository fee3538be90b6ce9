"""Detection of the kind of a file, from its first bytes and, if those do not suffice, its name."""

from __future__ import annotations

import codecs
import json
from pathlib import Path, PurePath

HEAD_BYTES = 1 << 12
"""Number of leading bytes from which the kind of a file is detected."""
LINE_BYTES = 1 << 26
"""Longest first line that is read."""

PACKED = frozenset({"gzip", "bzip2", "xz", "zstd", "lz4"})
ARCHIVES = frozenset({"zip", "tar"})
ROWS = frozenset({"parquet", "arrow", "json", "csv"})
"""Loaders of `datasets` for files of rows."""

_BY_START = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"PAR1": "parquet",
    b"ARROW1\x00\x00": "arrow",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
    b"LZIP\x01": "lzip",
    b"\x1f\x9d": "compress",
    b"\xff\x06\x00\x00sNaPpY": "Snappy",
    b"\x89HDF\r\n": "HDF5",
    b"SQLite format 3\x00": "SQLite",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"\x93NUMPY": "NumPy",
    b"%PDF-": "PDF",
}
_BY_NAME = {
    **{".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".lzma": "xz", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"},
    **{".zip": "zip", ".tar": "tar", ".tgz": "gzip", ".tbz2": "bzip2", ".txz": "xz", ".tzst": "zstd"},
    **{".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"},
    **{".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"},
    **{".7z": "7-Zip", ".rar": "RAR", ".lz": "lzip", ".sz": "Snappy", ".orc": "ORC", ".avro": "Avro"},
    **{".npy": "NumPy", ".npz": "NumPy", ".h5": "HDF5", ".hdf5": "HDF5", ".sqlite": "SQLite", ".pdf": "PDF"},
    **{".docx": "Word", ".xlsx": "Excel", ".pptx": "PowerPoint", ".odt": "OpenDocument", ".epub": "EPUB"},
}
_READ = PACKED | ARCHIVES | ROWS | {"text"}
_WITHOUT_A_START = frozenset({"json", "csv", "xz", "tar"})
"""Kinds that have variants without a signature."""
_NOT_IN_TEXT = bytes({*range(9), *range(14, 27), *range(28, 32)})
"""Control characters that no text file has: all except white space and escape."""


def kind_of(file: Path, name: str, text_column: str) -> str:
    """Return `text`, or one of PACKED, ARCHIVES and ROWS. Raises ValueError, not naming the file, for other kinds.

    The content decides. JSON and CSV are detected by their names; JSON lines with `text_column` under any name.
    """
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    found, said = _by_content(head), _BY_NAME.get(PurePath(name).suffix.lower())
    if found is None and (encoding := wide_encoding(head)):
        raise ValueError(f"is {encoding}, and text is read as UTF-8. Convert it: iconv -f {encoding} -t UTF-8")
    if found is None and said in _READ - _WITHOUT_A_START and head:
        raise ValueError(f"is no {said} file, as its name says. Rename it by what it holds")
    kind = found or said or ("json" if _is_json_lines(file, head, text_column) else "text")
    if kind not in _READ or (kind == "zip" and said not in _READ | {None}):
        kind = said if kind == "zip" and said is not None else kind
        raise ValueError(f"is a {kind} file, which is not read. Convert it to text, Parquet or JSON lines")
    return kind


def unpacked_name(name: str) -> str:
    """Return the name of a packed file after unpacking."""
    path = PurePath(name)
    suffix = path.suffix.lower()
    if suffix in {".tgz", ".tbz2", ".txz", ".tzst"}:
        return str(path.with_suffix(".tar"))
    return str(path.with_suffix("")) if _BY_NAME.get(suffix) in PACKED else name


def wide_encoding(head: bytes) -> str | None:
    """Return UTF-16 or UTF-32 for text with its byte order mark, or whose letters are mostly of one small alphabet."""
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "UTF-32"),
        (codecs.BOM_UTF32_BE, "UTF-32"),
        (codecs.BOM_UTF16_LE, "UTF-16"),
        (codecs.BOM_UTF16_BE, "UTF-16"),
    ):
        if head.startswith(mark) and _shown_share(head, encoding) > 0:
            return encoding
    for encoding, start, step in (("UTF-32LE", 3, 4), ("UTF-32BE", 0, 4), ("UTF-16LE", 1, 2), ("UTF-16BE", 0, 2)):
        high = head[start::step]  # 0 in Latin text, 3 in Greek, 4 in Cyrillic, 6 in Arabic
        if max(map(high.count, range(9))) > 0.4 * len(high) > 3 and _shown_share(head, encoding) > 0.95:
            return encoding
    return None


def _shown_share(head: bytes, encoding: str) -> float:
    """Return the share of characters that can be printed; 0 if the bytes are not in this encoding."""
    try:
        letters = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return 0.0
    return sum(each.isprintable() or each.isspace() for each in letters) / max(1, len(letters))


def _by_content(head: bytes) -> str | None:
    for start, kind in _BY_START.items():
        if head.startswith(start):
            is_text = start.isascii() and start.decode().isprintable() and not _has_controls(head) and kind != "PDF"
            return None if is_text else kind  # a story may begin with ORCHARD, which is not an ORC file
    if head.startswith(b"\xff\xff\xff\xff") and 0 < int.from_bytes(head[4:8], "little") < 1 << 24:
        return "arrow"  # an Arrow stream begins with the length of its schema
    return "tar" if head[257:262] == b"ustar" else None


def _has_controls(head: bytes) -> bool:
    return len(head.translate(None, _NOT_IN_TEXT)) < len(head)


def _is_json_lines(file: Path, head: bytes, text_column: str) -> bool:
    """Return True if the first line is an object that has the text."""
    if not head.removeprefix(codecs.BOM_UTF8).startswith(b'{"'):
        return False
    with file.open("rb") as stream:
        line = stream.readline(LINE_BYTES)
    try:
        row = json.loads(line.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and isinstance(row.get(text_column), str)
