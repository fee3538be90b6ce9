"""What each panel shows, in data coordinates: computed once, drawn by matplotlib and by Plotly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from arch_bench.report import contenders, metrics, scaling, ticks, units
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.parts import Baseline, Curve, Label, Mark, Panel, Tick
from arch_bench.report.scale import Scale
from arch_bench.report.study import Group, Point, Study
from arch_bench.report.style import Style
from arch_bench.report.ticks import Number
from arch_bench.results import Kind

ROW = 0.075
"""Height of one series in the band of failures, as a share of the panel."""
MOST_BAND = 0.32
"""Height of that band at the most: values need the room."""
MOST_SLOPES = 10
"""Lines whose exponents can be told apart."""
SLOPE_GAP = 0.055
"""Least distance of two exponents, as a share of the panel."""
LEAST_SPAN = 0.25
"""The share of a linear axis that measured values keep when a baseline widens it."""


def panel(study: Study, facet: Facet, metric: Metric, may_be_empty: bool = False) -> Panel | None:
    """One facet's panel of one metric; None without a value, unless it may show nothing but failures."""
    groups = _groups(study, facet, metric)
    has_values = any(group in study.points(metric) for group in groups)
    if not groups or not (has_values or may_be_empty):
        return None
    curves, trained_at = _curves(study, groups, metric)
    lengths = _lengths(study, groups, metric)
    guesses = study.baselines(facet.task) if metric.kind == "quality" and metric is study.headline(facet.task) else {}
    inner = inner_range(curves, guesses, metric)
    failing = _failing(study, groups, metric)
    scale, band = with_band(Scale(*inner, metric.is_log), len(failing), metric.is_higher_better)
    marks = _marks(study, groups, metric, scale)
    return Panel(
        facet=facet,
        metric=metric,
        curves=curves,
        x_range=x_range(lengths),
        x_ticks=[Tick(length, units.length(length)) for length in ticks.thinned(lengths)],
        y_range=(scale.at(0), scale.at(1)),
        y_ticks=[Tick(value, _tick_text(metric, value)) for value in ticks.ticks(*inner, metric)] if has_values else [],
        baselines=_baselines(guesses, inner, scale, metric),
        marks=marks,
        band=band,
        trained_at=trained_at,
        slopes=_slopes(study, groups, metric, scale, band),
        names=_names(study, groups, marks, scale, band) if metric.kind == "kernels" else [],
    )


def quality(study: Study) -> list[list[Panel]]:
    """A panel per task, and beside it one of the answers that were generated, if they were."""
    row = []
    for task in study.tasks("quality"):
        row.append(panel(study, Facet(task), study.headline(task), may_be_empty=True))
        if any(group.task == task for group in study.points(metrics.GENERATED)):
            row.append(panel(study, Facet(task), metrics.GENERATED))
    return [kept] if (kept := [each for each in row if each]) else []


def costs(study: Study, kind: Kind) -> list[list[Panel]]:
    """A row per facet, with a panel per metric; a facet where everything failed has one panel that says so."""
    rows = []
    for facet in study.facets(kind):
        chosen = metrics.drawn(kind, facet.batching)
        found = [panel(study, facet, metric) for metric in chosen]
        if not any(found):
            found = [panel(study, facet, chosen[0], may_be_empty=True)]
        rows.append([each for each in found if each])
    return [row for row in rows if row]


def kernels(study: Study) -> list[list[Panel]]:
    """One row with a panel per facet."""
    row = [panel(study, facet, metrics.KERNEL, may_be_empty=True) for facet in study.facets("kernels")]
    return [kept] if (kept := [each for each in row if each]) else []


def _groups(study: Study, facet: Facet, metric: Metric) -> list[Group]:
    found = [group for group in study.groups(metric.kind, facet) if _has_something(study, group, metric)]
    return contenders.ordered(study, found) if metric.kind == "kernels" else found


def _look(study: Study, kind: Kind, group: Group) -> Style:
    return contenders.look(study, group) if kind == "kernels" else study.style(group.series)


def _has_something(study: Study, group: Group, metric: Metric) -> bool:
    return group in study.points(metric) or bool(_failures(study, group, metric))


