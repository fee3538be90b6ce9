"""Streams whose reader leaves."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

from arch_bench.console import leavable


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


def test_a_full_disk_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="No space left"), leavable():
        print("a config that is to be kept")


def test_what_is_read_comes_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with leavable():
        print("out")
        print("err", file=sys.stderr)
    assert capsys.readouterr() == ("out\n", "err\n")
