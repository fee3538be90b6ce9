"""The order of Python's module path: the working directory, which may hold a user's `numpy.py`, comes last."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder this package is imported from."""


def ordered(path: Iterable[str], root: Path = ROOT) -> list[str]:
    """Return the entries with the working directory last, unless the harness itself is imported from there."""
    entries = list(path)
    here = _here()
    if here == root:
        return entries
    others = [entry for entry in entries if not _is(entry, here)]
    return others if here is None or len(others) == len(entries) else [*others, str(here)]


def settle() -> None:
    """Put the working directory last in this process, and exclude it from child processes.

    Users' own modules are found as installed packages, on PYTHONPATH, or last in the working directory.
    """
    sys.path[:] = ordered(sys.path)
    if _here() != ROOT:
        os.environ["PYTHONSAFEPATH"] = "1"


@contextmanager
def environment() -> Iterator[None]:
    """Keep Python processes started in this context from importing from the working directory."""
    names = ("PYTHONSAFEPATH", "PYTHONPATH")
    before = {name: os.environ.get(name) for name in names}
    here = _here()
    if here != ROOT:
        os.environ["PYTHONSAFEPATH"] = "1"
    if before["PYTHONPATH"]:
        entries = before["PYTHONPATH"].split(os.pathsep)  # an empty entry is the working directory
        kept = entries if here == ROOT else [entry for entry in entries if not _is(entry, here)]
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def clash() -> str:
    """Return a line on the module that hides the harness's own `tasks`; empty if none does."""
    spec = importlib.util.find_spec("tasks")
    if spec is None:
        return ""
    found = spec.origin or next(iter(spec.submodule_search_locations or []), "")
    if Path(found).resolve() == ROOT / "tasks" / "__init__.py":
        return ""
    return f"tasks: {found} hides the tasks of arch-bench. Rename it, or take its folder off PYTHONPATH."


def _here() -> Path | None:
    """Return the working directory; None if it has been removed."""
    try:
        return Path.cwd().resolve()
    except FileNotFoundError:
        return None


def _is(entry: str, here: Path | None) -> bool:
    return not entry or (here is not None and Path(entry).resolve() == here)
