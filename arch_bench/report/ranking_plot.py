"""Rankings as Plotly figures, written as plain data for the script that is embedded in the page."""

from __future__ import annotations

import math

from arch_bench.report import plots, units
from arch_bench.report.parts import Entry, Guess, Ranking, Words
from arch_bench.report.plots import Spec

ROW, HEAD, FOOT, LETTER = 18, 26, 6, 7
"""Pixels: of a series, of the ticks above, of the margin below, of a letter of a name."""
LEAST_AXIS = 215
"""Pixels between the names and the right edge; a narrower page scrolls."""
FILLED, HOLLOW, ALONE = 7, 11, 9
"""Pixels: of markers, with room for the first in the second; of those of a single length."""
TOP = -0.7
"""Where row 0 begins, counted in rows."""


def plot(shown: Ranking) -> Spec:
    """`data` and `layout` of one ranking."""
    rows = list(enumerate(shown.entries))
    data = [_baseline(shown, guess, guess.value) for guess in shown.guesses if guess.value is not None]
    data += [_joint(row, entry) for row, entry in rows if len(entry.points) > 1]
    for length in reversed(shown.lengths):  # the filled marker stands inside the hollow one where they meet
        data += [_dot(shown, row, entry, length) for row, entry in rows if length in entry.points]
    return {"data": data, "layout": _layout(shown)}


def least_width(spec: Spec) -> int:
    """Pixels that a plot needs for its names and its axis."""
    margin = spec["layout"]["margin"]
    return int(margin["l"] + LEAST_AXIS + margin["r"])


def _baseline(shown: Ranking, guess: Guess, value: float) -> Spec:
    """With a vertex in each row, as that is where a pointer finds it."""
    y = [TOP, *range(len(shown.entries)), guess.y]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": guess.name,
        "x": [value] * len(y),
        "y": y,
        "line": {"color": plots.MUTED, "width": 1.2, "dash": "dash"},
        "customdata": [plots.guess(shown.metric, guess.name, value)] * len(y),
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _joint(row: int, entry: Entry) -> Spec:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [point.value for point in entry.points.values()],
        "y": [row] * len(entry.points),
        "line": {"color": plots.MUTED, "width": 1},
        "hoverinfo": "skip",
    }


def _dot(shown: Ranking, row: int, entry: Entry, length: int) -> Spec:
    colour, point, is_first = entry.style.colour, entry.points[length], length == shown.lengths[0]
    at = f", at {units.tokens(length)}" if len(shown.lengths) > 1 else ""
    filled: Spec = {"symbol": "circle", "size": FILLED if len(shown.lengths) > 1 else ALONE, "color": colour}
    hollow: Spec = {"symbol": "circle", "size": HOLLOW, "color": "white", "line": {"color": colour, "width": 1.4}}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": entry.series,
        "x": [point.value],
        "y": [row],
        "error_x": plots.whiskers([point], colour),
        "marker": filled if is_first else hollow,
        "customdata": [plots.hover(shown.metric, entry.series, point) + at],
        "hovertemplate": "%{customdata}<extra></extra>",
        "cliponaxis": False,
    }


def _layout(shown: Ranking) -> Spec:
    names = max(len(entry.series) for entry in shown.entries)
    return {
        "height": round(HEAD + FOOT + ROW * (shown.bottom - TOP)),
        "margin": {"l": 16 + LETTER * names, "r": 20, "t": HEAD, "b": FOOT},
        "font": {"family": plots.FONT, "size": 11.5, "color": plots.INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "rgba(255,255,255,0.95)", "font": {"size": 11.5}, "bordercolor": plots.GRID},
        "xaxis": _x_axis(shown),
        "yaxis": _y_axis(shown),
        "annotations": _annotations(shown),
    }


def _x_axis(shown: Ranking) -> Spec:
    edges = shown.x_range
    return {
        "type": "log" if shown.metric.is_log else "linear",
        "range": [_place(shown, edge) for edge in edges],
        "side": "top",
        "tickvals": [tick.value for tick in shown.x_ticks],
        "ticktext": [tick.text for tick in shown.x_ticks],
        "tickfont": {"color": plots.MUTED},
        "tickangle": 0,
        "gridcolor": plots.GRID,
        "zeroline": False,
    }


def _y_axis(shown: Ranking) -> Spec:
    return {
        "range": [shown.bottom, TOP],
        "tickvals": list(range(len(shown.entries))),
        "ticktext": [entry.series for entry in shown.entries],
        "gridcolor": plots.GRID,
        "ticks": "outside",
        "tickcolor": "rgba(0,0,0,0)",
        "ticklen": 5,
        "zeroline": False,
        "fixedrange": True,
    }


def _annotations(shown: Ranking) -> list[Spec]:
    notes = [_words(shown, guess.words, guess.y, gap=3) for guess in shown.guesses]
    return notes + [
        _words(shown, entry.words, row, gap=7 if entry.points else 3)
        for row, entry in enumerate(shown.entries)
        if entry.words
    ]


def _words(shown: Ranking, words: Words, y: float, gap: int) -> Spec:
    """`gap`: pixels between the words and their place; their background hides the lines below."""
    aside = {"xanchor": "left", "xshift": gap} if words.side == "right" else {"xanchor": "right", "xshift": -gap}
    look: Spec = {"showarrow": False, "font": {"size": 10.5, "color": plots.MUTED}, "bgcolor": "white", "borderpad": 0}
    return {"text": words.text, "x": _place(shown, words.x), "y": y, "yanchor": "middle", **aside, **look}


def _place(shown: Ranking, x: float) -> float:
    """Ranges and annotations of a logarithmic axis are exponents; values of traces are not."""
    return math.log10(x) if shown.metric.is_log else x
