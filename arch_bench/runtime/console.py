"""Standard output and error, whatever is behind them: nothing, a reader who leaves, a full disk, another encoding.

Rows are what a command is for: it goes on, what cannot be written is dropped, and a character that the encoding lacks
becomes a question mark.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

_IS_LEFT = {errno.EPIPE, errno.EIO, errno.EBADF}
"""Of a pipe, of a terminal, and of what was never open for writing."""
_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Streams:
    """What became of standard output and error."""

    def __init__(self) -> None:
        self.full = ""
        """Why a disk took no more of what was written; empty: it took all."""


class _Leavable:
    """A stream; once its reader has left, all that is written to its file, by whatever way, goes nowhere."""

    def __init__(self, stream: TextIO, streams: Streams) -> None:
        self._stream, self._streams = stream, streams

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._or_drop():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # of a stream that could not be told to replace
                self._stream.write(text.encode("ascii", "replace").decode())
        return len(text)

    def flush(self) -> None:
        with self._or_drop():
            self._stream.flush()

    def close(self) -> None:
        """Keep the file: the next one that is opened would get its number, and all that is printed."""
        self.flush()

    @contextmanager
    def _or_drop(self) -> Iterator[None]:
        try:
            yield
        except ValueError:  # somebody has closed it
            self._stream = cast(TextIO, _Nowhere())
        except OSError as error:
            if error.errno not in _IS_LEFT | _IS_FULL:
                raise
            if error.errno in _IS_FULL:
                self._streams.full = error.strerror or str(error)
            self._drop()

    def _drop(self) -> None:
        try:
            number = self._stream.fileno()
        except (OSError, ValueError):  # it has none
            self._stream = cast(TextIO, _Nowhere())
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)  # with what is still in buffers
        os.close(nowhere)


class _Nowhere:
    """A stream that nothing comes of."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


@contextmanager
def leavable() -> Iterator[Streams]:
    """Within, standard output and error take everything. Yields what became of them."""
    mend()
    found = Streams()
    streams = [cast(TextIO, _Leavable(stream, found)) for stream in (sys.stdout, sys.stderr)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            yield found
        finally:
            for stream in streams:
                stream.flush()


def mend() -> None:
    """Open what this process was started without, as by a shell's `>&-`, and replace what an encoding lacks.

    A file that is opened later would get the number of a closed stream, and with it what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 (for as long as this process lives)
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            with suppress(AttributeError, OSError, ValueError):
                cast(Any, stream).reconfigure(errors="replace")
