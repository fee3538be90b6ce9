"""Values as JSON has them, whatever a mixer, a task or a library of somebody's gave."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DEEPEST = 18
"""Nested deeper than that, a value becomes text."""
LONGEST = 100_000
"""Characters of a text."""


def fields(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row. A metric that is no finite number is null, with `NAME_why` beside it."""
    found = {name: value_of(value) for name, value in row.items() if name not in ("metrics", "curve")}
    curve = {str(name): [_number(each)[0] for each in column] for name, column in row["curve"].items()}
    return found | {"metrics": _metrics(row["metrics"]), "curve": curve}


def value_of(value: Any, depth: int = 0) -> Any:
    """Return a value of a configuration and the like; infinities and what JSON does not have become text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _plain_number(value)
    if isinstance(value, str):
        return text_of(value)
    if depth < DEEPEST and isinstance(value, Mapping):
        return {text_of(str(key)): value_of(each, depth + 1) for key, each in value.items()}
    if depth < DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [value_of(each, depth + 1) for each in value]
    scalar = _scalar(value)
    return text_of(_shown(value)) if scalar is None else value_of(scalar)


def _plain_number(value: float) -> Any:
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else str(value)
    return float(value) if math.isfinite(value) else str(value)


def text_of(text: str) -> str:
    """Return a text that every encoding of Unicode has, which is not so of a file name's stray bytes."""
    return text[:LONGEST].encode("utf-8", "backslashreplace").decode()


def _metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        found[str(name)], why = (value, "") if isinstance(value, bool) else _number(value)
        if why:
            found[f"{name}_why"] = why
    return found


def _number(value: Any) -> tuple[Any, str]:
    """Return a number, a text or None; and why it is None, where it was something else."""
    found = value if isinstance(value, int | float | str) else _scalar(value)
    plain = value_of(value if found is None else found)
    if isinstance(found, str) or not isinstance(plain, str):
        return plain, ""
    return None, f"not a finite number: {plain}"


def _scalar(value: Any) -> Any:
    """Return the number in an array or a tensor of one; None where there is none."""
    try:
        found = value.item()
    except Exception:  # whatever a foreign class does
        return None
    return found if isinstance(found, bool | int | float | str) else None


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # likewise
        return f"(a {type(value).__name__})"
