"""Folders for what lives as long as a process. The next command removes those that a kill left behind."""

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
"""Bytes of a folder's path that leave room for the name of a UNIX socket below it: of 104 on macOS, 108 on Linux."""
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def folder(*, is_short: bool = False) -> Iterator[Path]:
    """Yield a new private folder, and remove it in the end.

    is_short: sockets will be in it, so a long TMPDIR is passed over. Raises OSError where there is no place for it.
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
    """Return TMPDIR, or where its path is too long for sockets a folder for temporary files that is short enough.

    Raises OSError, naming TMPDIR, where there is none.
    """
    usual = tempfile.gettempdir()
    for path in (usual, *_SHORT):
        if len(os.fsencode(path)) <= longest and os.access(path, os.W_OK | os.X_OK) and Path(path).is_dir():
            return Path(path)
    why = f"too long a path for the name of a socket; set TMPDIR to a folder whose path has at most {longest} bytes"
    raise OSError(errno.ENAMETOOLONG, why, f"TMPDIR={usual}")


def _locked(parent: Path) -> tuple[Path, int]:
    """Make a folder and lock it. The lock ends with this process, however that ends."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks: nobody can clear up there, so nobody does
            fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():  # else somebody cleared up between the two
            return path, lock
        os.close(lock)


def _clear_up(parent: Path) -> None:
    """Remove what processes that are gone have left."""
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # of another user, or just removed
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid():
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
