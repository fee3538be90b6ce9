"""Panels as matplotlib figures: PNG to look at, SVG to put in a paper. The same rows give the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation

from arch_bench.report import units
from arch_bench.report.parts import Curve, HeatMap, Label, Panel, Ranking
from arch_bench.report.style import MATPLOTLIB_DASHES, MATPLOTLIB_SYMBOLS, Style

INK, MUTED, GRID, BAND = "#1c2530", "#5c6773", "#e4e8ec", "#f4f1ee"
POINTS = 72
"""Of an inch."""
RC: Any = {
    "svg.hashsalt": "arch-bench",
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}
MAP_COLOURS, MAP_DARK, MAP_LINE = "Blues", 0.55, 0.26
"""Of a heat map: its colours, the value from which on they are dark, and inches of a line."""
COLUMNS = 3
"""Four panels to a row stand in a square instead, and so do panels with names beside them."""
PANEL_WIDTH, PANEL_HEIGHT, LEAST_WIDTH, LEGEND_LINE, LETTER = 3.6, 2.7, 5.2, 0.22, 0.062
"""Inches; the last is the width of a letter of a name."""
MOST_TITLE = 36
"""Letters of a title that fit above a panel."""
MOST_SHIFT, MOST_SHARE = 2.5, 0.6
"""Of lines that may coincide: points from one to the next, and the share of the way to the next length for them all."""


def draw(rows: Sequence[Sequence[Panel]], styles: dict[str, Style], x_label: str) -> dict[str, bytes]:
    """A figure, with a legend below its panels if there are styles. Returns the file's ending -> its bytes."""
    grid = _grid(rows)
    n_columns = max(len(row) for row in grid)
    names = max((len(name.text) for row in grid for panel in row for name in panel.names), default=0)
    width = max(n_columns * (PANEL_WIDTH + LETTER * names), LEAST_WIDTH)
    legend_columns = max(1, min(len(styles), math.floor(width / _legend_width(styles))))
    legend_height = LEGEND_LINE * math.ceil(len(styles) / legend_columns) + 0.15
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, len(grid) * PANEL_HEIGHT + legend_height), layout="constrained")
        _draw_grid(figure.subplots(len(grid), n_columns, squeeze=False), grid, x_label)
        handles = [_line([], [], style, label=name) for name, style in styles.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, handlelength=3)
        return {ending: to_bytes(figure, ending) for ending in ("png", "svg")}


def draw_maps(rows: Sequence[Sequence[HeatMap]], x_label: str) -> dict[str, bytes]:
    """A figure of heat maps, a row or more per task. Returns the file's ending -> its bytes."""
    grid = [list(row[start : start + COLUMNS]) for row in rows for start in range(0, len(row), COLUMNS)]
    n_columns = max(map(len, grid))
    height = sum(1.0 + MAP_LINE * max(len(each.parts) for each in row) for row in grid)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(max(n_columns * PANEL_WIDTH, LEAST_WIDTH), height), layout="constrained")
        axes = figure.subplots(len(grid), n_columns, squeeze=False)
        for (i, j), place in np.ndenumerate(axes):
            if j < len(grid[i]):
                _draw_map(place, grid[i][j], x_label if i == len(grid) - 1 else "")
            else:
                place.set_axis_off()
        return {ending: to_bytes(figure, ending) for ending in ("png", "svg")}


def _draw_map(axes: Axes, heat: HeatMap, x_label: str) -> None:
    values = np.array([[np.nan if value is None else value for value in row] for row in heat.values])
    axes.imshow(values, vmin=0, vmax=1, cmap=MAP_COLOURS, aspect="auto")
    axes.set_xticks(range(len(heat.lengths)), [units.length(length) for length in heat.lengths])
    axes.set_yticks(range(len(heat.parts)), heat.parts)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(map_title(heat), loc="left", fontsize=9.5)
    axes.set_xlabel(x_label)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "white" if value > MAP_DARK else INK
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7.5, color=ink)


