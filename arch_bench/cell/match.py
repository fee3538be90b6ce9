"""Find the width at which a backbone meets a parameter budget, for `match.params`."""

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
"""Relative distance from the budget up to which a kernel-friendly width is taken.

Beyond it, the nearest of all widths is taken, within match.tolerance.
"""
NARROWEST, WIDEST = 1_024, 16_384
"""Some width up to NARROWEST must be possible; no width above WIDEST is tried."""
NEAR = 32
"""Number of widths tried one by one, before multiples of the least accepted width."""
UNITS = 8, 1
"""Step sizes between widths: multiples of 8 suit kernels; any width is allowed when none of those is close enough."""


def matched(cell: Cell) -> tuple[Cell, int | None]:
    """Return the cell at the width whose parameter count is closest to `match.params`, and that count.

    A cell that meets the budget exactly is unchanged; without a budget, return the cell unchanged and None. Raises
    ConfigError when no width is within `match.tolerance`.
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
"""Cached widths and parameter counts: most cells of a sweep differ only in seed and learning rate."""


def _width(cell: Cell, budget: int) -> tuple[int, int]:
    counter, tolerance = _Counter(cell), cell.match.tolerance
    try:
        if counter.count(cell.d_model) == budget:  # the backbone that the others are matched to
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
    """Count the parameters of a cell's backbone at its own width. Raises ConfigError."""
    cell = with_kernel(cell, "reference")  # the same parameters, and it runs anywhere
    vocab_size = build(cell, "task").vocab_size
    try:
        with torch.device("meta"):
            return int(build(cell, "backbone", vocab_size=vocab_size).n_params())
    except Unsupported as error:
        raise ConfigError(f"backbone={cell.backbone_name}: {error}") from None


COUNTING_S = 120.0
"""Time limit in seconds for counting parameters, at all widths together."""


def _apart(function: Callable[..., tuple[int, int]], cell: Cell, *args: Any) -> tuple[int, int]:
    """Call the function in its own process, unless `isolate=false`: a constructor that aborts ends nothing else."""
    if not cell.isolate:
        return function(cell, *args)
    return workers.call(function, cell, *args, time_limit_s=COUNTING_S)


def rigidity(cell: Cell) -> tuple[int, int]:
    """Return the distance to the next greater width that the backbone accepts, and its current parameter count.

    Raises ConfigError.
    """
    return _apart(_rigidity, cell)


def _rigidity(cell: Cell) -> tuple[int, int]:
    counter = _Counter(cell)
    n_params, widths = counter.count(cell.d_model), range(1, NEAR + 1)
    if isinstance(n_params, ConfigError):
        raise n_params
    return next((by for by in widths if isinstance(counter.count(cell.d_model + by), int)), NEAR + 1), n_params


def with_width(cell: Cell, d_model: int) -> Cell:
    """Return the same cell with another width."""
    return cell.model_copy(update={"d_model": d_model, "backbone": cell.backbone | {"d_model": d_model}})


class _Counter:
    """Parameter counter for a cell's backbone at any width, from a model without storage."""

    def __init__(self, cell: Cell) -> None:
        self._cell = with_kernel(cell, "reference")  # the same parameters, and it runs anywhere
        self._vocab_size = build(cell, "task").vocab_size
        self._known: dict[int, int | ConfigError] = {}

    def closest(self, budget: int, unit: int) -> tuple[int, int]:
        """Return the multiple of `unit` closest to the budget, and its parameters. Raises ConfigError if none works."""
        widths = range(unit, WIDEST + 1, unit)
        above = bisect_left(widths, True, key=lambda width: self._next(width, unit)[1] >= budget)
        below = ((width, n) for width in reversed(widths[:above]) if isinstance(n := self.count(width), int))
        nearby = [*(self._next(width, unit) for width in widths[above : above + 1]), *islice(below, 1)]
        width, n_params = min(nearby, key=lambda found: abs(found[1] - budget))
        return width, int(n_params)

    def _next(self, width: int, unit: int) -> tuple[int, float]:
        """Return the first accepted width from this one on, and its parameters; infinity beyond WIDEST.

        Raises ConfigError if the backbone accepts no width.
        """
        near = range(width, min(width + NEAR * unit, WIDEST + 1), unit)
        step = lcm(unit, self._least)
        far = range(-(-near.stop // step) * step, WIDEST + 1, step)
        taken = ((each, n) for each in chain(near, far) if isinstance(n := self.count(each), int))
        return next(taken, (WIDEST, inf))

    @cached_property
    def _least(self) -> int:
        """Least accepted width: heads that divide it divide its multiples. Raises ConfigError if there is none."""
        told: Counter[str] = Counter()
        for width in range(1, NARROWEST + 1):
            found = self.count(width)
            if isinstance(found, int):
                return width
            told[str(found)] += 1
            if told[str(found)] == 8:
                raise found  # the same refusal at every width: the width is not the cause
        raise ConfigError(f"d_model from 1 to {NARROWEST} is refused: {found}")

    def count(self, width: int) -> int | ConfigError:
        """Count the parameters at a width, or return the error that refuses it."""
        if width not in self._known:
            try:
                with torch.device("meta"):
                    model = build(with_width(self._cell, width), "backbone", vocab_size=self._vocab_size)
                self._known[width] = model.n_params()
            except ConfigError as error:
                self._known[width] = error
        return self._known[width]
