"""Rankings as a matplotlib figure: a row per series, its dots along x. The same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from arch_bench.report import figures
from arch_bench.report.figures import GRID, INK, MUTED
from arch_bench.report.parts import Entry, Guess, Ranking, Words

COLUMNS, AXIS_WIDTH, LETTER, HEAD, ROW = 2, 3.2, 0.07, 0.85, 0.17
"""Panels to a row; inches: of an axis, of a letter of a name, of title and ticks, of a series."""
FILLED, HOLLOW, ALONE = 5.0, 7.6, 6.0
"""Points: of markers, with room for the first in the second; of those of a single length."""
TOP = -0.7
"""Where row 0 begins, counted in rows."""
BEHIND: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
"""What words lie on: lines run below them."""


def draw(rows: Sequence[Sequence[Ranking]]) -> dict[str, bytes]:
    """A figure. Returns the file's ending -> its bytes."""
    grid = [row[start : start + COLUMNS] for row in rows for start in range(0, len(row), COLUMNS)]
    n_columns = max(map(len, grid))
    names = max(len(entry.series) for row in grid for each in row for entry in each.entries)
    depths = [max(each.bottom for each in row) - TOP for row in grid]
    heights = [HEAD + ROW * depth for depth in depths]
    with matplotlib.rc_context(figures.RC):
        figure = Figure(figsize=(n_columns * (AXIS_WIDTH + LETTER * names), sum(heights)), layout="constrained")
        axes = figure.subplots(len(grid), n_columns, squeeze=False, height_ratios=heights)
        for (i, j), place in np.ndenumerate(axes):
            if j < len(grid[i]):
                _draw(place, grid[i][j], TOP + depths[i])
            else:
                place.set_axis_off()
        return {ending: figures.to_bytes(figure, ending) for ending in ("png", "svg")}


def _draw(axes: Axes, shown: Ranking, bottom: float) -> None:
    """Rows are as high in all panels side by side, so that a shorter list ends above the `bottom`."""
    axes.set_xscale("log" if shown.metric.is_log else "linear")
    axes.set_xlim(shown.x_range)
    axes.set_ylim(bottom, TOP)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks([tick.value for tick in shown.x_ticks], [tick.text for tick in shown.x_ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(shown.entries)), [entry.series for entry in shown.entries], color=INK, fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(figures.title(shown), loc="left", fontsize=9.5)
    axes.set_xlabel(shown.note, loc="left", fontsize=7.5, color=MUTED)
    for guess in shown.guesses:
        _draw_guess(axes, guess)
    for row, entry in enumerate(shown.entries):
        _draw_entry(axes, shown, entry, row)


def _draw_guess(axes: Axes, guess: Guess) -> None:
    if guess.value is not None:
        axes.plot([guess.value, guess.value], [TOP, guess.y], **figures.DASHED)
    _write(axes, guess.words, guess.y, gap=3)


def _draw_entry(axes: Axes, shown: Ranking, entry: Entry, row: int) -> None:
    points, colour, filled = entry.points, entry.style.colour, FILLED if len(shown.lengths) > 1 else ALONE
    axes.plot([point.value for point in points.values()], [row] * len(points), color=MUTED, linewidth=0.8, zorder=2)
    for length, point in reversed(points.items()):  # the filled marker stands inside the hollow one where they meet
        is_first = length == shown.lengths[0]
        if point.low is not None and point.high is not None:
            axes.plot([point.low, point.high], [row, row], color=colour, linewidth=1.8, alpha=0.5, zorder=2.5)
        look: dict[str, Any] = (
            {"markersize": filled} if is_first else {"markersize": HOLLOW, "markerfacecolor": "white"}
        )
        look |= {"color": colour, "markeredgewidth": 0.0 if is_first else 1.1, "zorder": 4 if is_first else 3}
        axes.plot(point.value, row, "o", clip_on=False, **look)
    if entry.words:
        _write(axes, entry.words, row, gap=6 if points else 3)


def _write(axes: Axes, words: Words, y: float, gap: float) -> None:
    """`gap`: points between the words and their place."""
    offset, align = ((gap, 0), "left") if words.side == "right" else ((-gap, 0), "right")
    look: dict[str, Any] = {"ha": align, "va": "center", "fontsize": 7.5, "color": MUTED, "bbox": BEHIND}
    axes.annotate(
        words.text, (words.x, y), offset, textcoords="offset points", annotation_clip=False, zorder=3.5, **look
    )
