"""The width at which a backbone meets a budget of parameters: what `match.params` asks for."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from itertools import chain, islice
from math import inf, lcm
from typing import Any

import torch

from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, ConfigError, with_kernel
from arch_bench.ops.kernel import Unsupported
from arch_bench.runtime import workers

GOOD = 0.05
"""So near to the budget a width that kernels like is taken; further away the nearest of all, within match.tolerance."""
NARROWEST, WIDEST = 1_024, 16_384
"""Some width up to the first must be possible, none beyond the second is tried."""
NEAR = 32
"""Widths that are tried one by one before multiples of the least that is taken are."""
UNITS = 8, 1
"""Widths are multiples of 8, which kernels like; any other where none of those is close enough."""


def matched(cell: Cell) -> tuple[Cell, int | None]:
    """The cell at the width whose parameters come closest to `match.params`, and how many those are.

    As it is where it has exactly those; as it is, and None, without a budget. Raises ConfigError when no width is
    within `match.tolerance`.
    """
    if cell.match.params is None:
        return cell, None
    like = json.dumps(cell.model_dump(include=_DECISIVE), sort_keys=True)
    if like not in _WIDTHS:
        _WIDTHS[like] = _apart(_width, cell, cell.match.params)
    width, n_params = _WIDTHS[like]
    return with_width(cell, width), n_params


_DECISIVE = {"backbone", "backbone_name", "task", "task_name", "match"}
_WIDTHS: dict[str, tuple[int, int]] = {}
"""Width and parameters of what was asked before: most cells of a sweep differ in seed and rate only."""


def _width(cell: Cell, budget: int) -> tuple[int, int]:
    counter, tolerance = _Counter(cell), cell.match.tolerance
    try:
        if counter.count(cell.d_model) == budget:  # that of the one which the others are matched to
            return cell.d_model, budget
        for unit in UNITS:
            width, n_params = counter.closest(budget, unit)
            if abs(n_params / budget - 1) <= (min(GOOD, tolerance) if unit > 1 else tolerance):
                return width, n_params
    except Unsupported as error:
        raise ConfigError(f"match.params={budget}: {error}") from None
    raise ConfigError(
        f"match.params={budget}: {cell.backbone_name} comes no closer than {n_params:,} parameters, "
        f"at d_model={width}; change it, or raise match.tolerance={tolerance:g}"
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


COUNTING_S = 120.0
"""Seconds that may be spent on counting parameters, at all widths that are tried."""


def _apart(function: Callable[..., tuple[int, int]], cell: Cell, *args: Any) -> tuple[int, int]:
    """In a process of its own, unless `isolate=false`: a constructor that aborts ends nothing else."""
    if not cell.isolate:
        return function(cell, *args)
    return workers.call(function, cell, *args, time_limit_s=COUNTING_S)


def rigidity(cell: Cell) -> tuple[int, int]:
    """How far the next greater width is that a backbone takes, and its parameters as it is. Raises ConfigError."""
    return _apart(_rigidity, cell)


def _rigidity(cell: Cell) -> tuple[int, int]:
    counter = _Counter(cell)
    n_params, widths = counter.count(cell.d_model), range(1, NEAR + 1)
    if isinstance(n_params, ConfigError):
        raise n_params
    return next((by for by in widths if isinstance(counter.count(cell.d_model + by), int)), NEAR + 1), n_params


def with_width(cell: Cell, d_model: int) -> Cell:
    """The same cell with another width."""
    return cell.model_copy(update={"d_model": d_model, "backbone": cell.backbone | {"d_model": d_model}})


class _Counter:
    """Parameters of a cell's backbone at any width, counted from a model without storage."""

    def __init__(self, cell: Cell) -> None:
        self._cell = with_kernel(cell, "reference")  # the same parameters, and it runs anywhere
        self._vocab_size = build(cell, "task").vocab_size
        self._known: dict[int, int | ConfigError] = {}

    def closest(self, budget: int, unit: int) -> tuple[int, int]:
        """The width among multiples of `unit`, and its parameters. Raises ConfigError where none is taken."""
        widths = range(unit, WIDEST + 1, unit)
        above = bisect_left(widths, True, key=lambda width: self._next(width, unit)[1] >= budget)
        below = ((width, n) for width in reversed(widths[:above]) if isinstance(n := self.count(width), int))
        nearby = [*(self._next(width, unit) for width in widths[above : above + 1]), *islice(below, 1)]
        width, n_params = min(nearby, key=lambda found: abs(found[1] - budget))
        return width, int(n_params)

    def _next(self, width: int, unit: int) -> tuple[int, float]:
        """The first width from this one on that the backbone takes, and its parameters; infinitely many beyond WIDEST.

        Raises ConfigError where it takes none.
        """
        near = range(width, min(width + NEAR * unit, WIDEST + 1), unit)
        step = lcm(unit, self._least)
        far = range(-(-near.stop // step) * step, WIDEST + 1, step)
        taken = ((each, n) for each in chain(near, far) if isinstance(n := self.count(each), int))
        return next(taken, (WIDEST, inf))

    @cached_property
    def _least(self) -> int:
        """The least width that is taken: heads that divide it divide its multiples. Raises ConfigError if none is."""
        told: Counter[str] = Counter()
        for width in range(1, NARROWEST + 1):
            found = self.count(width)
            if isinstance(found, int):
                return width
            told[str(found)] += 1
            if told[str(found)] == 8:
                raise found  # it is not the width that is refused
        raise ConfigError(f"d_model from 1 to {NARROWEST} is refused: {found}")

    def count(self, width: int) -> int | ConfigError:
        """Parameters, or why it cannot be."""
        if width not in self._known:
            try:
                with torch.device("meta"):
                    model = build(with_width(self._cell, width), "backbone", vocab_size=self._vocab_size)
                self._known[width] = model.n_params()
            except ConfigError as error:
                self._known[width] = error
        return self._known[width]
