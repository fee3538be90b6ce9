"""The table of loss by kind of position: what recall costs, and how much context a model uses."""

from __future__ import annotations

from arch_bench.report import metrics
from arch_bench.report.study import Group, Study
from arch_bench.report.tables import NOTHING, Cell, Table, average, n_seeds

PREFIX = f"{metrics.BITS_PER_BYTE.name}/"
NOTE = (
    "Bits per byte, the mean over seeds with its 95 % t interval; less is better. recall: the byte ends a "
    "pair that the context held before; other: it does not. position 16: positions 16 to 31, and so on."
)


def numbers(study: Study) -> Table | None:
    """One line per series, training length and tested length; a column per kind of position."""
    every = [(group, length) for group in study.groups("quality") for length in sorted(study.index["quality"][group])]
    names = {name: None for group, n in every for row in study.at("quality", group, n) for name in row.metrics}
    kinds = [name for name in names if name.startswith(PREFIX)]
    lines = [_line(study, group, length, kinds) for group, length in every]
    kept = [line for line in lines if any(cell is not NOTHING for cell in line[4:-1])]
    columns = ["task", "backbone", "trained at", "at", *(_title(kind) for kind in kinds), "seeds"]
    return Table("Loss by position", NOTE, columns, kept) if kept else None


def _title(kind: str) -> str:
    return kind.removeprefix(PREFIX).replace("_", " ")


def _line(study: Study, group: Group, length: int, kinds: list[str]) -> list[Cell]:
    rows = study.at("quality", group, length)
    cells = [average(rows, kind, metrics.BITS_PER_BYTE.show) for kind in kinds]
    start = [Cell(group.task), Cell(group.series), Cell(f"{group.train_seq_len:,}", group.train_seq_len)]
    return [*start, Cell(f"{length:,}", length), *cells, Cell(str(n_seeds(rows)), n_seeds(rows))]
