"""The tables of a report, as text with a sort key beside each cell."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from arch_bench.report import dials, facets, metrics, units
from arch_bench.report.metrics import Metric
from arch_bench.report.shortfalls import shortfalls
from arch_bench.report.study import Group, Point, Study, by_seed, number, over_seeds
from arch_bench.results import Row


class Cell(NamedTuple):
    text: str
    value: float | None = None
    """What the page sorts by; None for words."""


NOTHING = Cell(units.DASH)
NOTES = {
    metrics.ACCURACY: "; over lengths: the area under accuracy against log length, from the training length to the "
    "longest, as a mean; a dash where a length that others of that task and training length have is missing, or a seed "
    "at one: over a part of them, running out of memory would raise it.",
    metrics.BEYOND: "; only what is asked at positions that training never reached: the others, at any length, have no "
    "more before them than in training.",
    metrics.BITS_PER_BYTE: "; less is better.",
    metrics.GENERATED: "; the model writes the whole answer itself, from its own tokens.",
}
"""What a table of scores adds to its note."""
EMPTY = ("", units.DASH)
MOST_SEEDS = 5
"""Scores that stand one by one."""


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    columns: list[str]
    rows: list[list[Cell]]

    @property
    def is_number(self) -> list[bool]:
        """Which columns hold numbers, and so stand flush right."""
        return [any(row[place].value is not None for row in self.rows) for place in range(len(self.columns))]

    def markdown(self) -> str:
        """Empty for a table that is a note alone."""
        if not self.rows:
            return ""
        body = [[cell.text.replace("|", "\\|").replace("\n", " ") for cell in row] for row in self.rows]
        align = ["right" if is_number else "left" for is_number in self.is_number]
        return tabulate(body, headers=self.columns, tablefmt="pipe", disable_numparse=True, colalign=align)


def scores(study: Study, metric: Metric) -> Table | None:
    """One line per series and training length, one column per tested length."""
    is_headline = metric in (metrics.ACCURACY, metrics.BITS_PER_BYTE)
    has_values = study.points(metric)
    groups = [
        group
        for group in study.groups("quality")
        if (study.headline(group.task) is metric if is_headline else group in has_values)
    ]
    lengths = sorted({length for group in groups for length in study.index["quality"][group]})
    if not groups:
        return None
    is_accuracy = metric is metrics.ACCURACY
    columns = ["task", "backbone", "trained at", *(f"at {n:,}" for n in lengths)]
    columns += ["best baseline"] if is_headline else []
    columns += ["over lengths"] if is_accuracy else []
    note = "Mean over seeds on the test split, and its 95 % t interval where it shows; one seed is no mean. Where some "
    note += "seeds learn the task and others do not, every seed stands in parentheses instead of an interval"
    note += NOTES[metric]
    lines = [_score_line(study, group, metric, lengths) for group in groups]
    return build(f"Scores: {metric.title}", note, [*columns, "seeds", "parameters"], lines)


def build(title: str, note: str, columns: Sequence[str], lines: Sequence[Sequence[Cell]]) -> Table | None:
    """A table without the columns that are empty in every line; None without a line."""
    kept = [place for place in range(len(columns)) if any(line[place].text not in EMPTY for line in lines)]
    if not lines:
        return None
    return Table(title, note, [columns[place] for place in kept], [[line[place] for place in kept] for line in lines])


def failures(study: Study) -> Table | None:
    """One line per outcome other than ok, its seeds together."""
    found: dict[tuple[tuple[str, ...], int, str, str], set[int]] = {}
    for row in study.rows:
        if row.status != "ok":
            line = _failed(study, row), row.seq_len, row.status, _brief(row)
            found.setdefault(line, set()).add(row.seed)
    lines = [
        [*map(Cell, names), Cell(f"{length:,}", length), Cell(status), Cell(_numbers(seeds)), Cell(reason)]
        for (names, length, status, reason), seeds in sorted(found.items())
    ]
    columns = ["kind", "task", "batching", "device", "backbone", "kernel", "length", "status", "seeds", "reason"]
    return build("Without a result", "Crosses in the figures; in a ranking, words beside the name.", columns, lines)


def _brief(row: Row) -> str:
    """The reason; of what an allocator has to say, as much as tells how much was missing (all of it is in rows.csv)."""
    return textwrap.shorten(row.reason, 130, placeholder=" …") if row.status == "oom" else row.reason


def _failed(study: Study, row: Row) -> tuple[str, ...]:
    """Kind, task, batching, device, backbone and kernel; kernels have no task, others have none once they failed."""
    policy, group = facets.words(facets.batching(row)), study.group(row)
    if row.kind == "kernels":
        return row.kind, "", policy, group.device, group.task, group.series
    rate = f" lr={dials.show(dials.flatten(row.config).get(dials.RATE))}" if row.kind == "scan" else ""
    return row.kind, group.task, policy, group.device, group.series + rate, ""


def text(metric: Metric, point: Point) -> str:
    """`99.8 % [99.1-99.9]`; the interval only where its ends look different."""
    return shown(metric.show, point)


def score_text(metric: Metric, point: Point) -> str:
    """As `text`; a single seed is no mean, and says so."""
    return text(metric, point) + " (1 seed)" * (point.n_seeds == 1)


def shown(show: units.Show, point: Point) -> str:
    """A value in its units, as `text`; with every seed instead of an interval, where they have two humps."""
    if point.scattered:
        return f"{show(point.value)} ({_each(show, point.scattered)})"
    if point.low is None or point.high is None:
        return show(point.value)
    low, high = show(point.low).removesuffix(" %"), show(point.high).removesuffix(" %")
    return show(point.value) + (f" [{low}{units.DASH}{high}]" if low != high else "")


def _each(show: units.Show, values: Sequence[float]) -> str:
    """`99.5, 99.4, 6.0`; of many seeds, how many lie above the widest gap."""
    if len(values) <= MOST_SEEDS:
        return ", ".join(show(value).removesuffix(" %") for value in values)
    gaps = [before - after for before, after in pairwise(values)]
    n_high = gaps.index(max(gaps)) + 1
    high, low = show(values[n_high - 1]), show(values[n_high])
    return f"{n_high} seeds at {high} and more, {len(values) - n_high} at {low} and less"


def solved(study: Study, group: Group, length: int) -> tuple[int, int] | None:
    """(seeds that solved the task, seeds that were trained to an end) by the test at a length; divergence counts."""
    rows = study.at("quality", group, length)
    scored = {row.seed: number(row, "token_accuracy") or 0.0 for row in rows if row.status in ("ok", "diverged")}
    if not scored or study.headline(group.task) is not metrics.ACCURACY:
        return None
    return sum(score >= metrics.SOLVED for score in scored.values()), len(scored)


def area_over_lengths(study: Study, group: Group) -> Point | None:
    """Mean accuracy along the logarithm of the length, by trapezoids.

    None for fewer than two lengths, and if a seed lacks one that any of its task and training length has.
    """
    points = study.of(group.facet, metrics.ACCURACY)
    rivals = [found for other, found in points.items() if other.train_seq_len == group.train_seq_len]
    lengths = sorted({length for found in rivals for length in found if length >= group.train_seq_len})
    if len(lengths) < 2 or shortfalls(study, [group], metrics.ACCURACY, lengths):
        return None
    of_length = [by_seed(study.at("quality", group, length), metrics.ACCURACY.name) for length in lengths]
    x = np.log2(lengths)
    areas = [float(np.trapezoid([of[seed] for of in of_length], x)) for seed in of_length[0]]
    return over_seeds([area / float(x[-1] - x[0]) for area in areas], metrics.ACCURACY.scale)


def span(rows: Sequence[Row], name: str, show: units.Show) -> Cell:
    """The value, or the range where rows differ."""
    values = [value for row in rows if (value := number(row, name)) is not None]
    if not values:
        return NOTHING
    ends = dict.fromkeys((show(min(values)), show(max(values))))
    return Cell(units.DASH.join(ends), min(values))


def _score_line(study: Study, group: Group, metric: Metric, lengths: Sequence[int]) -> list[Cell]:
    every = [row for length in lengths for row in study.at("quality", group, length)]
    cells = [Cell(group.task), Cell(group.series), Cell(f"{group.train_seq_len:,}", group.train_seq_len)]
    cells += [at_point(study, metric, group, length) for length in lengths]
    if metric in (metrics.ACCURACY, metrics.BITS_PER_BYTE):
        best = study.best_baseline(group.task, group.train_seq_len)
        cells.append(Cell(f"{best[0]} {metric.show(best[1])}", best[1]) if best else NOTHING)
    if metric is metrics.ACCURACY:
        area = area_over_lengths(study, group)
        cells.append(Cell(score_text(metric, area), area.value) if area else NOTHING)
    return [*cells, Cell(str(n_seeds(every)), n_seeds(every)), span(every, "n_params", units.count)]


def at_point(study: Study, metric: Metric, group: Group, length: int) -> Cell:
    point = study.points(metric).get(group, {}).get(length)
    trouble = study.trouble(metric.kind, group, length)
    if point is None:
        return Cell(trouble) if trouble else NOTHING
    words = score_text(metric, point) if metric.kind == "quality" else text(metric, point)
    return Cell(words + (f" ({trouble})" if trouble else ""), point.value)


def average(rows: Sequence[Row], name: str, show: units.Show) -> Cell:
    """The mean of the rows that ended well, with its interval where it shows."""
    point = over_seeds(list(by_seed(rows, name).values()), "share" if show is units.percent else "positive")
    return Cell(shown(show, point), point.value) if point else NOTHING


def words(words: Iterable[str]) -> str:
    return ", ".join(sorted({word for word in words if word})) or units.DASH


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(str(value) for value in sorted(values))


def n_seeds(rows: Iterable[Row]) -> int:
    return len({row.seed for row in rows})
