"""Files for what cells print, and for tracebacks. They stay small, whatever a cell does."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LARGEST = 8 * 2**20
"""Bytes of a log, from which on it is cut."""
KEPT = 2**20
"""Bytes at its beginning that are left then; what comes after goes on behind them."""
_CUT = b"\n[... cut here: a log has no room for more ...]\n"


def bound(path: Path) -> None:
    """Cut a log that has grown too large. Others may be writing to it, at its end wherever that is."""
    with suppress(OSError):
        if path.stat().st_size > LARGEST:
            os.truncate(path, KEPT)
            with path.open("ab") as file:
                file.write(_CUT)


def add(path: Path, text: str) -> None:
    """Add a text, whatever characters it has. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    bound(path)
