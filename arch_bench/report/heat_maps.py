"""Tasks with parts (the depths of a needle, the components of a mixture): accuracy by part and length.

Where answers are generated, those that match are counted: of an answer that is given, all but its first token may be
told from the tokens before.
"""

from __future__ import annotations

from arch_bench.report import metrics
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.parts import HeatMap
from arch_bench.report.study import Group, Study, mean
from arch_bench.report.tables import Cell, Table, average, build, n_seeds
from arch_bench.results import Row

PREFIXES = {f"{metric.name}/": metric for metric in (metrics.GENERATED, metrics.ACCURACY)}


def maps(study: Study) -> list[list[HeatMap]]:
    """A row per task that has parts, a map per series and training length."""
    rows = []
    for facet in study.facets("quality"):
        found = [_map(study, facet, group) for group in study.groups("quality", facet)]
        rows.append([each for each in found if each])
    return [row for row in rows if row]


def numbers(study: Study) -> Table | None:
    """One line per series, training length and part, one column per tested length."""
    every = [(group, found) for facet in study.facets("quality") for group in study.groups("quality", facet)
             if (found := _map(study, facet, group))]  # fmt: skip
    lengths = sorted({length for _, found in every for length in found.lengths})
    lines = [_line(study, group, found.metric, part, lengths) for group, found in every for part in found.parts]
    columns = ["task", "backbone", "trained at", "part", *(f"at {n:,}" for n in lengths), "seeds"]
    kinds = " or ".join(sorted({found.metric.title for _, found in every}))
    note = f"By part of a task, {kinds}: the mean over seeds, and its 95 % t interval where it shows."
    return build("Quality by part, in numbers", note, columns, lines)


def _line(study: Study, group: Group, metric: Metric, part: str, lengths: list[int]) -> list[Cell]:
    start = [Cell(group.task), Cell(group.series), Cell(f"{group.train_seq_len:,}", group.train_seq_len), Cell(part)]
    rows = {length: study.at("quality", group, length) for length in lengths}
    name = f"{metric.name}/{part.replace(' ', '_')}"
    scores = [average(rows[length], name, metric.show) for length in lengths]
    n = n_seeds(row for of in rows.values() for row in of)
    return [*start, *scores, Cell(str(n), n)]


def _map(study: Study, facet: Facet, group: Group) -> HeatMap | None:
    by_length = study.index["quality"][group]
    every = [row for rows in by_length.values() for row in rows]
    prefix = next((prefix for prefix in PREFIXES if any(_names(row, prefix) for row in every)), None)
    if prefix is None:
        return None
    lengths = sorted(n for n, rows in by_length.items() if any(_names(row, prefix) for row in rows))
    parts = list(dict.fromkeys(name for n in lengths for row in by_length[n] for name in _names(row, prefix)))
    values = [[mean(by_length[length], part) for length in lengths] for part in parts]
    n_trained = len({other.train_seq_len for other in study.groups("quality", facet)})
    series = group.series if n_trained == 1 else f"{group.series}, trained at {group.train_seq_len:,}"
    names = [part.removeprefix(prefix).replace("_", " ") for part in parts]
    return HeatMap(facet, series, PREFIXES[prefix], lengths, names, values)


def _names(row: Row, prefix: str) -> list[str]:
    return [name for name in row.metrics if name.startswith(prefix)]
