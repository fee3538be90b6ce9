"""Files that a reader sees whole or not at all, and what is left of those whose writer was killed."""

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
"""From when on a file of another machine, whose lock cannot be seen here, is nobody's."""


def _here() -> str:
    """Begin the name of this machine's files: with its own name, for locks are seen on one machine."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', platform.node())}-"


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears when all of it is on disk, or not at all: temporary name, fsync, rename. Makes its folder."""
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
    """Open a temporary file and lock it, so that no sweep takes it for one that a kill has left."""
    while True:
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115 (the caller closes it)
            dir=folder, prefix=_here(), suffix=SUFFIX, delete=False
        )
        with suppress(OSError):  # a file system without locks: a sweep cannot lock it either, and leaves it alone
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return cast(IO[bytes], file)
        file.close()  # swept up between the two


def sweep_up(folder: Path) -> None:
    """Remove what processes that were killed have left behind in a folder: at once here, of other machines in a day."""
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):  # another process sweeps too
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
