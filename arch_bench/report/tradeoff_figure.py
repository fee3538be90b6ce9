"""Score against cost as a matplotlib figure: the front as stairs, what is dominated pale, names beside the markers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from arch_bench.report import figures, units
from arch_bench.report.style import MATPLOTLIB_SYMBOLS
from arch_bench.report.tradeoffs import SIDES, Dot, Tradeoff

COLUMNS, WIDTH, HEIGHT, PALE = 2, 4.6, 3.1, 0.35
"""Panels to a row, inches of a panel, opacity of what is dominated."""
NEAR = 6
"""Points between a marker and its name."""
ACROSS, UPRIGHT = {-1: "right", 0: "center", 1: "left"}, {-1: "top", 0: "center", 1: "bottom"}
"""Direction of a name -> how it is aligned."""


def draw(rows: Sequence[Sequence[Tradeoff]]) -> dict[str, bytes]:
    """A figure. Returns the file's ending -> its bytes."""
    grid = [row[start : start + COLUMNS] for row in rows for start in range(0, len(row), COLUMNS)]
    n_columns = max(map(len, grid))
    with matplotlib.rc_context(figures.RC):
        figure = Figure(figsize=(n_columns * WIDTH, len(grid) * HEIGHT), layout="constrained")
        axes = figure.subplots(len(grid), n_columns, squeeze=False)
        for (i, j), place in np.ndenumerate(axes):
            if j < len(grid[i]):
                _draw(place, grid[i][j])
            else:
                place.set_axis_off()
        return {ending: figures.to_bytes(figure, ending) for ending in ("png", "svg")}


def _draw(axes: Axes, shown: Tradeoff) -> None:
    axes.set_xscale("log")
    axes.set_xlim(shown.x_range)
    axes.set_ylim(shown.y_range)
    axes.set_xticks([tick.value for tick in shown.x_ticks], [tick.text for tick in shown.x_ticks])
    axes.set_yticks([tick.value for tick in shown.y_ticks], [tick.text for tick in shown.y_ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=figures.GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    where = f"{shown.front.facet.title}, trained at {units.tokens(shown.front.train_seq_len)}"
    axes.set_title(f"{where}: {shown.front.score.title}", loc="left", fontsize=9.5)
    axes.set_xlabel(shown.front.title)
    axes.plot(*zip(*shown.steps, strict=True), color=figures.MUTED, linewidth=1.1, zorder=2)
    for dot in shown.dots:
        _draw_dot(axes, dot)


def _draw_dot(axes: Axes, dot: Dot) -> None:
    opacity, colour = (1.0 if dot.is_best else PALE), dot.style.colour
    x, y = dot.cost.value, dot.score.value
    spread: dict[str, Any] = {"color": colour, "linewidth": 1.2, "alpha": 0.6 * opacity, "zorder": 2.5}
    if dot.score.low is not None and dot.score.high is not None:
        axes.plot([x, x], [dot.score.low, dot.score.high], **spread)
    if dot.cost.low is not None and dot.cost.high is not None:
        axes.plot([dot.cost.low, dot.cost.high], [y, y], **spread)
    face = "white" if dot.style.is_open else colour
    marker: dict[str, Any] = {"marker": MATPLOTLIB_SYMBOLS[dot.style.symbol], "markersize": 6.5, "linestyle": "none"}
    axes.plot(x, y, **marker, color=colour, markerfacecolor=face, alpha=opacity, zorder=3, clip_on=False)
    if dot.side:
        look: dict[str, Any] = {"color": colour, "alpha": 1.0 if dot.is_best else 0.6, "fontsize": 7.5}
        right, up = SIDES[dot.side]
        near = NEAR / 2 if right and up else NEAR
        look |= {"ha": ACROSS[right], "va": UPRIGHT[up], "xytext": (right * near, up * near)}
        axes.annotate(dot.series, (x, y), textcoords="offset points", annotation_clip=False, **look)
