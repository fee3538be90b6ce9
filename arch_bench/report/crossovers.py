"""Crossovers: the length from which on one series is ahead of another that was ahead of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

from arch_bench.report import facets, metrics, scaling
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Point, Study
from arch_bench.results import Kind

NAMES = {
    metrics.TOKENS_PER_S: "training tokens/s",
    metrics.PEAK_MEMORY: "training memory",
    metrics.MS_PER_TOKEN: "time per decoded token",
    metrics.DECODE_RATE: "decoded tokens/s",
    metrics.PREFILL: "prefill time",
    metrics.STATE: "bytes of state",
}
"""What is compared -> what it is called in a sentence; in the order of interest."""


class Crossover(NamedTuple):
    facet: Facet
    metric: Metric
    ahead: Group
    behind: Group
    length: int
    """From here on, `ahead` is better beyond the spread of both, as far as both were measured."""
    before: int
    """The longest length at which it was the other way round."""
    longest: int
    lead: float
    """The factor between the two at `longest`, above 1."""
    n_seeds: tuple[int, int]
    doubt: str = ""
    """Why it is not to be stated in a sentence; empty if the rows support it."""


def crossovers(study: Study) -> list[Crossover]:
    """Every pair of every facet: by kind and facet, then the quantity, then the series in reading order."""
    found = []
    for kind, facet, metric in _contests(study):
        groups = {group: study.points(metric).get(group, {}) for group in study.groups(kind, facet)}
        pairs = (crossover(facet, metric, pair, groups) for pair in combinations(groups, 2))
        found += [each._replace(doubt=_doubt(study, each)) for each in pairs if each]
    return found


def crossover(
    facet: Facet, metric: Metric, pair: tuple[Group, Group], points: Mapping[Group, Mapping[int, Point]]
) -> Crossover | None:
    """None unless one ends clearly ahead, at the longest length of both, that was clearly behind."""
    one, other = (points[group] for group in pair)
    shared = sorted(one.keys() & other.keys())
    signs = [_ahead(one[n], other[n], metric) for n in shared]
    if not signs or not (last := signs[-1]) or -last not in signs:
        return None
    start = max(place for place, sign in enumerate(signs) if sign != last) + 1
    before = max(place for place, sign in enumerate(signs) if sign == -last)
    ahead, behind = pair if last > 0 else pair[::-1]
    end = sorted((one[shared[-1]].value, other[shared[-1]].value))
    seeds = (one[shared[start]].n_seeds, other[shared[start]].n_seeds)
    lead = end[1] / end[0]
    return Crossover(facet, metric, ahead, behind, shared[start], shared[before], shared[-1], lead, seeds)


def is_like(study: Study, one: Group, other: Group) -> bool:
    """Whether two series are different backbones that share the value of every dial that both names show."""
    backbone = study.labels.backbone
    return backbone[one.series] != backbone[other.series] and study.labels.agree(one.series, other.series)


def _doubt(study: Study, found: Crossover) -> str:
    """The load of a busy CPU; spreads are in the verdicts already."""
    lengths = (found.before, found.length, found.longest)
    if found.metric is metrics.STATE:  # which is counted, and not timed
        return ""
    return next(filter(None, (scaling.busy(study, g, found.metric, lengths) for g in (found.ahead, found.behind))), "")


def _contests(study: Study) -> list[tuple[Kind, Facet, Metric]]:
    kinds: tuple[Kind, ...] = ("speed", "decode")
    return [
        (kind, facet, metric)
        for kind in kinds
        for facet in study.facets(kind)
        for metric in NAMES
        if metric.kind == kind and _is_comparable(metric, facet)
    ]


def _is_comparable(metric: Metric, facet: Facet) -> bool:
    """Series that each have the largest batch that fits them differ in their work: only their rates compare."""
    is_largest = facet.batching == facets.LARGEST
    return metric.kind == "speed" or (metric is metrics.DECODE_RATE) == is_largest


def _ahead(one: Point, other: Point, metric: Metric) -> int:
    """1 if `one` is better, -1 if `other` is, 0 if they count as equal."""
    return 0 if one.is_level(other) else metric.sign * (1 if one.value > other.value else -1)
