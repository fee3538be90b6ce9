"""Atomic file writes, and cleanup of temporary files whose writer was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

SUFFIX = ".tmp"
_STALE_S = 86_400
"""Age in seconds at which another machine's file is stale: its lock cannot be seen from here."""


def _here() -> str:
    """Return the prefix of this machine's files: its own name, because locks are visible on one machine only."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', platform.node())}-"


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that appears whole or not at all: temporary name, fsync, rename. Makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path.parent)
    with file:
        try:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # others may read a shared folder; a temporary file is private
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _locked(folder: Path) -> IO[bytes]:
    """Open a temporary file and lock it, so that no sweep mistakes it for a stale one."""
    while True:
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115 (the caller closes it)
            dir=folder, prefix=_here(), suffix=SUFFIX, delete=False
        )
        with suppress(OSError):  # a file system without locks: a sweep cannot lock the file either, and leaves it alone
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return cast(IO[bytes], file)
        file.close()  # removed between opening and locking


def sweep_up(folder: Path) -> None:
    """Remove a folder's files left by killed processes: this machine's at once, other machines' after a day."""
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):  # another process may be cleaning up too
            if path.name.startswith(_here()):
                _remove_unlocked(path)
            elif path.stat().st_mtime < time.time() - _STALE_S:
                path.unlink()


def _remove_unlocked(path: Path) -> None:
    number = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOENT, errno.EACCES):
            raise
    finally:
        os.close(number)
