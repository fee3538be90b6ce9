"""Pareto fronts: whom nobody beats in score and cost at once, at one training length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from arch_bench.report import dials, facets, metrics, units
from arch_bench.report.dials import Value
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Point, Study, number
from arch_bench.report.tables import Cell, Table, build, words
from arch_bench.results import Kind, Row

COSTS = {
    metrics.STATE: "state of a sequence",
    metrics.TOKENS_PER_S: "training tokens/s",
    metrics.PEAK_MEMORY: "peak memory, training",
    metrics.TRAIN_ENERGY: "energy, mJ per trained token",
}
"""What scores are held against -> what it is called."""
NOTE = (
    "On a front: no other has both a better score and a lower cost (more tokens/s), by their means; where intervals "
    "overlap, a front may be chance. A cost is that of the same model (backbone, parameters, precision) at the "
    "measured length nearest to training."
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
    priced: Facet
    """Of the cost."""
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
        is_state = self.metric is metrics.STATE  # which is that of one sequence
        conditions = self.priced.device if is_state else self.priced.conditions
        parts = (COSTS[self.metric], f"at {units.tokens(self.length)}", conditions)
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
    """Under the first batch policy that has one, on the device where most have both."""
    metric = study.headline(facet.task)
    scored = {group: of[trained] for group, of in study.of(facet, metric).items() if group.train_seq_len == trained
              and trained in of}  # fmt: skip
    same = [each for each in study.facets(cost.kind) if study.labels.is_one_task(each.task, facet.task)]
    every = [_priced(study, scored, priced, cost) for priced in same]
    found = [each for each in every if each]
    return min(found, key=lambda each: (facets.place(each.priced.batching), -len(each.rivals)), default=None)


def _priced(study: Study, scored: Mapping[Group, Point], priced: Facet, cost: Metric) -> Front | None:
    """At the nearest length that at least two have."""
    prices = {group: found for group in scored if (found := _prices(study, group, priced, cost))}
    lengths = [length for of in prices.values() for length in of]
    shared = [length for length in set(lengths) if lengths.count(length) > 1]
    if not shared:
        return None
    task, trained = next(iter(scored)).task, next(iter(scored)).train_seq_len
    metric = study.headline(task)
    length = min(shared, key=lambda n: (abs(math.log2(n / trained)), -n))
    rivals = [Rival(group, scored[group], of[length]) for group, of in prices.items() if length in of]
    rivals.sort(key=lambda rival: -metric.sign * rival.score.value)
    without = [group for group in scored if length not in prices.get(group, {})]
    return Front(Facet(task), trained, cost, metric, length, priced, rivals, without)


def _prices(study: Study, scored: Group, priced: Facet, cost: Metric) -> Mapping[int, Point]:
    """Of the one cost series that is the same contender; of several, that which ran as the training did."""
    rows = _ended(study, "quality", scored, scored.train_seq_len)
    same: dict[Group, dict[int, Point]] = {}
    for group, points in study.of(priced, cost).items():
        if not _is_same(study, scored, group):
            continue
        if kept := {n: of for n, of in points.items() if _is_one_model(rows, _ended(study, cost.kind, group, n))}:
            same[group] = kept
    if len(same) > 1:
        ran = words(str(row.metrics.get("step", "")) for row in rows)
        same = {group: of for group, of in same.items() if group.series.endswith(f"({ran})")}
    return next(iter(same.values())) if len(same) == 1 else {}


def _ended(study: Study, kind: Kind, group: Group, length: int) -> list[Row]:
    return [row for row in study.at(kind, group, length) if row.status == "ok"]


def _is_same(study: Study, one: Group, other: Group) -> bool:
    """Whether two series are one backbone, with the same value of each dial that both names show."""
    backbone = study.labels.backbone
    return backbone[one.series] == backbone[other.series] and study.labels.agree(one.series, other.series)


def _is_one_model(scored: Sequence[Row], timed: Sequence[Row]) -> bool:
    """Whether what was scored is what was timed, also by what no name shows: a dial may differ between the two only.

    A learned table of positions is as long as what is measured.
    """
    sizes = [{number(row, "n_params") for row in rows} - {None} for rows in (scored, timed)]
    has_table = any(_build(row).get("backbone.positions") == "learned" for row in timed[:1])
    is_sized = sizes[0] == sizes[1] or not all(sizes) or has_table
    return is_sized and all(_is_built_alike(one, other) for one in scored[:1] for other in timed[:1])


def _is_built_alike(one: Row, other: Row) -> bool:
    """By the dials that both have; many of a backbone's may follow from the training length."""
    first, second = _build(one), _build(other)
    names = first.keys() & second
    if one.train_seq_len != other.train_seq_len:
        names = {name for name in names if not name.startswith("backbone.")}
    return all(first[name] == second[name] for name in names)


def _build(row: Row) -> dict[str, Value]:
    """Without what the same model may be run by."""
    every = dials.flatten({name: row.config.get(name) for name in ("d_model", "n_layers", "backbone")})
    return {name: value for name, value in every.items() if dials.leaf(name) != "kernel"} | {"precision": row.precision}


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def _names(groups: Iterable[Group]) -> str:
    return ", ".join(group.series for group in groups)
