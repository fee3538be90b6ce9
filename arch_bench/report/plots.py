"""Panels as Plotly figures, written as plain data for the script that is embedded in the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from arch_bench.report import units
from arch_bench.report.metrics import Metric
from arch_bench.report.parts import Curve, HeatMap, Label, Mark, Panel
from arch_bench.report.study import Point
from arch_bench.report.tables import text
from arch_bench.results import Kind

INK, MUTED, GRID, BAND = "#1c2530", "#5c6773", "#e4e8ec", "#f4f1ee"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MAP_COLOURS = [[0, "#f7fbff"], [0.5, "#6baed6"], [1, "#08306b"]]
MOST_UNIFIED = 10
"""Curves whose values at one length still fit into one box."""
X_TITLES: dict[Kind, str] = {"decode": "context, tokens", "scan": "learning rate"}
Spec = dict[str, Any]


def plot(panel: Panel) -> Spec:
    """`data` and `layout` of one panel; what a legend toggles carries the name of its series in `meta`.

    The names of lines are left to the page, which makes buttons of them.
    """
    traces = [_baseline(panel, baseline.points, baseline.name) for baseline in panel.baselines if baseline.points]
    traces += [_curve(panel, curve) for curve in panel.curves if curve.points]
    traces += [seeds for curve in panel.curves if (seeds := _seeds(panel, curve))]
    marks = _by_series(panel.marks)
    traces += [_slope(panel, slope) for slope in panel.slopes]
    return {"data": traces + [_marks(of) for of in marks], "layout": _layout(panel)}


def plot_map(heat: HeatMap) -> Spec:
    """`data` and `layout` of one heat map."""
    lengths = [units.length(length) for length in heat.lengths]
    trace: Spec = {
        "type": "heatmap",
        "x": lengths,
        "y": heat.parts,
        "z": heat.values,
        "zmin": 0,
        "zmax": 1,
        "colorscale": MAP_COLOURS,
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "text": [["" if value is None else f"{100 * value:.0f}" for value in row] for row in heat.values],
        "texttemplate": "%{text}",
        "hovertemplate": "%{y}, %{x} tokens: <b>%{z:.1%}</b><extra></extra>",
    }
    layout: Spec = {
        "height": 90 + 26 * len(heat.parts),
        "margin": {"l": 12 + 7 * max(map(len, heat.parts)), "r": 14, "t": 14, "b": 42},
        "font": {"family": FONT, "size": 11.5, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"type": "category", "title": {"text": "sequence length, tokens"}},
        "yaxis": {"type": "category", "autorange": "reversed"},
    }
    return {"data": [trace], "layout": layout}


def _curve(panel: Panel, curve: Curve) -> Spec:
    style, points = curve.style, list(curve.points.values())
    outline = {"color": style.colour, "width": 1.5}
    size = 5 if curve.is_faint else 10 if style.is_heavy else 8
    marker = {"color": "white" if style.is_open else style.colour, "size": size, "line": outline}
    trace: Spec = {
        "type": "scatter",
        "mode": "lines+markers",
        "meta": curve.series,
        "name": curve.series,
        "x": list(curve.points),
        "y": [point.value for point in points],
        "line": {"color": style.colour, "width": _width(curve), "dash": style.dash},
        "marker": marker | {"symbol": style.symbol},
        "customdata": [hover(panel.metric, curve.series, point) for point in points],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    if curve.is_faint:
        return trace | {"line": trace["line"] | {"dash": "dot"}, "opacity": 0.7}
    if any(point.low is not None for point in points):
        trace["error_y"] = whiskers(points, style.colour)
    return trace


def _seeds(panel: Panel, curve: Curve) -> Spec:
    """Every seed of the points whose seeds have two humps; empty without such points."""
    found = [(n, value) for n, point in curve.points.items() for value in point.scattered]
    if not found or curve.is_faint:
        return {}
    outline = {"color": curve.style.colour, "width": 1.2}
    return {
        "type": "scatter",
        "mode": "markers",
        "meta": curve.series,
        "name": curve.series,
        "x": [n for n, _ in found],
        "y": [value for _, value in found],
        "marker": {"symbol": curve.style.symbol, "size": 5, "color": "white", "line": outline},
        "customdata": [f"{curve.series}, one seed <b>{panel.metric.show(value)}</b>" for _, value in found],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _width(curve: Curve) -> float:
    return 1.2 if curve.is_faint else 4.4 if curve.style.is_heavy else 2.2


def whiskers(points: Sequence[Point], colour: str) -> Spec:
    """Error bars; of length 0 where a point has no interval."""
    above = [0.0 if point.high is None else max(point.high - point.value, 0.0) for point in points]
    below = [0.0 if point.low is None else max(point.value - point.low, 0.0) for point in points]
    shape = {"color": colour, "thickness": 1.6, "width": 0}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **shape}


def hover(metric: Metric, series: str, point: Point) -> str:
    """A value with its interval and the number of seeds."""
    return f"{series} <b>{text(metric, point)}</b>, {units.seeds(point.n_seeds)}"


def _baseline(panel: Panel, points: dict[int, float], name: str) -> Spec:
    lengths, values = list(points), list(points.values())
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [panel.x_range[0], *lengths, panel.x_range[1]],
        "y": [values[0], *values, values[-1]],
        "line": {"color": MUTED, "width": 1.2, "dash": "dash"},
        "customdata": [guess(panel.metric, name, y) for y in (values[0], *values, values[-1])],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def guess(metric: Metric, name: str, value: float) -> str:
    """What is told of a baseline."""
    return f"{name} (a guess) {metric.show(value)}"


def _by_series(marks: Sequence[Mark]) -> list[list[Mark]]:
    return [
        [mark for mark in marks if mark.series == series] for series in dict.fromkeys(mark.series for mark in marks)
    ]


def _marks(marks: Sequence[Mark]) -> Spec:
    first = marks[0]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "meta": first.series,
        "name": first.series,
        "x": [mark.length for mark in marks],
        "y": [mark.y for mark in marks],
        "text": [f" {mark.text} " if mark.text else "" for mark in marks],
        "textposition": [f"middle {mark.side}" for mark in marks],
        "textfont": {"size": 10, "color": first.style.colour},
        "marker": {"symbol": "x-thin", "size": 8, "line": {"width": 2.4, "color": first.style.colour}},
        "customdata": [f"{mark.series} <b>{mark.status}</b>" for mark in marks],
        "hovertemplate": "%{customdata}<extra></extra>",
        "cliponaxis": False,
    }


def _slope(panel: Panel, slope: Label) -> Spec:
    """A trace and no annotation, so that the legend hides it with its line."""
    style = slope.style
    fill = "white" if style.is_open else style.colour
    return {
        "type": "scatter",
        "mode": "markers+text",
        "meta": slope.series,
        "name": slope.series,
        "x": [panel.x_range[1]],
        "y": [slope.y],
        "text": [f" {slope.text}"],
        "textposition": "middle right",
        "textfont": {"size": 10, "color": style.colour},
        "marker": {"symbol": style.symbol, "size": 5, "color": fill, "line": {"color": style.colour, "width": 1.2}},
        "hoverinfo": "skip",
        "cliponaxis": False,
    }


def _layout(panel: Panel) -> Spec:
    outside = [baseline.label for baseline in panel.baselines]
    outside += [mark.text for mark in panel.marks if mark.side == "right"]
    outside += [slope.text for slope in panel.slopes]
    return {
        "height": 270,
        "margin": {"l": 62, "r": 14 + 6 * max(map(len, outside), default=0), "t": 24, "b": 42},
        "font": {"family": FONT, "size": 11.5, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "x unified" if len(panel.curves) <= MOST_UNIFIED else "closest",
        "hoverlabel": {"bgcolor": "rgba(255,255,255,0.95)", "font": {"size": 11.5}, "bordercolor": GRID},
        "xaxis": _x_axis(panel),
        "yaxis": _y_axis(panel),
        "shapes": _shapes(panel),
        "annotations": _annotations(panel),
    }


def _x_axis(panel: Panel) -> Spec:
    return {
        "type": "log",
        "range": [math.log10(edge) for edge in panel.x_range],
        "tickvals": [tick.value for tick in panel.x_ticks],
        "ticktext": [tick.text for tick in panel.x_ticks],
        "title": {"text": X_TITLES.get(panel.metric.kind, "sequence length, tokens")},
        "hoverformat": "~g" if panel.metric.kind == "scan" else ",d",
        "showgrid": False,
        "linecolor": MUTED,
        "ticks": "outside",
        "tickcolor": MUTED,
        "ticklen": 4,
    }


def _y_axis(panel: Panel) -> Spec:
    edges = panel.y_range
    return {
        "type": "log" if panel.metric.is_log else "linear",
        "range": [math.log10(edge) for edge in edges] if panel.metric.is_log else list(edges),
        "tickvals": [tick.value for tick in panel.y_ticks],
        "ticktext": [tick.text for tick in panel.y_ticks],
        "gridcolor": GRID,
        "ticks": "outside",
        "tickcolor": "rgba(0,0,0,0)",
        "ticklen": 6,
        "zeroline": False,
    }


def _shapes(panel: Panel) -> list[Spec]:
    shapes: list[Spec] = []
    if panel.band:
        low, high = panel.band
        box = {"x0": 0, "x1": 1, "xref": "x domain", "y0": low, "y1": high, "layer": "below"}
        shapes.append({"type": "rect", **box, "fillcolor": BAND, "line": {"width": 0}})
    if panel.trained_at:
        line = {"x0": panel.trained_at, "x1": panel.trained_at, "y0": 0, "y1": 1, "yref": "y domain"}
        shapes.append({"type": "line", **line, "line": {"color": MUTED, "width": 1, "dash": "dot"}})
    return shapes


def _annotations(panel: Panel) -> list[Spec]:
    """Labels of baselines and of the training length, whose x is an exponent: annotations differ from shapes."""
    small = {"showarrow": False, "font": {"size": 10.5, "color": MUTED}}
    notes: list[Spec] = []
    for baseline in panel.baselines:
        place = {"xref": "x domain", "x": 1, "xanchor": "left", "yref": "y domain", "y": baseline.label_share}
        notes.append({"text": baseline.label, "yanchor": "middle", **place, **small})
    if panel.trained_at:
        x = math.log10(panel.trained_at)
        notes.append({"text": "trained here", "x": x, "yref": "y domain", "y": 1, "yanchor": "bottom", **small})
    return notes
