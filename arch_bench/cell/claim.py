"""Claims on cells: a file that one sweep keeps touching, so that other sweeps leave the cell alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

LEASE_S = 30.0
"""Seconds without a touch after which a claim lapses; that of a dead process on this machine lapses at once."""
RECORD_S = 2.0
"""Seconds after which an empty claim is stale: a live process writes its record within milliseconds."""
_STALE_S = 86_400
GLANCE_S = 1.0
"""Seconds between checks whether a claim has ended."""


class Taken(Exception):
    """Raised when another sweep runs this cell. path: its claim."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path


_leases: dict[Path, SoftFileLease] = {}
"""Leases of this process, kept because each records how long a claim of another machine has been untouched."""


@contextmanager
def claimed(path: Path, *, waits: bool = False) -> Iterator[None]:
    """Claim a cell for the duration of the block. Raises Taken, unless `waits`, and OSError if nothing can be written.

    This is a hint, not a lock: if a machine stalls for longer than its lease, or a file system shows a new file late,
    a cell runs twice, and each run saves whole rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_recordless(path)
    lease = _leases.setdefault(path, SoftFileLease(path, lease_duration=LEASE_S))
    try:
        lease.acquire(timeout=-1 if waits else 0)
    except Timeout:
        raise Taken(path) from None
    try:
        yield
    finally:
        lease.release()
        _leases.pop(path, None)


def _remove_recordless(path: Path) -> None:
    """Remove a claim without a record: its process was killed between opening the file and writing it."""
    with suppress(OSError):  # no such claim, or it has just ended
        found = path.stat()
        if not found.st_size and time.time() - found.st_mtime > RECORD_S:
            path.unlink()


def sweep_up(folder: Path) -> None:
    """Remove the claims of dead processes: a claim on a finished cell is never requested again."""
    for path in folder.glob("*.lock"):
        with suppress(OSError):
            if not _is_free(path) and path.stat().st_mtime < time.time() - _STALE_S:
                path.unlink()


def wait(paths: Sequence[Path], patience_s: float) -> set[Path]:
    """Wait until some of these claims have ended and return them; return an empty set after `patience_s`."""
    end = time.monotonic() + patience_s
    while paths:
        ended = {path for path in paths if _is_free(path)}
        if ended or time.monotonic() > end:
            return ended
        time.sleep(GLANCE_S)
    return set()


def _is_free(path: Path) -> bool:
    try:
        with claimed(path):
            return True
    except Taken:
        return False
