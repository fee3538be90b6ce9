"""The table of seeds that solve a task: a recall task flips from guessing to right, and a mean hides that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arch_bench.report import metrics
from arch_bench.report.study import Group, Study, number
from arch_bench.report.tables import NOTHING, Cell, Table, build, solved
from arch_bench.results import Row

NOTE = (
    f"Seeds with a token accuracy of {100 * metrics.SOLVED:.0f} % and more on the test split of each length, of all; "
    "one that diverged has not solved it. Steps until validation reached that: the median over the seeds that got "
    "there, and their range."
)


def numbers(study: Study) -> Table | None:
    """One line per series and training length, one column per tested length; texts are never solved, and left out."""
    groups = [group for group in study.groups("quality") if study.headline(group.task) is metrics.ACCURACY]
    lengths = sorted({length for group in groups for length in study.index["quality"][group]})
    columns = ["task", "backbone", "trained at", *(f"at {n:,}" for n in lengths), "steps to 99 %", "got there"]
    return build("Seeds that solve it", NOTE, columns, [_line(study, group, lengths) for group in groups])


def steps_to_99(rows: Sequence[Row]) -> tuple[list[float], int]:
    """Steps of the seeds that got there, rising, and how many were trained to an end or diverged."""
    diverged = {row.seed: None for row in rows if row.status == "diverged"}  # it may at a longer test length only
    by_seed = diverged | {row.seed: number(row, "steps_to_99") for row in rows if "steps_to_99" in row.metrics}
    return sorted(steps for steps in by_seed.values() if steps is not None), len(by_seed)


def _line(study: Study, group: Group, lengths: Sequence[int]) -> list[Cell]:
    every = [row for length in lengths for row in study.at("quality", group, length)]
    start = [Cell(group.task), Cell(group.series), Cell(f"{group.train_seq_len:,}", group.train_seq_len)]
    shares = [solved(study, group, length) for length in lengths]
    cells = [Cell(f"{share[0]}/{share[1]}", share[0] / share[1]) if share else NOTHING for share in shares]
    return [*start, *cells, *_steps(*steps_to_99(every))]


def _steps(steps: Sequence[float], n_trained: int) -> list[Cell]:
    if not n_trained:
        return [NOTHING, NOTHING]
    share = Cell(f"{len(steps)}/{n_trained}", len(steps) / n_trained)
    if not steps:
        return [Cell("never", float("inf")), share]
    middle, ends = float(np.median(steps)), dict.fromkeys(f"{step:,.0f}" for step in (steps[0], steps[-1]))
    span = f" [{' to '.join(ends)}]" if len(ends) > 1 else " (1 seed)" if len(steps) == 1 else ""
    return [Cell(f"{middle:,.0f}{span}", middle), share]
