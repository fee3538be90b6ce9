"""Where Python finds modules: the working directory, which may hold a `numpy.py` of the user's, comes last."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""What this package is imported from."""


def ordered(path: Iterable[str], root: Path = ROOT) -> list[str]:
    """Return the entries with the working directory last, unless the harness itself is imported from there."""
    entries = list(path)
    here = _here()
    if here == root:
        return entries
    others = [entry for entry in entries if not _is(entry, here)]
    return others if here is None or len(others) == len(entries) else [*others, str(here)]


def settle() -> None:
    """Put the working directory last in this process, and leave it out of those that it starts.

    Modules of the user's own are found where they are installed, on PYTHONPATH, or last of all there.
    """
    sys.path[:] = ordered(sys.path)
    if _here() != ROOT:
        os.environ["PYTHONSAFEPATH"] = "1"


@contextmanager
def environment() -> Iterator[None]:
    """Within, a Python that is started looks into the working directory for nothing."""
    names = ("PYTHONSAFEPATH", "PYTHONPATH")
    before = {name: os.environ.get(name) for name in names}
    here = _here()
    if here != ROOT:
        os.environ["PYTHONSAFEPATH"] = "1"
    if before["PYTHONPATH"]:
        entries = before["PYTHONPATH"].split(os.pathsep)  # an empty one is the working directory
        kept = entries if here == ROOT else [entry for entry in entries if not _is(entry, here)]
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def clash() -> str:
    """Return in one line which module hides the harness's own `tasks`; empty where none does."""
    spec = importlib.util.find_spec("tasks")
    if spec is None:
        return ""
    found = spec.origin or next(iter(spec.submodule_search_locations or []), "")
    if Path(found).resolve() == ROOT / "tasks" / "__init__.py":
        return ""
    return f"tasks: {found} hides the tasks of arch-bench. Rename it, or take its folder off PYTHONPATH."


def _here() -> Path | None:
    """Return the working directory; None where it has been removed."""
    try:
        return Path.cwd().resolve()
    except FileNotFoundError:
        return None


def _is(entry: str, here: Path | None) -> bool:
    return not entry or (here is not None and Path(entry).resolve() == here)
