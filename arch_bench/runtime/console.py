"""Standard output and error that never fail: when closed, abandoned by their reader, on a full disk, or badly encoded.

Commands exist to produce rows, so they continue: unwritable text is dropped, and a character that the encoding lacks
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
"""Errors of an abandoned pipe, an abandoned terminal, and a descriptor never open for writing."""
_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Streams:
    """The state of standard output and error."""

    def __init__(self) -> None:
        self.full = ""
        """The error of a disk that stopped accepting output; empty if all was written."""


class _Leavable:
    """A stream that, once its reader has left, redirects its file to nowhere, for every way of writing to it."""

    def __init__(self, stream: TextIO, streams: Streams) -> None:
        self._stream, self._streams = stream, streams

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._or_drop():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # a stream that could not be reconfigured to replace characters
                self._stream.write(text.encode("ascii", "replace").decode())
        return len(text)

    def flush(self) -> None:
        with self._or_drop():
            self._stream.flush()

    def close(self) -> None:
        """Flush but keep the file: the next file opened would reuse its descriptor, and receive all printed text."""
        self.flush()

    @contextmanager
    def _or_drop(self) -> Iterator[None]:
        try:
            yield
        except ValueError:  # the stream was closed
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
        except (OSError, ValueError):  # the stream has no descriptor
            self._stream = cast(TextIO, _Nowhere())
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)  # buffered text goes there too
        os.close(nowhere)


class _Nowhere:
    """A stream that discards its input."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


@contextmanager
def leavable() -> Iterator[Streams]:
    """Protect standard output and error from write errors in this context. Yields their state."""
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
    """Open missing standard streams (as after a shell's `>&-`), and set stream encodings to replace characters.

    Otherwise a file opened later would get the descriptor of a closed stream, and receive all printed text.
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
