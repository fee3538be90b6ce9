"""What a panel of score against cost shows, in data coordinates: the same for matplotlib and for Plotly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from arch_bench.report import fronts, panels, ticks
from arch_bench.report.fronts import Front, Rival
from arch_bench.report.parts import Curve, Tick
from arch_bench.report.scale import Scale
from arch_bench.report.study import Point, Study
from arch_bench.report.style import Style

MOST_ROWS = 6
"""Tasks that are drawn; the table has all."""
MOST_NAMED = 12
"""Contenders that are all named; of more, only those on the front."""
LETTER, LINE, GAP = 0.0185, 0.062, 0.03
"""Width of a letter, height of a line, distance of a name from its marker: shares of a panel."""
LINE_WIDTH = 0.012
"""Of stairs and whiskers, as a share of a panel: what names should not lie on."""
SIDES = {
    **{"middle right": (1, 0), "middle left": (-1, 0), "top center": (0, 1), "bottom center": (0, -1)},
    **{"top left": (-1, 1), "bottom right": (1, -1), "top right": (1, 1), "bottom left": (-1, -1)},
}
"""Of a marker, where its name may stand, as Plotly calls it -> the direction; the first free one is taken."""
ROUNDS = 3
"""In each, every name makes way for the others."""
Box = tuple[float, float, float, float]


class Dot(NamedTuple):
    """One contender."""

    series: str
    style: Style
    cost: Point
    score: Point
    is_best: bool
    """Whether it is on the front."""
    side: str
    """Where its name stands, one of `SIDES`; empty if it has none."""


@dataclass(frozen=True)
class Tradeoff:
    """One pair of axes: a cost on a logarithmic scale, and a score."""

    front: Front
    dots: list[Dot]
    steps: list[tuple[float, float]]
    """Corners of the front."""
    x_range: tuple[float, float]
    x_ticks: list[Tick]
    y_range: tuple[float, float]
    y_ticks: list[Tick]


def tradeoffs(study: Study) -> list[list[Tradeoff]]:
    """A row per task, at the training length with most contenders, the longest of those; a panel per cost."""
    rows: dict[str, list[Front]] = {}
    for row in fronts.fronts(study):
        known = rows.get(row[0].facet.task)
        if known is None or _weight(row) >= _weight(known):
            rows[row[0].facet.task] = row
    return [[tradeoff(study, each) for each in row] for row in list(rows.values())[:MOST_ROWS]]


def tradeoff(study: Study, front: Front) -> Tradeoff:
    """The panel of one front."""
    best, metric = front.best, front.metric
    y_range = panels.inner_range([_as_curve(study, rival) for rival in front.rivals], {}, front.score)
    x_range = panels.inner_range([_as_curve(study, rival, is_cost=True) for rival in front.rivals], {}, metric)
    scales = Scale(*x_range, is_log=True), Scale(*y_range, is_log=False)
    named = best if len(front.rivals) > MOST_NAMED else front.rivals
    lines = [_lines(_shares(corners(best), *scales)), *(_whiskers(rival, *scales) for rival in front.rivals)]
    taken = [box for boxes in lines for box in boxes]
    sides = _sides([(rival, _share(rival, *scales)) for rival in front.rivals], named, taken)
    return Tradeoff(
        front=front,
        dots=[_dot(study, rival, rival in best, sides.get(rival, "")) for rival in front.rivals],
        steps=corners(best),
        x_range=x_range,
        x_ticks=[Tick(value, metric.show(value)) for value in ticks.thinned(ticks.ticks(*x_range, metric))],
        y_range=y_range,
        y_ticks=[
            Tick(y, f"{100 * y:.0f} %" if front.score.is_share else f"{y:g}")
            for y in ticks.ticks(*y_range, front.score)
        ],
    )


def corners(best: Sequence[Rival]) -> list[tuple[float, float]]:
    """The stairs through the front: a score is had at every cost up to where a better one begins."""
    found = []
    for before, rival in zip([None, *best], best, strict=False):
        if before:
            found.append((rival.cost.value, before.score.value))
        found.append((rival.cost.value, rival.score.value))
    return found


def _weight(row: Sequence[Front]) -> tuple[int, int]:
    return max(len(each.rivals) for each in row), row[0].train_seq_len


def _dot(study: Study, rival: Rival, is_best: bool, side: str) -> Dot:
    series = rival.group.series
    return Dot(series, study.style(series), rival.cost, rival.score, is_best, side)


def _as_curve(study: Study, rival: Rival, is_cost: bool = False) -> Curve:
    """What ranges are made of."""
    return Curve("", study.style(rival.group.series), {1: rival.cost if is_cost else rival.score})


def _share(rival: Rival, x: Scale, y: Scale) -> tuple[float, float]:
    return x.share(rival.cost.value), y.share(rival.score.value)


def _shares(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> list[tuple[float, float]]:
    return [(x.share(cost), y.share(score)) for cost, score in points]


def _whiskers(rival: Rival, x: Scale, y: Scale) -> list[Box]:
    cost, score = rival.cost, rival.score
    ends = [] if score.low is None or score.high is None else [(cost.value, score.low), (cost.value, score.high)]
    found = _lines(_shares(ends, x, y))
    ends = [] if cost.low is None or cost.high is None else [(cost.low, score.value), (cost.high, score.value)]
    return found + _lines(_shares(ends, x, y))


def _lines(path: Sequence[tuple[float, float]]) -> list[Box]:
    """The boxes around the lines of a path, each of them horizontal or vertical."""
    half = LINE_WIDTH / 2
    return [
        (min(a[0], b[0]) - half, min(a[1], b[1]) - half, max(a[0], b[0]) + half, max(a[1], b[1]) + half)
        for a, b in pairwise(path)
    ]


def _sides(
    places: Sequence[tuple[Rival, tuple[float, float]]], named: Sequence[Rival], taken: list[Box]
) -> dict[Rival, str]:
    """For each name the side where it covers least of what is `taken`, of the markers and of the other names."""
    fixed = taken + [(x - GAP / 2, y - GAP / 2, x + GAP / 2, y + GAP / 2) for _, (x, y) in places]
    sides: dict[Rival, str] = {}
    names: dict[Rival, Box] = {}
    for _ in range(ROUNDS):
        for rival, (x, y) in places:
            if rival in named:
                others = [box for other, box in names.items() if other is not rival]
                boxes = {side: _box(x, y, len(rival.group.series), *way) for side, way in SIDES.items()}
                sides[rival] = min(boxes, key=lambda side: _cost(boxes[side], [*fixed, *others]))
                names[rival] = boxes[sides[rival]]
    return sides


def _box(x: float, y: float, n_letters: int, right: int, up: int) -> Box:
    """Beside a corner of the marker it stands nearer than beside an edge."""
    width, gap = LETTER * n_letters, GAP / 2 if right and up else GAP
    middle = x + right * (gap + width / 2), y + up * (gap + LINE / 2)
    return middle[0] - width / 2, middle[1] - LINE / 2, middle[0] + width / 2, middle[1] + LINE / 2


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """The area shared with others, and that outside of the panel."""
    size = (box[2] - box[0]) * (box[3] - box[1])
    return sum(_common(box, other) for other in taken) + 2 * (size - _common(box, (0, 0, 1.05, 1)))


def _common(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
