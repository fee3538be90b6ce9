"""Searches of several dials: what was tried, what validation said of it, and what was given up."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from arch_bench.report import devices, dials, metrics
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Study, number
from arch_bench.report.tables import NOTHING, Cell, Table, build
from arch_bench.results import Row

MOST = 10
"""Trials of a search in the table."""
NOTE = (
    f"The {MOST} best trials of each search, by the loss on the validation split after training at one seed; the best "
    "was then tested at every seed. Pruned: given up in the middle, where it was worse than the median of the others."
)


class Search(NamedTuple):
    """The trials of one contender."""

    task: str
    series: str
    train_seq_len: int
    metric: Metric
    rows: list[Row]
    """The best first; those without a loss last."""

    @property
    def best(self) -> tuple[Row, float] | None:
        loss = self.loss(self.rows[0])
        return None if loss is None else (self.rows[0], loss)

    @property
    def counts(self) -> str:
        """`20 (12 ok, 8 pruned)`."""
        of = Counter(row.status for row in self.rows)
        parts = ", ".join(
            f"{of[status]} {status}" for status in sorted(of, key=lambda status: (status != "ok", status))
        )
        return f"{len(self.rows):,} ({parts})"

    def loss(self, row: Row) -> float | None:
        return number(row, self.metric.name) if row.status == "ok" else None


def searches(study: Study) -> list[Search]:
    """By task, backbone and length."""
    found: dict[tuple[str, str], list[Row]] = {}
    names = devices.known(study.trials)
    for row in study.trials:
        found.setdefault((row.config["trial"]["study"], devices.device(row, names)), []).append(row)
    commons = [_common(rows) for rows in found.values()]
    labels = dials.label(commons)
    every = [_search(rows, *labels.of(common)) for rows, common in zip(found.values(), commons, strict=True)]
    return sorted(every, key=lambda search: (search.task, search.series, search.train_seq_len))


def numbers(study: Study) -> Table | None:
    """One line per trial, one column per dial that was searched."""
    found = searches(study)
    names = sorted({name for search in found for row in search.rows for name in values(row)})
    columns = ["task", "backbone", "trained at", "trials", "trial", *names, "loss", "validation", "status"]
    lines = [_line(search, row, names) for search in found for row in search.rows[:MOST]]
    return build("Searches", NOTE, columns, lines)


def values(row: Row) -> dict[str, dials.Value]:
    """What a trial tried, by dial."""
    tried: dict[str, dials.Value] = row.config["trial"]["values"]
    return tried


def _search(rows: Sequence[Row], task: str, series: str) -> Search:
    is_regression = any(metrics.VAL_MSE.name in row.metrics for row in rows)
    search = Search(task, series, rows[0].train_seq_len, metrics.VAL_MSE if is_regression else metrics.VAL_LOSS, [])

    def order(row: Row) -> tuple[float, int]:
        loss = search.loss(row)
        return math.inf if loss is None else loss, row.config["trial"]["number"]

    return search._replace(rows=sorted(rows, key=order))


def _common(rows: Sequence[Row]) -> Row:
    """One of a search, with the dials only that all of it shares: they tell searches apart, the others trials."""
    first, *others = (dials.flatten(row.config) for row in rows)
    varying = {name for other in others for name in first.keys() | other.keys() if first.get(name) != other.get(name)}
    return dataclasses.replace(rows[0], config=_without(rows[0].config, varying | values(rows[0]).keys()))


def _without(config: Mapping[str, Any], names: set[str], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without(value, names, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in config.items()
        if f"{prefix}{key}" not in names
    }


def _line(search: Search, row: Row, names: Sequence[str]) -> list[Cell]:
    place, tried, loss = row.config["trial"]["number"], values(row), search.loss(row)
    return [
        Cell(search.task),
        Cell(search.series),
        Cell(f"{search.train_seq_len:,}", search.train_seq_len),
        Cell(search.counts, len(search.rows)),
        Cell(str(place), place),
        *(Cell(dials.show(tried[name])) if name in tried else NOTHING for name in names),
        Cell(search.metric.title.rpartition(", ")[2]),
        NOTHING if loss is None else Cell(search.metric.show(loss), loss),
        Cell(row.status),
    ]
