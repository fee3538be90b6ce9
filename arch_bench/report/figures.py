"""Panels as matplotlib figures: PNG to look at, SVG to put in a paper. The same rows give the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from arch_bench.report.panels import Curve, Panel
from arch_bench.report.style import MATPLOTLIB_DASHES, MATPLOTLIB_SYMBOLS, Style

INK, MUTED, GRID, BAND = "#1c2530", "#5c6773", "#e4e8ec", "#f4f1ee"
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
COLUMNS = 3
"""Four panels to a row stand in a square instead."""
PANEL_WIDTH, PANEL_HEIGHT, LEAST_WIDTH, LEGEND_LINE = 3.6, 2.7, 5.2, 0.22
"""Inches."""


def draw(rows: Sequence[Sequence[Panel]], styles: dict[str, Style], x_label: str) -> dict[str, bytes]:
    """A figure with a legend below its panels. Returns the file's ending -> its bytes."""
    columns = 2 if max(map(len, rows)) == COLUMNS + 1 else COLUMNS
    grid = [list(row[start : start + columns]) for row in rows for start in range(0, len(row), columns)]
    n_columns = max(len(row) for row in grid)
    width = max(n_columns * PANEL_WIDTH, LEAST_WIDTH)
    legend_columns = max(1, min(len(styles), math.floor(width / _legend_width(styles))))
    legend_height = LEGEND_LINE * math.ceil(len(styles) / legend_columns) + 0.15
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, len(grid) * PANEL_HEIGHT + legend_height), layout="constrained")
        axes = figure.subplots(len(grid), n_columns, squeeze=False)
        for i, row in enumerate(grid):
            for j in range(n_columns):
                if j < len(row):
                    _draw_panel(axes[i, j], row[j])
                    is_lowest = i == len(grid) - 1 or j >= len(grid[i + 1])
                    axes[i, j].set_xlabel(x_label if is_lowest else "")
                else:
                    axes[i, j].set_axis_off()
        handles = [_line([], [], style, label=name) for name, style in styles.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, handlelength=3)
        return {ending: _bytes(figure, ending) for ending in ("png", "svg")}


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
    axes.set_title(_title(panel), loc="left", fontsize=9.5, pad=15 if panel.trained_at else 8)
    _draw_reference(axes, panel)
    for curve in panel.curves:
        _draw_curve(axes, curve)
    _draw_failures(axes, panel)
    _draw_slopes(axes, panel)


def _title(panel: Panel) -> str:
    """In two lines where the batch policy makes it long."""
    space = "\n" if panel.facet.batching else " "
    return f"{panel.facet.title}:{space}{panel.metric.title}"


def _draw_reference(axes: Axes, panel: Panel) -> None:
    """What the curves are read against: baselines and the training length."""
    end = panel.x_range[1]
    for baseline in panel.baselines:
        if baseline.points:
            lengths, values = list(baseline.points), list(baseline.points.values())
            axes.plot([panel.x_range[0], *lengths, end], [values[0], *values, values[-1]], **_DASHED)
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


_DASHED: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1.5}


def _draw_curve(axes: Axes, curve: Curve) -> None:
    x, y = list(curve.points), [point.value for point in curve.points.values()]
    axes.add_line(_line(x, y, curve.style, is_faint=curve.is_faint))
    for length, point in curve.points.items():
        if point.low is not None and point.high is not None and not curve.is_faint:
            axes.plot([length, length], [point.low, point.high], color=curve.style.colour, linewidth=1.4, alpha=0.6)


def _line(x: Sequence[float], y: Sequence[float], style: Style, is_faint: bool = False, label: str = "") -> Line2D:
    return Line2D(
        x,
        y,
        color=style.colour,
        marker=MATPLOTLIB_SYMBOLS[style.symbol],
        linestyle=":" if is_faint else MATPLOTLIB_DASHES[style.dash],
        linewidth=1.0 if is_faint else 1.7,
        markersize=3 if is_faint else 5.5,
        markerfacecolor="white" if style.is_open else style.colour,
        alpha=0.7 if is_faint else 1.0,
        label=label,
        zorder=3,
    )


def _draw_failures(axes: Axes, panel: Panel) -> None:
    if panel.band:
        axes.axhspan(*panel.band, color=BAND, linewidth=0, zorder=0.5)
    for mark in panel.marks:
        axes.plot(mark.length, mark.y, "x", color=mark.style.colour, markersize=5.5, markeredgewidth=1.8, clip_on=False)
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


def _draw_slopes(axes: Axes, panel: Panel) -> None:
    """Each behind the marker of its line, in the margin."""
    place = axes.get_yaxis_transform()
    for slope in panel.slopes:
        marker = _line([1.03], [slope.y], slope.style, is_faint=True)
        marker.set(transform=place, clip_on=False, alpha=1.0)
        axes.add_line(marker)
        axes.text(1.055, slope.y, slope.text, transform=place, va="center", fontsize=7, color=slope.style.colour)


def _legend_width(styles: dict[str, Style]) -> float:
    """Inches that one entry takes."""
    return 0.7 + 0.085 * max(len(name) for name in styles)


def _bytes(figure: Figure, ending: str) -> bytes:
    """Without a date or a version, so that bytes differ only where the data does."""
    file = io.BytesIO()
    figure.savefig(file, format=ending, dpi=160, metadata={"Date": None} if ending == "svg" else {"Software": None})
    return file.getvalue()
