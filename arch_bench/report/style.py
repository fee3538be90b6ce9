"""One colour and marker per backbone, one dash per setting of its dials; contenders for a backbone's mixer apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = {"lstm": "#D55E00", "transformer": "#0072B2", "local_attention": "#56B4E9", "mamba": "#009E73"}
"""Okabe and Ito's colour-blind safe set, with the rest of it (and darker tones) left to other names."""
OTHER_COLOURS = ("#CC79A7", "#E69F00", "#6A51A3", "#8C510A", "#4D4D4D", "#A6BF4B", "#B2182B", "#35978F")
SYMBOLS = {"lstm": "square", "transformer": "circle", "local_attention": "triangle-up", "mamba": "diamond"}
OTHER_SYMBOLS = ("triangle-down", "pentagon", "hexagon", "star", "cross")
MATPLOTLIB_SYMBOLS = {
    "square": "s",
    "circle": "o",
    "triangle-up": "^",
    "diamond": "D",
    "triangle-down": "v",
    "pentagon": "p",
    "hexagon": "h",
    "star": "*",
    "cross": "P",
}
SVG_SHAPES = {
    "square": "M-4-4h8v8h-8z",
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "triangle-up": "M0-5L5 4H-5z",
    "diamond": "M0-5L5 0 0 5-5 0z",
    "triangle-down": "M0 5L5-4H-5z",
    "pentagon": "M0-5L5-1 3 4.5H-3L-5-1z",
    "hexagon": "M-5 0L-2.5-4.5H2.5L5 0 2.5 4.5H-2.5z",
    "star": "M0-5.5L1.6-1.9 5.5-1.7 2.5.9 3.4 4.7 0 2.6-3.4 4.7-2.5.9-5.5-1.7-1.6-1.9z",
    "cross": "M-1.7-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
}
"""Markers of the page's legend, around (0, 0)."""
CONTENDERS = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C510A", "#6A51A3")
"""Colours of the kernels of one backbone, which share a panel with no other: the safe set first."""
CONTENDER_SYMBOLS = ("square", "circle", "triangle-up", "diamond", "triangle-down", "pentagon", "hexagon")
BARE_COLOURS = ("#3D444C", "#8A929B")
"""Greys, for calls that are not ours."""
BARE_SYMBOLS = ("cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MATPLOTLIB_DASHES: dict[str, Any] = dict(
    zip(DASHES, ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (5, 1.6, 1.2, 1.6)), (0, (9, 3))), strict=True)
)
SVG_DASHES = dict(zip(DASHES, ("", "6 3", "1.5 2.5", "6 2.5 1.5 2.5", "11 4"), strict=True))


@dataclass(frozen=True)
class Style:
    """How one series looks everywhere."""

    colour: str
    symbol: str
    dash: str = "solid"
    is_open: bool = False
    """Hollow markers, for every second setting of a backbone."""
    is_heavy: bool = False
    """A line twice as thick, for the kernel that `auto` picks."""


def style(backbone: str, rank: int, among: Sequence[str] = ()) -> Style:
    """Return the style of a backbone's `rank`-th setting in a report on `among`.

    The four families of the front page look alike everywhere. The others take colours and markers in the order of
    their names, so that no two of a report share both: 8 colours and 5 markers make 40 pairs.
    """
    others = sorted({backbone, *among} - COLOURS.keys())
    place = others.index(backbone) if backbone in others else 0
    symbol = SYMBOLS.get(backbone, OTHER_SYMBOLS[place % len(OTHER_SYMBOLS)])
    colour = COLOURS.get(backbone, OTHER_COLOURS[place % len(OTHER_COLOURS)])
    return Style(colour, symbol, DASHES[rank % len(DASHES)], rank % 2 == 1)


def contender(rank: int, way: int, is_bare: bool, is_auto: bool) -> Style:
    """The style of the `rank`-th kernel of a backbone, or of the `rank`-th bare call: dashed, hollow and grey.

    way: the `way`-th of those that it ran in, dotted and hollow after the first.
    """
    colours, symbols = (BARE_COLOURS, BARE_SYMBOLS) if is_bare else (CONTENDERS, CONTENDER_SYMBOLS)
    dash = DASHES[(is_bare + 2 * way + rank // len(colours)) % len(DASHES)]
    return Style(colours[rank % len(colours)], symbols[rank % len(symbols)], dash, is_bare or way % 2 == 1, is_auto)
