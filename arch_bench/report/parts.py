"""What a panel consists of, in data coordinates: the same for matplotlib and for Plotly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from arch_bench.report import units
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Point
from arch_bench.report.style import Style


class Tick(NamedTuple):
    value: float
    text: str


class Mark(NamedTuple):
    """A failure of one series at one length."""

    length: float
    """Or the learning rate, in a panel of those."""
    y: float
    status: str
    text: str
    """The status where it is written out: once per run of equal ones."""
    side: str
    """Which side of the mark the text stands on: left or right."""
    series: str
    style: Style


class Label(NamedTuple):
    """Words on a line, right of the axes, as near as can be to the height at which it ends."""

    series: str
    style: Style
    y: float
    text: str


@dataclass(frozen=True)
class Curve:
    series: str
    style: Style
    points: Mapping[int, Point] | Mapping[float, Point]
    """By length, or by learning rate."""
    is_faint: bool = False
    """Tested at lengths it was not trained at, in a panel with several training lengths."""


@dataclass(frozen=True)
class Baseline:
    name: str
    points: dict[int, float]
    """Empty if it lies off the scale: the label is drawn alone, at the edge."""
    label: str
    label_share: float
    """Height of the label, as a share of the panel; above 1 where labels are stacked over the top edge."""


@dataclass(frozen=True)
class HeatMap:
    """A share by length (columns) and by part of the task (rows, the first at the top), of one series."""

    facet: Facet
    series: str
    metric: Metric
    lengths: list[int]
    parts: list[str]
    values: list[list[float | None]]

    @property
    def title(self) -> str:
        return f"{self.facet.title}: {self.series}, {self.metric.title}"


@dataclass(frozen=True)
class Panel:
    """One pair of axes: x is a sequence length, or a learning rate, on a log2 scale."""

    facet: Facet
    metric: Metric
    curves: list[Curve]
    x_range: tuple[float, float]
    x_ticks: list[Tick]
    y_range: tuple[float, float]
    y_ticks: list[Tick]
    baselines: list[Baseline] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    band: tuple[float, float] | None = None
    """Where failures are drawn: beyond the worst value."""
    trained_at: int | None = None
    """The training length, if the panel has one."""
    slopes: list[Label] = field(default_factory=list)
    """The exponents that lines grow with."""
    names: list[Label] = field(default_factory=list)
    """What the lines are called, in a panel whose lines no other panel shares."""


class Words(NamedTuple):
    """In a row of a ranking, beside a value."""

    text: str
    x: float
    side: str
    """Which side of `x` they stand on: left or right."""


class Entry(NamedTuple):
    """One series in a ranking."""

    series: str
    style: Style
    points: dict[int, Point]
    """By length, in the order of the ranking's lengths; empty if it failed at all of them."""
    words: Words | None
    """The statuses of what failed, and at which length where that is not clear."""


class Guess(NamedTuple):
    """A baseline in a ranking."""

    name: str
    value: float | None
    """None if it lies off the scale: the label is drawn alone, at the edge."""
    words: Words
    y: float
    """Row of the label, below all series."""


@dataclass(frozen=True)
class Ranking:
    """Many series at one or two lengths, the best in row 0, by one metric along x."""

    facet: Facet
    metric: Metric
    lengths: list[int]
    """The first one decides the order; at most two."""
    trained_at: int | None
    entries: list[Entry]
    guesses: list[Guess]
    x_range: tuple[float, float]
    x_ticks: list[Tick]

    @property
    def bottom(self) -> float:
        """Where the last row ends, counted in rows."""
        return max([len(self.entries) - 1.0, *(guess.y for guess in self.guesses)]) + 0.5

    @property
    def note(self) -> str:
        """`filled: 256 tokens, trained here; hollow: 512 tokens`."""
        marks = ("filled: ", "hollow: ") if len(self.lengths) > 1 else ("at ",)
        here = {self.trained_at: ", trained here"} if self.trained_at else {}
        told = [f"{mark}{units.tokens(n)}{here.get(n, '')}" for mark, n in zip(marks, self.lengths, strict=True)]
        each = ["each trained where it is tested"] if self.metric.kind == "quality" and not here else []
        return "; ".join(told + each)
