"""Pareto fronts: whom nobody beats in score and cost at once, at one training length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from arch_bench.report import facets, metrics, units
from arch_bench.report.crossovers import dials_of
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Point, Study
from arch_bench.report.tables import Cell, Table, build, words

COSTS = {
    metrics.STATE: "state of a sequence",
    metrics.TOKENS_PER_S: "training tokens/s",
    metrics.PEAK_MEMORY: "peak memory, training",
    metrics.TRAIN_ENERGY: "energy, mJ per trained token",
}
"""What scores are held against -> what it is called."""
NOTE = (
    "On a front: no other has both a better score and a lower cost (more tokens/s), by their means; where intervals "
    "overlap, a front may be chance. A cost is that of the same backbone at the measured length nearest to training."
)


class Rival(NamedTuple):
    """One contender, with what it scores and what that costs."""

    group: Group
    score: Point
    cost: Point


class Front(NamedTuple):
    """One cost at one training length."""

    facet: Facet
    train_seq_len: int
    metric: Metric
    """The cost."""
    score: Metric
    length: int
    """At which the cost was measured."""
    batching: str
    rivals: list[Rival]
    """All that have both, the best score first."""
    without: list[Group]
    """Those that have a score and no such cost."""

    @property
    def best(self) -> list[Rival]:
        """Those on the front, from the best cost to the best score."""
        return front(self.rivals, self.score, self.metric)

    @property
    def title(self) -> str:
        """`peak memory, training, at 256 tokens, batch 1`."""
        policy = "" if self.metric is metrics.STATE else facets.words(self.batching)  # a state is that of one sequence
        parts = (COSTS[self.metric], f"at {units.tokens(self.length)}", policy)
        return ", ".join(part for part in parts if part)


def front(rivals: Sequence[Rival], score: Metric, cost: Metric) -> list[Rival]:
    """Those that no other dominates: is at least as good in both, and better in one."""
    good = {rival: (score.sign * rival.score.value, cost.sign * rival.cost.value) for rival in rivals}
    kept = [one for one in rivals if not any(_dominates(good[other], good[one]) for other in rivals)]
    return sorted(kept, key=lambda rival: (-good[rival][1], good[rival][0]))


def fronts(study: Study) -> list[list[Front]]:
    """For each task and training length a front per cost that at least two contenders have."""
    places = dict.fromkeys((group.task, group.train_seq_len) for group in study.groups("quality"))
    found = [[_front(study, Facet(task), trained, cost) for cost in COSTS] for task, trained in places]
    return [kept for row in found if (kept := [each for each in row if each])]


def numbers(study: Study) -> Table | None:
    """One line per front."""
    lines = [
        [
            Cell(each.facet.task),
            Cell(f"{each.train_seq_len:,}", each.train_seq_len),
            Cell(each.title),
            Cell(", ".join(rival.group.series for rival in each.best)),
            Cell(_names(rival.group for rival in each.rivals if rival not in each.best)),
            Cell(_names(each.without)),
        ]
        for row in fronts(study)
        for each in row
    ]
    columns = ["task", "trained at", "cost", "on the front, from the best cost to the best score", "dominated"]
    return build("Who is on which front", NOTE, [*columns, "not measured"], lines)


def _front(study: Study, facet: Facet, trained: int, cost: Metric) -> Front | None:
    """At the nearest length that at least two have, under the first batch policy that has one."""
    metric = study.headline(facet.task)
    scored = {group: of[trained] for group, of in study.of(facet, metric).items() if group.train_seq_len == trained
              and trained in of}  # fmt: skip
    for priced in study.facets(cost.kind):
        if priced.task != facet.task:
            continue
        prices = {group: found for group in scored if (found := _prices(study, group, priced, cost))}
        lengths = [length for of in prices.values() for length in of]
        shared = [length for length in set(lengths) if lengths.count(length) > 1]
        if shared:
            length = min(shared, key=lambda n: (abs(math.log2(n / trained)), -n))
            rivals = [Rival(group, scored[group], of[length]) for group, of in prices.items() if length in of]
            rivals.sort(key=lambda rival: -metric.sign * rival.score.value)
            without = [group for group in scored if length not in prices.get(group, {})]
            return Front(facet, trained, cost, metric, length, priced.batching, rivals, without)
    return None


def _prices(study: Study, scored: Group, priced: Facet, cost: Metric) -> Mapping[int, Point]:
    """Of the one cost series that is the same contender; of several, that which ran as the training did."""
    of = study.of(priced, cost)
    same = [group for group in of if _is_same(study, scored, group)]
    if len(same) > 1:
        ran = words(str(row.metrics.get("step", "")) for row in study.at("quality", scored, scored.train_seq_len))
        same = [group for group in same if group.series.endswith(f"({ran})")]
    return of[same[0]] if len(same) == 1 else {}


def _is_same(study: Study, one: Group, other: Group) -> bool:
    """Whether two series are one backbone, with the same value of each dial that both names show."""
    dials = dials_of(one.series), dials_of(other.series)
    agree = all(dials[0][name] == dials[1][name] for name in dials[0].keys() & dials[1])
    return agree and study.labels.backbone[one.series] == study.labels.backbone[other.series]


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def _names(groups: Iterable[Group]) -> str:
    return ", ".join(group.series for group in groups)
