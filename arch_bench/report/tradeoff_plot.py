"""Score against cost as a Plotly figure, written as plain data for the script that is embedded in the page."""

from __future__ import annotations

import math
from typing import Any

from arch_bench.report import plots, units
from arch_bench.report.metrics import Metric
from arch_bench.report.parts import Tick
from arch_bench.report.plots import Spec
from arch_bench.report.study import Point
from arch_bench.report.tables import score_text, text
from arch_bench.report.tradeoffs import Dot, Tradeoff

PALE = 0.35
"""Opacity of what is dominated."""
PALE_NAME = 0.7


def plot(shown: Tradeoff) -> Spec:
    """`data` and `layout` of one panel."""
    x, y = zip(*shown.steps, strict=True)
    stairs: Spec = {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": list(y),
        "line": {"color": plots.MUTED, "width": 1.3},
        "hoverinfo": "skip",
    }
    return {"data": [stairs, *(_dot(shown, dot) for dot in shown.dots)], "layout": _layout(shown)}


def _dot(shown: Tradeoff, dot: Dot) -> Spec:
    colour, opacity = dot.style.colour, 1.0 if dot.is_best else PALE
    face = "white" if dot.style.is_open else colour
    marker: Spec = {"symbol": dot.style.symbol, "size": 10, "color": face, "opacity": opacity}
    return {
        "type": "scatter",
        "mode": "markers+text" if dot.side else "markers",
        "name": dot.series,
        "x": [dot.cost.value],
        "y": [dot.score.value],
        "error_x": _whisker(dot.cost, _faded(colour, opacity)),
        "error_y": _whisker(dot.score, _faded(colour, opacity)),
        "text": [dot.series],
        "textposition": dot.side or "middle right",
        "textfont": {"size": 10.5, "color": _faded(colour, 1.0 if dot.is_best else PALE_NAME)},
        "marker": marker | {"line": {"color": colour, "width": 1.5}},
        "customdata": [_hover(shown, dot)],
        "hovertemplate": "%{customdata}<extra></extra>",
        "cliponaxis": False,
    }


def _faded(colour: str, opacity: float) -> str:
    """`#0072B2` -> `rgba(0, 114, 178, 0.35)`."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def _whisker(point: Point, colour: str) -> Spec:
    if point.low is None or point.high is None:
        return {"visible": False}
    ends = {"array": [max(point.high - point.value, 0.0)], "arrayminus": [max(point.value - point.low, 0.0)]}
    return {"type": "data", "symmetric": False, **ends, "color": colour, "thickness": 1.3, "width": 0}


def _hover(shown: Tradeoff, dot: Dot) -> str:
    score, cost = score_text(shown.front.score, dot.score), text(shown.front.metric, dot.cost)
    seeds = units.seeds(dot.score.n_seeds, dot.cost.n_seeds)
    front = "on the front" if dot.is_best else "dominated"
    return f"{dot.series} <b>{score}</b> for <b>{cost}</b>, {seeds}, {front}"


def _layout(shown: Tradeoff) -> Spec:
    return {
        "height": 310,
        "margin": {"l": 62, "r": 40, "t": 14, "b": 46},
        "font": {"family": plots.FONT, "size": 11.5, "color": plots.INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": _axis(shown.front.metric, shown.x_range, shown.x_ticks) | {"title": {"text": shown.front.title}},
        "yaxis": _axis(shown.front.score, shown.y_range, shown.y_ticks),
    }


def _axis(metric: Metric, edges: tuple[float, float], ticks: list[Tick]) -> dict[str, Any]:
    return {
        "type": "log" if metric.is_log else "linear",
        "range": [math.log10(edge) for edge in edges] if metric.is_log else list(edges),
        "tickvals": [tick.value for tick in ticks],
        "ticktext": [tick.text for tick in ticks],
        "gridcolor": plots.GRID,
        "zeroline": False,
    }
