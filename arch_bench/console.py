"""Standard output and error whose reader may leave, as in `| head -2` or with a terminal that closes.

Rows are what a command is for: it goes on, and what nobody reads is dropped.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

_IS_LEFT = {errno.EPIPE, errno.EIO}
"""Of a pipe, and of a terminal."""


class _Leavable:
    """A stream; once its reader has left, all that is written to its file, by whatever way, goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._or_drop():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._or_drop():
            self._stream.flush()

    @contextmanager
    def _or_drop(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _IS_LEFT:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # with what is still in buffers
            os.close(nowhere)


@contextmanager
def leavable() -> Iterator[None]:
    """Within, whoever reads standard output or error may leave."""
    streams = [cast(TextIO, _Leavable(stream)) for stream in (sys.stdout, sys.stderr)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            yield
        finally:
            for stream in streams:
                stream.flush()
