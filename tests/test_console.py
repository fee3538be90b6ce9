"""Streams whose reader leaves."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from arch_bench.runtime.console import leavable


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        yield stream


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("is_flushed", [True, False])
def test_what_nobody_reads_is_dropped(
    name: str, unread: TextIO, monkeypatch: pytest.MonkeyPatch, *, is_flushed: bool
) -> None:
    monkeypatch.setattr(sys, name, unread)
    with leavable():
        stream = getattr(sys, name)
        print("dropped", file=stream, flush=is_flushed)
        print("too", file=stream)
        assert stream.fileno() == unread.fileno()
    assert getattr(sys, name) is unread
    print("and what libraries write below Python", file=unread, flush=True)


@pytest.mark.parametrize("is_flushed", [True, False])
def test_a_full_disk_costs_what_is_printed_and_is_told(monkeypatch: pytest.MonkeyPatch, *, is_flushed: bool) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with leavable() as streams:
            print("a row that is on disk", flush=is_flushed)
            print("another")
        assert streams.full == os.strerror(errno.ENOSPC)


class Full(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Broken(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def test_a_stream_without_a_file_is_dropped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    with leavable() as streams:
        print("dropped")
        print("too")
    assert streams.full


def test_another_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(OSError, match="timed out"), leavable():
        print("why not?")


def test_what_an_encoding_lacks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for errors in ("strict", "surrogateescape"):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors=errors))
        with leavable():
            print("\N{GREEK SMALL LETTER MU} \udc80", flush=True)
        assert written.getvalue() == b"? ?\n"


def test_closing_a_stream_costs_what_follows_only(unread: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", unread)
    with leavable():
        sys.stdout.close()
        print("dropped", flush=True)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    with leavable():
        print("dropped")


_CLOSED = """
import os, sys
from arch_bench.runtime.console import leavable
with leavable():
    print("dropped")
    print("too", file=sys.stderr)
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    os.write(1, b"from below Python")
    os.write(2, b"from below Python")
assert file > 2
"""


def test_a_process_that_was_started_without_streams_prints_into_no_file(tmp_path: Path) -> None:
    command = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", command, sys.executable, _CLOSED, str(tmp_path / "row")], check=True)
    assert not (tmp_path / "row").read_bytes()


def test_what_is_read_comes_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with leavable():
        print("out")
        print("err", file=sys.stderr)
    assert capsys.readouterr() == ("out\n", "err\n")