def _grid(rows: Sequence[Sequence[Panel]]) -> list[list[Panel]]:
    is_wide = any(panel.names for row in rows for panel in row)
    columns = 2 if is_wide or max(map(len, rows)) == COLUMNS + 1 else COLUMNS
    return [list(row[start : start + columns]) for row in rows for start in range(0, len(row), columns)]


def _draw_grid(axes: np.ndarray, grid: Sequence[Sequence[Panel]], x_label: str) -> None:
    for (i, j), place in np.ndenumerate(axes):
        if j < len(grid[i]):
            _draw_panel(place, grid[i][j])
            is_lowest = i == len(grid) - 1 or j >= len(grid[i + 1])
            place.set_xlabel(x_label if is_lowest else "")
        else:
            place.set_axis_off()


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log" if panel.metric.is_log else "linear")
    axes.set_xlim(panel.x_range)
    axes.set_ylim(panel.y_range)
    axes.set_xticks([tick.value for tick in panel.x_ticks], [tick.text for tick in panel.x_ticks])
    axes.set_yticks([tick.value for tick in panel.y_ticks], [tick.text for tick in panel.y_ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title(panel), loc="left", fontsize=9.5, pad=15 if panel.trained_at else 8)
    _draw_reference(axes, panel)
    shifts = _shifts(panel)
    for curve in panel.curves:
        _draw_curve(axes, curve, shifts.get(curve.series, 0.0))
    _draw_failures(axes, panel)
    _draw_labels(axes, panel.slopes, markersize=3, fontsize=7)
    _draw_labels(axes, panel.names, markersize=4.5, fontsize=7.5)


def title(shown: Panel | Ranking) -> str:
    """In two lines where it is longer than its panel is wide, as the conditions of a cost make it."""
    line = f"{shown.facet.title}: {shown.metric.title}"
    return line if len(line) <= MOST_TITLE else f"{shown.facet.title}:\n{shown.metric.title}"


def map_title(heat: HeatMap) -> str:
    """In two lines where it is longer than its map is wide."""
    return heat.title if len(heat.title) <= MOST_TITLE else f"{heat.facet.title}: {heat.series}\n{heat.metric.title}"


def _draw_reference(axes: Axes, panel: Panel) -> None:
    """What the curves are read against: baselines and the training length."""
    end = panel.x_range[1]
    for baseline in panel.baselines:
        if baseline.points:
            lengths, values = list(baseline.points), list(baseline.points.values())
            axes.plot([panel.x_range[0], *lengths, end], [values[0], *values, values[-1]], **DASHED)
        axes.annotate(
            baseline.label,
            (1, baseline.label_share),
            (4, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=MUTED,
            annotation_clip=False,
        )
    if panel.trained_at:
        axes.axvline(panel.trained_at, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.annotate(
            "trained here",
            (panel.trained_at, 1),
            (0, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=MUTED,
        )


DASHED: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1.5}


def _shifts(panel: Panel) -> dict[str, float]:
    """Points to the right of its length at which a series of shares stands: those that solve a task coincide."""
    series = list(dict.fromkeys(curve.series for curve in panel.curves))
    lengths = sorted({length for curve in panel.curves for length in curve.points})
    if not panel.metric.is_share or len(series) < 2:
        return {}
    steps = [math.log(after / before) for before, after in pairwise(lengths)]
    room = min(steps, default=math.inf) / math.log(panel.x_range[1] / panel.x_range[0]) * PANEL_WIDTH * POINTS
    step = min(MOST_SHIFT, MOST_SHARE * room / len(series))
    return {name: step * (place - (len(series) - 1) / 2) for place, name in enumerate(series)}


def _draw_curve(axes: Axes, curve: Curve, shift: float) -> None:
    x, y = list(curve.points), [point.value for point in curve.points.values()]
    place = axes.transData
    if shift:
        place = place + ScaledTranslation(shift / POINTS, 0, axes.figure.dpi_scale_trans)
    line = _line(x, y, curve.style, is_faint=curve.is_faint)
    line.set_transform(place)
    axes.add_line(line)
    if curve.is_faint:
        return
    whiskers = [
        [(n, of.low), (n, of.high)] for n, of in curve.points.items() if of.low is not None and of.high is not None
    ]
    if whiskers:  # one artist for all of them: a page of many series draws thousands
        look: dict[str, Any] = {"colors": curve.style.colour, "linewidths": 1.4, "alpha": 0.6, "zorder": 2}
        axes.add_collection(LineCollection(whiskers, transform=place, **look), autolim=False)
    scattered = [(n, value) for n, of in curve.points.items() for value in of.scattered]
    if scattered:
        hollow = Style(curve.style.colour, curve.style.symbol, is_open=True)
        seeds = _line([n for n, _ in scattered], [value for _, value in scattered], hollow)
        seeds.set(transform=place, linestyle="none", markersize=3, alpha=0.7)
        axes.add_line(seeds)


def _line(x: Sequence[float], y: Sequence[float], style: Style, is_faint: bool = False, label: str = "") -> Line2D:
    return Line2D(
        x,
        y,
        color=style.colour,
        marker=MATPLOTLIB_SYMBOLS[style.symbol],
        linestyle=":" if is_faint else MATPLOTLIB_DASHES[style.dash],
        linewidth=1.0 if is_faint else 3.4 if style.is_heavy else 1.7,
        markersize=3 if is_faint else 7 if style.is_heavy else 5.5,
        markerfacecolor="white" if style.is_open else style.colour,
        alpha=0.7 if is_faint else 1.0,
        label=label,
        zorder=3,
    )


def _draw_failures(axes: Axes, panel: Panel) -> None:
    if panel.band:
        axes.axhspan(*panel.band, color=BAND, linewidth=0, zorder=0.5)
    for series in dict.fromkeys(mark.series for mark in panel.marks):
        own = [mark for mark in panel.marks if mark.series == series]
        look: dict[str, Any] = {"color": own[0].style.colour, "markersize": 5.5, "markeredgewidth": 1.8}
        axes.plot([mark.length for mark in own], [mark.y for mark in own], "x", clip_on=False, **look)
    for mark in panel.marks:
        offset, align = ((-6, 0), "right") if mark.side == "left" else ((6, 0), "left")
        if mark.text:
            axes.annotate(
                mark.text,
                (mark.length, mark.y),
                offset,
                textcoords="offset points",
                ha=align,
                va="center",
                fontsize=7,
                color=mark.style.colour,
                annotation_clip=False,
            )


def _draw_labels(axes: Axes, labels: Sequence[Label], markersize: float, fontsize: float) -> None:
    """Each behind the marker of its line, in the margin."""
    place = axes.get_yaxis_transform()
    for label in labels:
        marker = _line([1.03], [label.y], label.style, is_faint=True)
        marker.set(transform=place, clip_on=False, alpha=1.0, markersize=markersize)
        axes.add_line(marker)
        look: dict[str, Any] = {"color": label.style.colour, "weight": "bold" if label.style.is_heavy else "normal"}
        axes.text(1.055, label.y, label.text, transform=place, va="center", fontsize=fontsize, **look)


def _legend_width(styles: dict[str, Style]) -> float:
    """Inches that one entry takes."""
    return 0.7 + 0.085 * max(map(len, styles), default=0)


def to_bytes(figure: Figure, ending: str) -> bytes:
    """Without a date or a version, so that bytes differ only where the data does."""
    if layout := figure.get_layout_engine():  # once is enough: finding room for all texts takes as long as drawing
        layout.execute(figure)
        figure.set_layout_engine("none")
    file = io.BytesIO()
    figure.savefig(file, format=ending, dpi=160, metadata={"Date": None} if ending == "svg" else {"Software": None})
    return file.getvalue()
