"""Tasks with parts (the depths of a needle, the components of a mixture): accuracy by part and length."""

from __future__ import annotations

from arch_bench.report import metrics
from arch_bench.report.facets import Facet
from arch_bench.report.parts import HeatMap
from arch_bench.report.study import Group, Study, mean
from arch_bench.report.tables import Cell, Table, average, build, n_seeds

PREFIX = f"{metrics.ACCURACY.name}/"


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
    lines = [_line(study, group, part, lengths) for group, found in every for part in found.parts]
    columns = ["task", "backbone", "trained at", "part", *(f"at {n:,}" for n in lengths), "seeds"]
    note = "Token accuracy by part of a task: the mean over seeds, and its 95 % bootstrap interval where it shows."
    return build("Quality by part, in numbers", note, columns, lines)


def _line(study: Study, group: Group, part: str, lengths: list[int]) -> list[Cell]:
    start = [Cell(group.task), Cell(group.series), Cell(f"{group.train_seq_len:,}", group.train_seq_len), Cell(part)]
    rows = {length: study.at("quality", group, length) for length in lengths}
    scores = [average(rows[length], PREFIX + part.replace(" ", "_"), metrics.ACCURACY.show) for length in lengths]
    n = n_seeds(row for of in rows.values() for row in of)
    return [*start, *scores, Cell(str(n), n)]


def _map(study: Study, facet: Facet, group: Group) -> HeatMap | None:
    by_length = study.index["quality"][group]
    lengths = sorted(
        length for length, rows in by_length.items() if any(PREFIX in "".join(row.metrics) for row in rows)
    )
    every = [row for length in lengths for row in by_length[length]]
    parts = list(dict.fromkeys(name for row in every for name in row.metrics if name.startswith(PREFIX)))
    if not parts:
        return None
    values = [[mean(by_length[length], part) for length in lengths] for part in parts]
    n_trained = len({other.train_seq_len for other in study.groups("quality", facet)})
    series = group.series if n_trained == 1 else f"{group.series}, trained at {group.train_seq_len:,}"
    names = [part.removeprefix(PREFIX).replace("_", " ") for part in parts]
    return HeatMap(facet, series, metrics.ACCURACY, lengths, names, values)
