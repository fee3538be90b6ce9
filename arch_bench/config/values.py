"""What every value of a config must be, whatever group it is in: a finite number, a text without NUL, a short list."""

from __future__ import annotations

import math
from typing import Any

from arch_bench.config.errors import ConfigError

_LARGEST = 2**63
"""What tensors, files and JSON readers take for an integer."""


def check_values(values: Any, path: str = "") -> None:
    """Raise ConfigError for the first number, at any depth, that no row can hold, and for a text that no file can."""
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
    """A number of any length; Python refuses to print one of more than 4,300 digits."""
    return f"{number:.3e}" if abs(number) < 10**300 else "1e300 or more"
