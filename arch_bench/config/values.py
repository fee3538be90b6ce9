"""Check the values of a config in every group: finite numbers, 64-bit integers, texts without NUL."""

from __future__ import annotations

import math
from typing import Any

from arch_bench.config.errors import ConfigError

_LARGEST = 2**63
"""Limit of the integers that tensors, files and JSON readers accept."""


def check_values(values: Any, path: str = "") -> None:
    """Check values at any depth. Raises ConfigError for a number that rows cannot hold, or a text that files cannot."""
    if isinstance(values, dict | list):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in items:
            check_values(value, f"{path}.{key}" if path else str(key))
    elif isinstance(values, float) and not math.isfinite(values):
        raise ConfigError(f"{path}={values}: needs a finite number")
    elif isinstance(values, int) and abs(values) >= _LARGEST:
        raise ConfigError(f"{path}={_short(values)}: needs an integer of less than 64 bits")
    elif isinstance(values, str) and "\0" in values:
        raise ConfigError(f"{path}={values!r}: holds a NUL character; leave it out")


def _short(number: int) -> str:
    """Format an integer of any length; Python refuses to print more than 4,300 digits."""
    return f"{number:.3e}" if abs(number) < 10**300 else "1e300 or more"
