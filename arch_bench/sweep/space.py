"""Search spaces: for each dial a range of numbers, or a list of values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

Scalar = str | int | float | bool | None
Values = dict[str, Scalar]
"""Values by dial."""

SCALES = ("linear", "log")
SEARCHED = ("backbone.*", "optim.*", "trainer.*", "d_model", "n_layers", "precision")
"""Dials that define a model and its training; the others define the question or its measurement."""
MEASURING = ("trainer.n_val_batches", "trainer.n_test_batches", "trainer.val_every", "trainer.stop_at")


class Range(NamedTuple):
    """Numbers between two bounds, both included; integers if both bounds are integers."""

    low: float
    high: float
    is_log: bool

    @property
    def is_int(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    def __contains__(self, value: object) -> bool:
        return _is_number(value) and self.low <= value <= self.high  # type: ignore[operator]


class Choice(NamedTuple):
    """Values without an order."""

    values: tuple[Scalar, ...]

    @property
    def ends(self) -> tuple[Scalar, Scalar]:
        return self.values[0], self.values[-1]

    def __contains__(self, value: object) -> bool:
        return any(value == each and type(value) is type(each) for each in self.values)


Space = dict[str, Range | Choice]


def parsed(space: Mapping[str, Any] | None) -> Space:
    """Parse `{optim.lr: [1e-4, 1e-1, log], backbone.d_conv: [0, 4]}`: a list that ends in a scale is a range.

    Raises ValueError for other values, and for a dial that must not be searched.
    """
    if not space:
        raise ValueError("space is empty: name what to search, as protocol.space={optim.lr:[1e-4,1e-1,log]}")
    for dial in space:
        if dial in MEASURING or not any(fnmatchcase(dial, one) for one in SEARCHED):
            raise ValueError(
                f"space: {dial} cannot be searched; choose among {', '.join(SEARCHED)}, without {', '.join(MEASURING)}"
            )
    return {dial: _one(f"space: {dial}={json.dumps(values)}", values) for dial, values in sorted(space.items())}


def _one(what: str, values: Any) -> Range | Choice:
    if not isinstance(values, list) or not all(isinstance(value, Scalar) for value in values):
        raise ValueError(f"{what}: give [low,high,log], [low,high,linear] or a list of values")
    if values and values[-1] in SCALES:
        return _range(what, *values)
    if len(values) < 2 or len({json.dumps(value) for value in values}) < len(values):
        raise ValueError(f"{what}: needs at least two values, each once")
    return Choice(tuple(values))


def _range(what: str, *parts: Any) -> Range:
    if len(parts) != 3 or not all(map(_is_number, parts[:2])):
        raise ValueError(f"{what}: a range is two numbers and {' or '.join(SCALES)}")
    low, high, scale = parts
    if low >= high:
        raise ValueError(f"{what}: the first bound must be below the second")
    if scale == "log" and low <= 0:
        raise ValueError(f"{what}: a log range needs positive bounds")
    return Range(low, high, scale == "log")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(values: Mapping[str, Any]) -> str:
    """Format values as on the command line: `optim.lr=0.003, backbone.d_conv=4`."""
    return ", ".join(f"{dial}={_text(value)}" for dial, value in values.items())


def _text(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