def _failures(study: Study, group: Group, metric: Metric) -> dict[int, str]:
    found = {n: study.trouble(metric.kind, group, n) for n in sorted(study.index[metric.kind][group])}
    return {length: text for length, text in found.items() if text}


def _lengths(study: Study, groups: Sequence[Group], metric: Metric) -> list[int]:
    return sorted({length for group in groups for length in study.index[metric.kind][group]})


def _failing(study: Study, groups: Sequence[Group], metric: Metric) -> list[str]:
    """The series with a failure, each once."""
    return list(dict.fromkeys(group.series for group in groups if _failures(study, group, metric)))


def _curves(study: Study, groups: Sequence[Group], metric: Metric) -> tuple[list[Curve], int | None]:
    """One line per series; with several training lengths, a line through them and a faint one from each onwards."""
    points = {group: study.points(metric).get(group, {}) for group in groups}
    trained = {group.train_seq_len for group in groups}
    if len(trained) == 1:
        looks = {group: _look(study, metric.kind, group) for group in groups}
        return [Curve(group.series, looks[group], points[group]) for group in groups], next(iter(trained)) or None
    curves = []
    for series in dict.fromkeys(group.series for group in groups):
        own = [group for group in groups if group.series == series]
        spine = {
            group.train_seq_len: points[group][group.train_seq_len]
            for group in own
            if group.train_seq_len in points[group]
        }
        curves.append(_curve(study, series, spine))
        curves += [_curve(study, series, points[group], is_faint=True) for group in own if len(points[group]) > 1]
    return curves, None


def _curve(study: Study, series: str, points: dict[int, Point], is_faint: bool = False) -> Curve:
    return Curve(series, study.style(series), dict(sorted(points.items())), is_faint)


def inner_range(curves: Sequence[Curve], guesses: dict[str, dict[int, float]], metric: Metric) -> tuple[float, float]:
    """The range that values take; of the baselines only the best one may widen it, and not too much."""
    if metric.is_share:
        return -0.03, 1.03
    points = [point for curve in curves for point in curve.points.values()]
    values = [y for point in points for y in (point.value, point.low, point.high) if y is not None]
    low, high = min(values, default=1.0), max(values, default=10.0)
    best = min((min(of.values()) for of in guesses.values()), default=high)
    if high - low >= LEAST_SPAN * (max(high, best) - min(low, best)) or high == low:
        low, high = min(low, best), max(high, best)
    if not metric.is_log:
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return low - margin, high + margin
    # at least a factor of four from bottom to top, and room for half a marker
    margin = max(1.15, 2 / math.sqrt(high / low), (high / low) ** 0.04)
    return low / margin, high * margin


def with_band(inner: Scale, n_failing: int, is_at_bottom: bool) -> tuple[Scale, tuple[float, float] | None]:
    """Widen a scale by a band for failures on its worse side."""
    if not n_failing:
        return inner, None
    height = min(ROW * n_failing, MOST_BAND)
    outer = inner.at(-height / (1 - height)) if is_at_bottom else inner.at(1 / (1 - height))
    edges = (outer, inner.at(1)) if is_at_bottom else (inner.at(0), outer)
    scale = Scale(*edges, inner.is_log)
    return scale, ((scale.at(0), scale.at(height)) if is_at_bottom else (scale.at(1 - height), scale.at(1)))


def x_range(lengths: Sequence[float]) -> tuple[float, float]:
    """Of a logarithmic axis: some room on both sides."""
    margin = (max(lengths) / min(lengths)) ** 0.06 if len(lengths) > 1 else 2.0
    return min(lengths) / margin, max(lengths) * margin


def _tick_text(metric: Metric, value: float) -> str:
    if metric.is_share:
        return f"{100 * value:.0f} %"
    return f"{value:g}" if metric is metrics.BITS_PER_BYTE else metric.show(value)


