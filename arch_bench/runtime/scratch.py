"""Temporary folders with the lifetime of a process. The next command removes folders left by killed processes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "arch-bench."
LONGEST = 64
"""Maximum bytes of a folder's path that leave room for a UNIX socket's name: of 104 on macOS, 108 on Linux."""
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def folder(*, is_short: bool = False) -> Iterator[Path]:
    """Yield a new private folder, and remove it on exit.

    is_short: the folder will hold sockets, so a long TMPDIR is avoided. Raises OSError if no folder fits.
    """
    parent = short() if is_short else Path(tempfile.gettempdir())
    _clear_up(parent)
    path, lock = _locked(parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def short(longest: int = LONGEST) -> Path:
    """Return TMPDIR, or if its path is too long for sockets, a temporary folder with a short enough path.

    Raises OSError, naming TMPDIR, if there is none.
    """
    usual = tempfile.gettempdir()
    for path in (usual, *_SHORT):
        if len(os.fsencode(path)) <= longest and os.access(path, os.W_OK | os.X_OK) and Path(path).is_dir():
            return Path(path)
    why = f"too long a path for the name of a socket; set TMPDIR to a folder whose path has at most {longest} bytes"
    raise OSError(errno.ENAMETOOLONG, why, f"TMPDIR={usual}")


def _locked(parent: Path) -> tuple[Path, int]:
    """Make a folder and lock it. The lock ends with this process, however the process ends."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks: no process can clear up there, so none does
            fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():  # else another process removed it before it was locked
            return path, lock
        os.close(lock)


def _clear_up(parent: Path) -> None:
    """Remove folders left by processes that have ended."""
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it belongs to another user, or was just removed
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid():
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
