"""The width at which a backbone meets a budget of parameters: what `match.params` asks for."""

from __future__ import annotations

import json
from bisect import bisect_left
from itertools import islice

import torch

from arch_bench.config import Cell, ConfigError, with_kernel
from arch_bench.objects import build
from arch_bench.ops.kernel import Unsupported

TOLERANCE = 0.05
WIDEST = 16_384
UNITS = 8, 1
"""Widths are multiples of 8, which kernels like; any other where none of those is close enough."""


def matched(cell: Cell) -> tuple[Cell, int | None]:
    """The cell at the width whose parameters come closest to `match.params`, and how many those are.

    As it is where it has exactly those; as it is, and None, without a budget. Raises ConfigError when no width is
    within TOLERANCE.
    """
    if cell.match.params is None:
        return cell, None
    like = json.dumps(cell.model_dump(include=_DECISIVE), sort_keys=True)
    if like not in _WIDTHS:
        _WIDTHS[like] = _width(cell, cell.match.params)
    width, n_params = _WIDTHS[like]
    return with_width(cell, width), n_params


_DECISIVE = {"backbone", "backbone_name", "task", "task_name", "match"}
_WIDTHS: dict[str, tuple[int, int]] = {}
"""Width and parameters of what was asked before: most cells of a sweep differ in seed and rate only."""


def _width(cell: Cell, budget: int) -> tuple[int, int]:
    counter = _Counter(cell)
    try:
        if counter._count(cell.d_model) == budget:  # that of the one which the others are matched to
            return cell.d_model, budget
        for unit in UNITS:
            width, n_params = counter.closest(budget, unit)
            if abs(n_params / budget - 1) <= TOLERANCE:
                return width, n_params
    except Unsupported as error:
        raise ConfigError(f"match.params={budget}: {error}") from None
    raise ConfigError(
        f"match.params={budget}: {cell.backbone_name} comes no closer than {n_params:,} parameters, at d_model={width}"
    )


def n_params(cell: Cell) -> int:
    """Parameters of a cell's backbone as it is. Raises ConfigError."""
    cell = with_kernel(cell, "reference")  # the same parameters, and it runs anywhere
    vocab_size = build(cell, "task").vocab_size
    try:
        with torch.device("meta"):
            return int(build(cell, "backbone", vocab_size=vocab_size).n_params())
    except Unsupported as error:
        raise ConfigError(f"backbone={cell.backbone_name}: {error}") from None


def with_width(cell: Cell, d_model: int) -> Cell:
    """The same cell with another width."""
    return cell.model_copy(update={"d_model": d_model, "backbone": cell.backbone | {"d_model": d_model}})


class _Counter:
    """Parameters of a cell's backbone at any width, counted from a model without storage."""

    def __init__(self, cell: Cell) -> None:
        self._cell = with_kernel(cell, "reference")  # the same parameters, and it runs anywhere
        self._vocab_size = build(cell, "task").vocab_size
        self._known: dict[int, int | None] = {}

    def closest(self, budget: int, unit: int) -> tuple[int, int]:
        """The width among multiples of `unit`, and its parameters."""
        widths = range(unit, WIDEST + 1, unit)
        above = bisect_left(widths, budget, key=lambda width: self._next(width, unit)[1])
        below = ((width, n) for width in reversed(widths[:above]) if (n := self._count(width)) is not None)
        nearby = [self._next(width, unit) for width in widths[above : above + 1]] + [*islice(below, 1)]
        return min(nearby, key=lambda found: abs(found[1] - budget))

    def _next(self, width: int, unit: int) -> tuple[int, int]:
        """The first width from this one on that the backbone takes, and its parameters."""
        for candidate in range(width, width + 64 * unit, unit):
            if (n_params := self._count(candidate)) is not None:
                return candidate, n_params
        build(with_width(self._cell, width), "backbone", vocab_size=self._vocab_size)  # it says what it takes
        raise AssertionError("a width that was refused is taken")

    def _count(self, width: int) -> int | None:
        if width not in self._known:
            try:
                with torch.device("meta"):
                    model = build(with_width(self._cell, width), "backbone", vocab_size=self._vocab_size)
                self._known[width] = model.n_params()
            except ConfigError:
                self._known[width] = None
        return self._known[width]
