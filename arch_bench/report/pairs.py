"""Paired comparisons: two contenders met the same data under the same seed, so their scores are subtracted by seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from arch_bench.report import units
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Point, Study, by_seed, over_seeds

LEAST_SEEDS = 3
"""Of a difference that findings tell."""
FEW = 5
"""Seeds that agree by chance in more than one of twenty pairs."""
MOST_TOLD = 3
"""Differences in one sentence."""


class Difference(NamedTuple):
    """One contender less another, at one tested length."""

    point: Point
    """In the units of the score: the mean over seeds, and its bootstrap interval over seeds."""
    superiority: float
    """Share of seeds in which the first scores better, ties by half: (d_w + 1) / 2, of Cliff (1993) for paired data."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0, over enough seeds."""
        low, high = self.point.low, self.point.high
        return self.point.n_seeds >= LEAST_SEEDS and low is not None and high is not None and (low > 0 or high < 0)


def difference(study: Study, one: Group, other: Group, length: int) -> Difference | None:
    """None if no seed has a score of both."""
    metric = study.headline(one.task)
    first, second = (by_seed(study.at("quality", group, length), metric.name) for group in (one, other))
    gaps = [first[seed] - second[seed] for seed in first if seed in second]
    point = over_seeds(gaps)
    if point is None:
        return None
    return Difference(point, sum(_win(metric.sign * gap) for gap in gaps) / len(gaps))


def contests(study: Study) -> list[list[Group]]:
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


def interval(metric: Metric, point: Point, is_signed: bool = True) -> str:
    """`[+8.1 to +15.0]`; empty for one seed."""
    if point.low is None or point.high is None:
        return ""
    return f"[{amount(metric, point.low, is_signed)} to {amount(metric, point.high, is_signed)}]"


def sentences(study: Study) -> list[str]:
    """One per task, on the training length with most contenders: whom the leader is clearly ahead of."""
    best: dict[str, list[Group]] = {}
    for groups in contests(study):
        known = best.get(groups[0].task, [])
        if (len(groups), groups[0].train_seq_len) > (len(known), known[0].train_seq_len if known else 0):
            best[groups[0].task] = groups
    return [sentence for groups in best.values() if (sentence := _sentence(study, groups))]


def _sentence(study: Study, groups: Sequence[Group]) -> str:
    """Empty unless the one that scores best is clearly ahead of some; by survivors of its seeds nobody is."""
    length, metric = groups[0].train_seq_len, study.headline(groups[0].task)
    groups = [group for group in groups if not study.trouble("quality", group, length)]
    found = {pair: gap for pair in combinations(groups, 2) if (gap := difference(study, *pair, length))}
    clear = {pair: gap for pair, gap in found.items() if gap.is_clear}
    ahead = {pair[1]: gap for pair, gap in clear.items() if pair[0] is groups[0] and gap.superiority > 0.5}
    if not ahead:
        return ""
    unit = "points of accuracy" if metric.is_share else "bits per byte"
    told = [_ahead(metric, group, gap, unit if not place else "") for place, (group, gap) in enumerate(ahead.items())]
    seeds = units.seeds(*(gap.point.n_seeds for gap in ahead.values()))
    text = f"Paired by seed on {Facet(groups[0].task).title} at {units.tokens(length)} ({seeds}), "
    more = [f"{len(told) - MOST_TOLD} more"] * (len(told) > MOST_TOLD)
    text += f"{groups[0].series} is ahead of {units.listed([*told[:MOST_TOLD], *more])}"
    return f"{text}{_caution(len(clear), [gap.point.n_seeds for gap in found.values()])}."


def _caution(n_clear: int, n_seeds: Sequence[int]) -> str:
    """How many pairs of all differ, and how many of equal ones would: those whose seeds agree by chance."""
    few = min(n for n in n_seeds if n >= LEAST_SEEDS)
    chance = f" (of equal pairs, at least 1 in {2 ** (few - 1)} would)" * (few <= FEW)
    return f"; the interval of {n_clear} of {len(n_seeds)} pair{'s' * (len(n_seeds) > 1)} excludes 0{chance}"


def _ahead(metric: Metric, group: Group, gap: Difference, unit: str) -> str:
    """`mamba by 12.3 points of accuracy [8.1 to 15.0]`, as a positive amount."""
    low, high = sorted(abs(end) for end in (gap.point.low or 0.0, gap.point.high or 0.0))
    size = gap.point._replace(value=abs(gap.point.value), low=low, high=high)
    parts = [f"{group.series} by {amount(metric, size.value, False)}", unit, interval(metric, size, False)]
    return " ".join(part for part in parts if part)


def _win(gap: float) -> float:
    return 0.5 if gap == 0 else float(gap > 0)


def _rank(study: Study, group: Group) -> float:
    metric = study.headline(group.task)
    points = study.points(metric).get(group, {})
    length = group.train_seq_len if group.train_seq_len in points else max(points, default=0)
    return -metric.sign * points[length].value if points else float("inf")
