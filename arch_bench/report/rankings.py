"""Panels with many series and few lengths as rankings: what each shows, computed from the panel alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from arch_bench.report.parts import Baseline, Curve, Entry, Guess, Mark, Panel, Ranking, Tick, Words
from arch_bench.report.scale import Scale
from arch_bench.report.study import Point

MOST_LINES = 10
"""Series that lines can tell apart; of more, at few lengths, a ranking is drawn."""
MOST_LENGTHS = 2
"""Lengths that fit into a row of a ranking."""
LETTER = 0.026
"""Width of a letter, as a share of the narrowest panel."""
HALF = 0.5
"""Share of a panel from which on labels stand left of their baseline."""
LABEL_GAP, LABEL_LINE = 1.1, 0.9
"""Distance of the first label of a baseline from the last series, and of labels from each other, in rows."""
ARROWS = str.maketrans("↑↓", "→←")
"""Upright scale -> lying one."""


def suit(rows: Sequence[Sequence[Panel]]) -> bool:
    """Whether no panel of a section has more than two lengths, and one has more series than lines can tell apart.

    Lines that leave a training length for another need their axis.
    """
    every = [panel for row in rows for panel in row]
    are_few = all(1 <= len(_lengths(panel)) <= MOST_LENGTHS for panel in every)
    has_faint = any(curve.is_faint for panel in every for curve in panel.curves)
    return are_few and not has_faint and any(len(_shown(panel)) > MOST_LINES for panel in every)


def ranking(panel: Panel) -> Ranking:
    """The series of a panel, best first at the training length, or else at the shortest one; the failed ones last."""
    lengths = _lengths(panel)
    scale = Scale(*_inner(panel), panel.metric.is_log)
    entries = [_entry(panel, curve, lengths, scale) for curve in _shown(panel)]
    return Ranking(
        facet=panel.facet,
        metric=panel.metric,
        lengths=lengths,
        trained_at=panel.trained_at,
        entries=sorted(entries, key=lambda entry: _order(entry, lengths, panel.metric.sign)),
        guesses=_guesses(panel, lengths[0], scale, len(entries)),
        x_range=(scale.at(0), scale.at(1)),
        x_ticks=_thinned(panel.y_ticks, scale),
    )


def _order(entry: Entry, lengths: Sequence[int], sign: int) -> tuple[int, float]:
    """By the first of the lengths that has a value."""
    place = next((place for place, length in enumerate(lengths) if length in entry.points), None)
    return (len(lengths), 0.0) if place is None else (place, -sign * entry.points[lengths[place]].value)


def _lengths(panel: Panel) -> list[int]:
    """Those with a value or a failure: the training length first, then by size."""
    found = {int(n) for curve in panel.curves for n in curve.points} | {int(mark.length) for mark in panel.marks}
    return sorted(found, key=lambda n: (n != panel.trained_at, n))


def _shown(panel: Panel) -> list[Curve]:
    failed = {mark.series for mark in panel.marks}
    return [curve for curve in panel.curves if curve.points or curve.series in failed]


def _inner(panel: Panel) -> tuple[float, float]:
    """The range of values, without the band for failures."""
    if not panel.band:
        return panel.y_range
    return (panel.band[1], panel.y_range[1]) if panel.metric.is_higher_better else (panel.y_range[0], panel.band[0])


def _entry(panel: Panel, curve: Curve, lengths: Sequence[int], scale: Scale) -> Entry:
    points = {n: curve.points[n] for n in lengths if n in curve.points}
    marks = [mark for mark in panel.marks if mark.series == curve.series]
    return Entry(curve.series, curve.style, points, _words(marks, lengths, points, scale) if marks else None)


def _words(marks: Sequence[Mark], lengths: Sequence[int], points: dict[int, Point], scale: Scale) -> Words:
    """`oom` if that is all there is to say, else `oom at 512`, on the emptier side of the dots."""
    ends = [end for point in points.values() for end in (point.value, point.low, point.high) if end is not None]
    left, right = (scale.share(min(ends)), scale.share(max(ends))) if ends else (0.0, 0.0)
    statuses = list(dict.fromkeys(mark.status for mark in marks))
    text = ", ".join(f"{mark.status} at {int(mark.length):,}" for mark in marks)
    is_clear = len(lengths) == 1 or (len(statuses) == 1 and not points)
    is_too_long = LETTER * (len(text) + 1) > max(left, 1 - right)  # the table of failures tells the lengths
    if is_clear or is_too_long:
        text = ", ".join(statuses)
    is_right = 1 - right >= left
    return Words(text, scale.at(right if is_right else left), "right" if is_right else "left")


def _thinned(ticks: Sequence[Tick], scale: Scale) -> list[Tick]:
    """Without those whose texts would touch the one before."""
    kept: list[Tick] = []
    for tick in ticks:
        least = LETTER * (len(kept[-1].text) + len(tick.text) + 2) / 2 if kept else 0.0
        if not kept or scale.share(tick.value) - scale.share(kept[-1].value) >= least:
            kept.append(tick)
    return kept


def _guesses(panel: Panel, length: int, scale: Scale, n_rows: int) -> list[Guess]:
    """Labels stand below the series, each on the first line where it touches no other."""
    found: list[Guess] = []
    taken: list[tuple[int, float, float]] = []
    for share, value, baseline in sorted((_placed(each, length, scale) for each in panel.baselines), key=_outwards):
        width = LETTER * (len(baseline.label) + 1)
        left, right = (share, share + width) if share < HALF else (share - width, share)
        line = next(i for i in count() if not any(i == at and left < end and start < right for at, start, end in taken))
        taken.append((line, left, right))
        words = Words(baseline.label.translate(ARROWS), scale.at(share), "right" if share < HALF else "left")
        found.append(Guess(baseline.name, value, words, n_rows - 1 + LABEL_GAP + LABEL_LINE * line))
    return found


def _placed(baseline: Baseline, length: int, scale: Scale) -> tuple[float, float | None, Baseline]:
    """Share of the panel, and value where that is on the scale; of several lengths the one that decides the order."""
    if not baseline.points:
        return float(baseline.label.endswith("↑")), None, baseline
    value = baseline.points.get(length, next(iter(baseline.points.values())))
    share = min(max(scale.share(value), 0.0), 1.0)
    return share, scale.at(share), baseline


def _outwards(placed: tuple[float, float | None, Baseline]) -> float:
    """Sorts so that no line runs down through a label that was placed before."""
    share = placed[0]
    return -share if share < HALF else share
