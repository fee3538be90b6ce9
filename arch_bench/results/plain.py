"""Conversion to JSON values of any object that a mixer, a task or a third-party library returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DEEPEST = 18
"""Nesting depth beyond which a value becomes text."""
LONGEST = 100_000
"""Maximum characters of a text."""


def fields(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row. A metric that is not a finite number becomes null, with `NAME_why` beside it."""
    found = {name: value_of(value) for name, value in row.items() if name not in ("metrics", "curve")}
    curve = {str(name): [_number(each)[0] for each in column] for name, column in row["curve"].items()}
    return found | {"metrics": _metrics(row["metrics"]), "curve": curve}


def value_of(value: Any, depth: int = 0) -> Any:
    """Return a JSON value; infinities and types that JSON lacks become text."""
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
    """Return the beginning of a text, with characters that no encoding of Unicode has (a file name's stray bytes)
    escaped."""
    return text[:LONGEST].encode("utf-8", "backslashreplace").decode()


def _metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        found[str(name)], why = (value, "") if isinstance(value, bool) else _number(value)
        if why:
            found[f"{name}_why"] = why
    return found


def _number(value: Any) -> tuple[Any, str]:
    """Return a number, a text or None, and the reason if another value became None."""
    found = value if isinstance(value, int | float | str) else _scalar(value)
    plain = value_of(value if found is None else found)
    if isinstance(found, str) or not isinstance(plain, str):
        return plain, ""
    return None, f"not a finite number: {plain}"


def _scalar(value: Any) -> Any:
    """Return the value in an array or tensor of one element; None if there is none."""
    try:
        found = value.item()
    except Exception:  # a third-party class may raise anything
        return None
    return found if isinstance(found, bool | int | float | str) else None


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # as above
        return f"(a {type(value).__name__})"
