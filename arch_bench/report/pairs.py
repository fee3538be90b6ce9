"""Comparisons of two contenders: how far apart their means are, and whether that is more than seeds scatter by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from arch_bench.report import contests, stats, units
from arch_bench.report.contests import Contest, Entry, Verdicts
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Point, Study, by_seed

MOST_TOLD = 3
"""Differences in one sentence."""


class Difference(NamedTuple):
    """One contender less another, at one tested length, in the units of the score."""

    value: float
    low: float | None
    """Welch's 95 % interval; None where one of the two has a single seed."""
    high: float | None
    n_seeds: tuple[int, int]


def difference(study: Study, one: Group, other: Group, length: int) -> Difference | None:
    """None if one has no score."""
    metric = study.headline(one.task)
    first, second = (
        np.array(list(by_seed(study.at("quality", group, length), metric.name).values())) for group in (one, other)
    )
    if not len(first) or not len(second):
        return None
    gap, n_seeds = float(first.mean() - second.mean()), (len(first), len(second))
    if min(n_seeds) == 1:
        return Difference(gap, None, None, n_seeds)
    return Difference(gap, *stats.difference_interval(first, second), n_seeds)


def rivals(study: Study) -> list[list[Group]]:
    """For each task and training length, its contenders, the best at that length first; at least two."""
    found: dict[tuple[str, int], list[Group]] = {}
    for group in study.groups("quality"):
        found.setdefault((group.task, group.train_seq_len), []).append(group)
    ranked = [sorted(groups, key=lambda group: _rank(study, group)) for groups in found.values()]
    return [groups for groups in ranked if len(groups) > 1]


def amount(metric: Metric, value: float, is_signed: bool = True) -> str:
    """Of a difference: points of accuracy, or bits per byte; two digits of what would round to zero."""
    scaled, digits = (100 * value, 1) if metric.is_share else (value, 3)
    text = f"{scaled:+.{digits}f}" if not scaled or abs(scaled) >= 0.5 * 10**-digits else f"{scaled:+.2g}"
    return text if is_signed and scaled else text.lstrip("+-")


def interval(metric: Metric, gap: Difference) -> str:
    """`[+8.1 to +15.0]`; empty where one has a single seed."""
    if gap.low is None or gap.high is None:
        return ""
    return f"[{amount(metric, gap.low)} to {amount(metric, gap.high)}]"


def sentences(study: Study) -> list[str]:
    """One per contest: whom the best is ahead of, by more than the seeds scatter."""
    return [sentence for contest in contests.told(study) if (sentence := _sentence(study, contest))]


def _sentence(study: Study, contest: Contest) -> str:
    """Empty unless the seeds tell the best from some; those that lack seeds take no part."""
    if len(contest.ranked) < 2:
        return ""
    verdicts, (best, *rest) = Verdicts(study, contest), contest.ranked
    behind = [entry for entry in rest if verdicts.are_apart(best.group, entry.group)]
    if not behind:
        return ""
    told = [_ahead(study, contest, best, entry, is_first=not place) for place, entry in enumerate(behind)]
    more = [f"{len(told) - MOST_TOLD} more"] * (len(told) > MOST_TOLD)
    seeds = units.seeds(*(entry.point.n_seeds for entry in contest.ranked))
    where = f"On {best.group.task} at {units.tokens(contest.length)} ({seeds})"
    return f"{where}, {best.series} is ahead of {units.listed([*told[:MOST_TOLD], *more])}{_basis(study, contest)}."


def _basis(study: Study, contest: Contest) -> str:
    n = len(contest.ranked)
    n_pairs, n_others = n * (n - 1) // 2, contests.n_contests(study) - 1
    if n_pairs == 1 and not n_others:
        return " (Welch's t test, 5 %)"
    tasks = f" and {contests.n_contests(study)} tasks" * bool(n_others)
    pairs = f"{n_pairs} pair{'s' * (n_pairs > 1)}"
    return f" (Welch's t test, with Holm's correction for {pairs}{tasks}, 5 % in all)"


def _ahead(study: Study, contest: Contest, best: Entry, entry: Entry, is_first: bool) -> str:
    """`mamba by 12.3 points of accuracy [8.1 to 15.0]`, as a positive amount."""
    gap, metric = difference(study, best.group, entry.group, contest.length), contest.metric
    assert gap is not None
    sign = 1 if gap.value > 0 else -1
    low, high = sorted(sign * (end or 0.0) for end in (gap.low, gap.high))
    unit = ("points of accuracy" if metric.is_share else "bits per byte") if is_first else ""
    ends = f"[{_positive(metric, low)} to {_positive(metric, high)}]"
    return " ".join(part for part in (f"{entry.series} by {amount(metric, abs(gap.value), False)}", unit, ends) if part)


def _positive(metric: Metric, end: float) -> str:
    """With a sign only if it is a minus."""
    return amount(metric, end) if end < 0 else amount(metric, end, False)


def _rank(study: Study, group: Group) -> float:
    metric = study.headline(group.task)
    points: dict[int, Point] = study.points(metric).get(group, {})
    length = group.train_seq_len if group.train_seq_len in points else max(points, default=0)
    return -metric.sign * points[length].value if points else float("inf")