def _baselines(
    guesses: dict[str, dict[int, float]], inner: tuple[float, float], scale: Scale, metric: Metric
) -> list[Baseline]:
    """Dashed lines, their labels at the right end and pushed apart where they would touch."""
    ends = sorted((of[max(of)], name) for name, of in guesses.items())
    shares = ticks.spread([min(max(scale.share(end), 0.0), 1.0) for end, _ in ends], gap=0.07, ceiling=1.1)
    drawn = []
    for (end, name), share in zip(ends, shares, strict=True):
        is_inside = inner[0] <= end <= inner[1]
        label = name if is_inside else f"{name} {metric.show(end)} {'↑' if end > inner[1] else '↓'}"
        drawn.append(Baseline(name, guesses[name] if is_inside else {}, label, share))
    return drawn


def _marks(study: Study, groups: Sequence[Group], metric: Metric, scale: Scale) -> list[Mark]:
    """Crosses in the band: one row per failing series, so that they never cover each other."""
    edge, failing = min(_lengths(study, groups, metric), default=0), _failing(study, groups, metric)
    height = min(ROW, MOST_BAND / max(1, len(failing)))
    marks = []
    for place, series in enumerate(failing):
        found: dict[int, str] = {}
        own = [group for group in groups if group.series == series]
        for group in own:
            found |= _failures(study, group, metric)
        share = (place + 0.5) * height
        y = scale.at(share if metric.is_higher_better else 1 - share)
        is_told = metric.kind == "kernels" and own[0] not in study.points(metric)  # in its name, beside the axes
        for length, status in found.items():
            text, side = ("", "left") if is_told else caption(found, length, _lengths(study, own, metric), edge)
            marks.append(Mark(length, y, status, text, side, series, _look(study, metric.kind, own[0])))
    return marks


def caption(found: Mapping[Number, str], length: Number, lengths: Sequence[Number], edge: Number) -> tuple[str, str]:
    """Name a run of equal statuses once: left of its first mark, or right of its last if it starts at the edge."""
    place = lengths.index(length)
    first = last = place
    while first > 0 and found.get(lengths[first - 1]) == found[length]:
        first -= 1
    while last < len(lengths) - 1 and found.get(lengths[last + 1]) == found[length]:
        last += 1
    side = "right" if lengths[first] == edge else "left"
    return (found[length], side) if place == (last if side == "right" else first) else ("", side)


def _slopes(
    study: Study, groups: Sequence[Group], metric: Metric, scale: Scale, band: tuple[float, float] | None
) -> list[Label]:
    """In one column, pushed apart where they would touch each other or the words of failures."""
    found = []
    for group in groups if metric in metrics.GROWING else ():
        exponent = scaling.exponent(study, group, metric)
        if exponent and not exponent.doubt:
            points = study.points(metric)[group]
            found.append((scale.share(points[max(points)].value), group.series, exponent.value))
    if len(found) > MOST_SLOPES:
        return []
    ceiling = _ceiling(scale, band)
    placed = ticks.spread([share for share, *_ in sorted(found)], SLOPE_GAP, ceiling)
    return [
        Label(series, study.style(series), scale.at(share), f"L^{units.exponent(value)}")
        for (_, series, value), share in zip(sorted(found), placed, strict=True)
    ]


def _names(
    study: Study, groups: Sequence[Group], marks: Sequence[Mark], scale: Scale, band: tuple[float, float] | None
) -> list[Label]:
    """Pushed apart like exponents; without a value, in the row of its crosses, and with what they stand for."""
    points = {group: of for group in groups if (of := study.points(metrics.KERNEL).get(group))}
    ends = sorted((scale.share(of[max(of)].value), group) for group, of in points.items())
    ceiling = _ceiling(scale, band)
    placed = ticks.spread([share for share, _ in ends], min(SLOPE_GAP, ceiling / max(1, len(ends))), ceiling)
    heights = {mark.series: mark.y for mark in marks}
    heights |= {group.series: scale.at(share) for (_, group), share in zip(ends, placed, strict=True)}
    names = {group: contenders.name(study, group) for group in groups}
    for group in names.keys() - points.keys():
        names[group] += f": {', '.join(dict.fromkeys(_failures(study, group, metrics.KERNEL).values()))}"
    return [
        Label(group.series, contenders.look(study, group), heights[group.series], name) for group, name in names.items()
    ]


def _ceiling(scale: Scale, band: tuple[float, float] | None) -> float:
    """As high as words may stand below the words of failures."""
    return (scale.share(band[0]) if band else 1.0) - SLOPE_GAP / 2
