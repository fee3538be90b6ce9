"""Log files of cells' output and tracebacks, bounded in size."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LARGEST = 8 * 2**20
"""Maximum bytes of a log before it is cut."""
KEPT = 2**20
"""Bytes kept from its beginning; later output follows them."""
_CUT = b"\n[... cut here: a log has no room for more ...]\n"


def bound(path: Path) -> None:
    """Cut a log that has grown too large. Other processes may be appending to it."""
    with suppress(OSError):
        if path.stat().st_size > LARGEST:
            os.truncate(path, KEPT)
            with path.open("ab") as file:
                file.write(_CUT)


def add(path: Path, text: str) -> None:
    """Append a text with any characters. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    bound(path)
