"""What a row was measured on: its key knows the type only, and two GPUs are two measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from arch_bench.results import Row


def known(rows: Iterable[Row]) -> dict[str, str]:
    """Key of a cell, or type of device -> the name that its rows give it, if they give one only."""
    names: dict[str, set[str]] = {}
    for row in rows:
        if _is_named(row):
            names.setdefault(row.key, set()).add(row.device)
            names.setdefault(_asked(row), set()).add(row.device)
    return {of: next(iter(found)) for of, found in names.items() if len(found) == 1}


def device(row: Row, names: Mapping[str, str]) -> str:
    """Its device. A cell that failed knows just the type: it takes the one name that is known for its cell or type."""
    return row.device if _is_named(row) else names.get(row.key) or names.get(row.device, row.device)


def _is_named(row: Row) -> bool:
    return bool(row.device) and row.device != _asked(row)


def _asked(row: Row) -> str:
    return str(row.config.get("device", ""))
