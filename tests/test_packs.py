"""tasks/packs.py and tasks/formats.py: a file of any kind is read as the text in it, or refused in one line."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.feather
import pytest

from tasks.formats import kind_of, wide_encoding
from tasks.packs import Packs, Unreadable

TEXTS = ["Größe: a first text,\nof two lines.\n", 'a "second" one, with ünïcode', "a third\n"]
WHOLE = "".join(TEXTS).encode()


@pytest.fixture
def packs(tmp_path: Path) -> Packs:
    (tmp_path / "workplace").mkdir()
    return Packs("what was given", "text", tmp_path / "workplace")


def read(packs: Packs, file: Path) -> list[bytes]:
    """The documents of a file."""
    return [b"".join(document) for part in packs.parts(file, file.name) for document in packs.documents(part)]


def arrow_bytes(options: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": TEXTS, "n": [0, 1, 2]})
    with options(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet_bytes(columns: list[str] | None = None) -> bytes:
    file = io.BytesIO()
    rows = datasets.Dataset.from_dict({"n": [0, 1, 2], "text": TEXTS})
    rows.select_columns(columns or ["n", "text"]).to_parquet(file)
    return file.getvalue()


def csv_bytes(separator: str) -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=separator).writerows([["n", "text"], *enumerate(TEXTS)])
    return file.getvalue().encode()


def arrow_packed(content: bytes, codec: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def zip_bytes(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar_bytes(mode: Any = "w", **members: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def json_lines(column: str = "text") -> bytes:
    return "".join(json.dumps({"n": i, column: text}) + "\n" for i, text in enumerate(TEXTS)).encode()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, format=lzma.FORMAT_ALONE),
    "zst": lambda content: arrow_packed(content, "zstd"),
    "lz4": lambda content: arrow_packed(content, "lz4"),
    "zip": lambda content: zip_bytes(a=content),
    "tar": lambda content: tar_bytes(a=content),
    "tar.gz": lambda content: tar_bytes("w:gz", a=content),
    "tgz": lambda content: tar_bytes("w:gz", a=content),
    "gz.gz": lambda content: gzip.compress(gzip.compress(content)),
}
TABLES: dict[str, Callable[[], bytes]] = {
    "parquet": parquet_bytes,
    "arrow": lambda: arrow_bytes(pyarrow.ipc.new_file),
    "stream.arrow": lambda: arrow_bytes(pyarrow.ipc.new_stream),
    "feather": lambda: arrow_bytes(pyarrow.ipc.new_file),
    "jsonl": json_lines,
    "json": lambda: json.dumps([{"n": i, "text": text} for i, text in enumerate(TEXTS)]).encode(),
    "csv": lambda: csv_bytes(","),
    "tsv": lambda: csv_bytes("\t"),
    "jsonl.gz": lambda: gzip.compress(json_lines()),
    "parquet.zip": lambda: zip_bytes(**{"a.parquet": parquet_bytes()}),
}


@pytest.mark.parametrize("suffix", PACKED)
def test_packed_text_is_unpacked_whatever_its_name(suffix: str, packs: Packs, tmp_path: Path) -> None:
    content = PACKED[suffix](WHOLE)
    for name in (f"a.txt.{suffix}", "misleading.txt", "no_suffix"):
        if suffix == "lzma" and "." + suffix not in name:
            continue  # which begins with nothing of its own
        (tmp_path / name).write_bytes(content)
        assert read(packs, tmp_path / name) == [WHOLE]


@pytest.mark.parametrize("suffix", TABLES)
def test_each_row_of_a_table_is_a_document(suffix: str, packs: Packs, tmp_path: Path) -> None:
    file = tmp_path / f"[a] *table*.{suffix}"  # its name is no pattern
    file.write_bytes(TABLES[suffix]())
    assert read(packs, file) == [text.encode() for text in TEXTS]


def test_a_table_is_known_by_its_content(packs: Packs, tmp_path: Path) -> None:
    for content in (parquet_bytes(), arrow_bytes(pyarrow.ipc.new_stream), json_lines()):
        (tmp_path / "a.txt").write_bytes(content)
        assert read(packs, tmp_path / "a.txt") == [text.encode() for text in TEXTS]
    (tmp_path / "a.txt").write_bytes(json_lines("body"))
    assert read(packs, tmp_path / "a.txt") == [json_lines("body")], "JSON that has no such column is text like any"


def test_a_row_without_a_text_is_none(packs: Packs, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"n": 3}\n{"text": ""}\n')
    (tmp_path / "a.csv").write_text("text,n\nNA,1\nnull,\n1.0,2\n")
    assert read(packs, tmp_path / "a.jsonl") == [b"one", b""]
    assert read(packs, tmp_path / "a.csv") == [b"NA", b"null", b"1.0"], "words, not gaps"


def test_members_of_an_archive_come_by_name_without_those_of_its_packer(packs: Packs, tmp_path: Path) -> None:
    members = {
        "b.txt": b"two",
        "a.txt": b"one",
        "c/d.txt.gz": gzip.compress(b"three"),
        "empty": b"",
        "e.csv": b"text\nx",
    }
    hidden = {"__MACOSX/a.txt": b"no", ".DS_Store": b"no"}
    (tmp_path / "a.zip").write_bytes(zip_bytes(**members, **hidden))
    assert read(packs, tmp_path / "a.zip") == [b"one", b"two", b"three", b"x"]


def test_nothing_is_unpacked_outside_its_folder(packs: Packs, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_bytes(**{"../../escaped": b"no", "a": b"yes"}))
    (tmp_path / "a.tar").write_bytes(tar_bytes(**{"../../escaped": b"no"}))
    assert read(packs, tmp_path / "a.zip") == [b"yes"]
    with pytest.raises(Unreadable, match=r"a\.tar cannot be read as tar \(OutsideDestinationError"):
        read(packs, tmp_path / "a.tar")
    assert not list(tmp_path.rglob("escaped"))


def test_a_byte_order_mark_is_no_text(packs: Packs, tmp_path: Path) -> None:
    for name, content in {"a.txt": WHOLE, "a.jsonl": b'{"text": "one"}\n', "a.csv": b"text\none\n"}.items():
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + content)
    assert read(packs, tmp_path / "a.txt") == [WHOLE]
    assert read(packs, tmp_path / "a.jsonl") == read(packs, tmp_path / "a.csv") == [b"one"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt.gz", WHOLE, "is no gzip file, as its name says"),
        ("a.parquet", WHOLE, "is no parquet file, as its name says"),
        ("a.zip", gzip.compress(WHOLE)[:-9], "cannot be read as gzip (EOFError"),
        ("a.xz", WHOLE, "cannot be read as xz (LZMAError"),
        ("a.txt.zst", arrow_packed(WHOLE * 50, "zstd")[:-5], "cannot be read as zstd (OSError: Truncated"),
        ("a.bz2", bz2.compress(WHOLE)[:-5], "cannot be read as bzip2 (EOFError"),
        ("a.zip", zip_bytes(a=WHOLE)[:-30], "cannot be read as zip (ReadError"),
        ("a.parquet", parquet_bytes()[:-9], "cannot be read as parquet ("),
        ("a.jsonl", WHOLE, "cannot be read as json ("),
        ("a.jsonl", b'{"body": "one"}\n', "is no text column of task.path=what was given: a.jsonl; choose from: body"),
        ("a.csv", b"n,m\n1,2\n", "is no text column of task.path=what was given: a.csv; choose from: n, m"),
        ("a.parquet", parquet_bytes(["n"]), "is no text column of task.path=what was given: a.parquet; it has none"),
        ("a.docx", zip_bytes(a=WHOLE), "is a Word file, which is not read. Convert it"),
        ("a.txt", b"%PDF-1.7\n1 0 obj", "is a PDF file, which is not read. Convert it"),
        ("a.bin", b"SQLite format 3\x00\x10\x00", "is a SQLite file, which is not read. Convert it"),
        ("a.rar", b"Rar!\x1a\x07\x01\x00", "is a RAR file, which is not read. Convert it"),
        (
            "a.txt",
            "text".encode("utf-16"),
            "is UTF-16, and text is read as UTF-8. Convert it: iconv -f UTF-16 -t UTF-8",
        ),
        ("a.csv", "text\none".encode("utf-16"), "is UTF-16, and text"),
        ("a.txt.gz", gzip.compress("some text".encode("utf-16-le")), "a.txt is UTF-16LE, and text"),
    ],
    ids=range(19),
)
def test_what_cannot_be_read_is_named_in_one_line(
    name: str, content: bytes, complaint: str, packs: Packs, capfd: pytest.CaptureFixture[str]
) -> None:
    tmp_path = packs.workplace.parent
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable) as error:
        read(packs, tmp_path / name)
    assert complaint in str(error.value)
    assert name.removesuffix(".gz") in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", ""), "what a library says besides"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text", ["Plain words, and a line.\n", "Кіт сидить на вікні.\n", "Γάτα: ψάχνει ζεστό φαγητό.\n"]
)
def test_wide_letters_are_known_without_a_mark(encoding: str, text: str) -> None:
    assert wide_encoding((text * 9).encode(encoding)) == encoding.upper().replace("-LE", "LE").replace("-BE", "BE")


@pytest.mark.parametrize(
    "content",
    [
        b"plain text",
        "Größe, 世界 🙂\n".encode(),
        "Кіт сидить на вікні.\n".encode("koi8-u"),
        "Кіт сидить на вікні.\n".encode("cp1251"),
        "Où est le café ?\n".encode("latin-1"),
        "日本語の文章です。".encode("shift-jis"),
        bytes(range(200)),
        bytes(1000),
        b"\xff\xfe\x00\xd8 no surrogate follows",
        b"ORCHARDS are in bloom",
        b"PAR1 is a kind of file",
        b"BZh9 as well",
        b'{"an": "object"}',
    ],
)
def test_other_bytes_are_text_whatever_they_are(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert kind_of(tmp_path / "a", "a", "text") == "text"
    assert kind_of(tmp_path / "a", "a.txt", "text") == "text"
