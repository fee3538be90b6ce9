"""Who runs a cell: a file that its sweep touches again and again, so that others leave the cell to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

LEASE_S = 30.0
"""A claim that was not touched for so long is nobody's; one of a dead process on this machine is so at once."""
RECORD_S = 2.0
"""A claim has its record within milliseconds; one that is empty for so long never gets it."""
_STALE_S = 86_400
GLANCE_S = 1.0
"""How often to look whether a claim has ended."""


class Taken(Exception):
    """Another sweep runs this cell. path: its claim."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path


_leases: dict[Path, SoftFileLease] = {}
"""Of this process, for they remember since when a claim of another machine has not been touched."""


@contextmanager
def claimed(path: Path, *, waits: bool = False) -> Iterator[None]:
    """Nobody else runs it meanwhile. Raises Taken, unless it waits, and OSError where nothing can be written.

    A hint, no lock: where a machine stands still for longer than its lease, or a file system shows a new file late, a
    cell runs twice, and each saves whole rows.
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
    """Remove a claim that nobody's name is in: a kill has hit its process between opening the file and writing it."""
    with suppress(OSError):  # there is none, or it has just ended
        found = path.stat()
        if not found.st_size and time.time() - found.st_mtime > RECORD_S:
            path.unlink()


def sweep_up(folder: Path) -> None:
    """Remove the claims of dead processes: those of cells that are done already nobody would ask for."""
    for path in folder.glob("*.lock"):
        with suppress(OSError):
            if not _is_free(path) and path.stat().st_mtime < time.time() - _STALE_S:
                path.unlink()


def wait(paths: Sequence[Path], patience_s: float) -> set[Path]:
    """Until some of these claims have ended, which it returns; none where none has within that time."""
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
