"""Folders that are built once and kept: no process sees a half-built one, and a damaged one is rebuilt."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xxhash import xxh3_128

CHECKSUMS = "checksums.json"
"""File that lists the XXH3 of every file of a folder, 128 bits as `xxh128sum` prints them."""
_BUILDING = ".building-"
_STARTING = ".starting-"
"""Prefix of a build folder until it is locked."""
_STALE_S = 86_400

_log = logging.getLogger(__name__)


def kept(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, complete: build it if it is missing; if a file is damaged, log a warning and rebuild it."""
    if folder.exists() and (damaged := damage(folder)) is not None:
        _log.warning("%s is not as it was built (missing, torn or changed); building it again", damaged)
        _remove(folder)
    if not folder.exists():
        with building(folder) as built:
            build(built)
    return folder


def damage(folder: Path) -> Path | None:
    """Return a file whose checksum differs from the one it was built with; None if the folder is intact."""
    listed = folder / CHECKSUMS
    try:
        sums = json.loads(listed.read_text())
        if sums["all"] != _of_all(sums["files"]):
            return listed
        bad = (folder / name for name, expected in sums["files"].items() if checksum(folder / name) != expected)
        return next(bad, None)
    except FileNotFoundError as error:
        return Path(error.filename)
    except (ValueError, TypeError, AttributeError, KeyError):
        return listed


def checksum(file: Path) -> str:
    """Return the XXH3 of a file. It runs at several GB/s, because a corpus is read through at every start."""
    found = xxh3_128()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, then rename it to `folder`; if several processes build the same one, the first wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(folder.parent) as workplace:
        built = workplace / "corpus"
        built.mkdir()
        yield built
        sums = {file.name: checksum(file) for file in sorted(built.iterdir()) if file.is_file()}
        (built / CHECKSUMS).write_text(json.dumps({"files": sums, "all": _of_all(sums)}, indent=1))
        try:
            built.replace(folder)
        except OSError:  # `replace` never replaces a folder that is not empty
            if not folder.exists():
                raise


def is_ours(folder: Path) -> bool:
    """Return True if this module made the folder or is building it, so that it is not part of a corpus around it."""
    return folder.name.startswith((_BUILDING, _STARTING)) or (folder / CHECKSUMS).is_file()


def _of_all(sums: dict[str, str]) -> str:
    return xxh3_128(json.dumps(sums, sort_keys=True).encode()).hexdigest()


@contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """Yield a folder, locked while this process lives, and first remove those of killed processes."""
    for left in (*parent.glob(f"{_BUILDING}*"), *parent.glob(f"{_STARTING}*")):
        with suppress(OSError):  # another process is cleaning up too
            if _is_left(left):
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=_STARTING))
    try:
        with (folder / "lock").open("w") as lock:
            with suppress(OSError):  # a file system without locks: nothing is cleaned up there either
                fcntl.flock(lock, fcntl.LOCK_EX)
            folder = folder.rename(folder.with_name(folder.name.replace(_STARTING, _BUILDING)))
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Return True if no process uses it any more: its lock is free, or it has no lock and is a day old."""
    is_old = folder.stat().st_mtime < time.time() - _STALE_S
    if folder.name.startswith(_STARTING) or not (folder / "lock").exists():
        return is_old
    with (folder / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _remove(folder: Path) -> None:
    """Delete a folder; rename it first, in one step, so that no process finds half of it."""
    with _workplace(folder.parent) as workplace, suppress(FileNotFoundError):  # another process removed it first
        folder.rename(workplace / "damaged")
