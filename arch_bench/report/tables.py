"""The tables of a report, as text with a sort key beside each cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from arch_bench.report import metrics, units
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Point, Study, mean, number
from arch_bench.results import Kind, Row


class Cell(NamedTuple):
    text: str
    value: float | None = None
    """What the page sorts by; None for words."""


NOTHING = Cell(units.DASH)


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
        body = [[cell.text.replace("|", "\\|").replace("\n", " ") for cell in row] for row in self.rows]
        align = ["right" if is_number else "left" for is_number in self.is_number]
        return tabulate(body, headers=self.columns, tablefmt="pipe", disable_numparse=True, colalign=align)


def scores(study: Study, metric: Metric) -> Table | None:
    """One line per series and training length, one column per tested length."""
    groups = [group for group in study.groups("quality") if study.headline(group.task) is metric]
    lengths = sorted({length for group in groups for length in study.index["quality"][group]})
    if not groups:
        return None
    is_accuracy = metric is metrics.ACCURACY
    columns = ["task", "backbone", "trained at", *(f"at {n:,}" for n in lengths), "best baseline"]
    columns += ["solved", "steps to 99 %"] if is_accuracy else []
    note = "Mean over seeds on the test split"
    note += (
        "; solved: the share of seeds that reach 99 % at the training length." if is_accuracy else "; less is better."
    )
    return Table(
        f"Scores: {metric.title}",
        note,
        [*columns, "seeds", "parameters"],
        [_score_line(study, group, metric, lengths) for group in groups],
    )


def training(study: Study) -> Table | None:
    """One line per task, length and series."""
    timings = {"forward ms": "forward_ms", "forward + backward ms": "forward_backward_ms"}
    lines = []
    for group, length in _by_length(study, "speed"):
        rows = study.at("speed", group, length)
        lines.append([
            Cell(group.task), Cell(f"{length:,}", length), Cell(group.series), span(rows, "batch_size", units.plain),
            _point(study, metrics.TOKENS_PER_S, group, length), _point(study, metrics.TRAIN_STEP, group, length),
            *(_mean(rows, name, units.plain) for name in timings.values()),
            _point(study, metrics.PEAK_MEMORY, group, length), _mean(rows, "warmup_s", units.plain),
            *_settings(rows),
        ])  # fmt: skip
    columns = ["task", "length", "backbone", "batch", "tokens/s", "step ms", *timings, "peak memory", "warm-up s"]
    note = "One optimiser step on one batch; brackets: p10 to p90 of one seed's steps, or the interval over seeds."
    return (
        Table("Training in numbers", note, [*columns, "kernel", "step", "parameters", "seeds"], lines)
        if lines
        else None
    )


def decoding(study: Study) -> Table | None:
    """One line per task, context length and series."""
    lines = []
    for group, length in _by_length(study, "decode"):
        rows = study.at("decode", group, length)
        lines.append([
            Cell(group.task), Cell(f"{length:,}", length), Cell(group.series), span(rows, "batch_size", units.plain),
            _point(study, metrics.PREFILL, group, length), _point(study, metrics.MS_PER_TOKEN, group, length),
            _mean(rows, "ms_per_token_p95", units.plain), _point(study, metrics.STATE, group, length),
            _mean(rows, "state_elements", units.count), _mean(rows, "peak_mem_bytes", units.size),
            Cell(_words(row.kernel for row in rows)),
            Cell(_words(str(row.metrics.get("step_kernel", "")) for row in rows)),
            Cell(str(_n_seeds(rows)), _n_seeds(rows)),
        ])  # fmt: skip
    columns = ["task", "context", "backbone", "batch", "prefill ms", "ms per token", "p95", "state", "state elements"]
    note = "A prompt in one pass, then one token at a time; the state is what is carried from token to token."
    columns += ["peak memory", "prefill kernel", "step kernel", "seeds"]
    return Table("Decoding in numbers", note, columns, lines) if lines else None


def failures(study: Study) -> Table | None:
    """One line per outcome other than ok, its seeds together."""
    found: dict[tuple[str, ...], tuple[int, set[int]]] = {}
    for row in study.rows:
        if row.status != "ok":
            task, series = study.labels.of(row)
            line = (row.kind, task, series, f"{row.seq_len:,}", row.status, row.reason)
            found.setdefault(line, (row.seq_len, set()))[1].add(row.seed)
    lines = [
        [Cell(text, length if place == 3 else None) for place, text in enumerate((*line[:5], _numbers(seeds), line[5]))]
        for line, (length, seeds) in sorted(found.items(), key=lambda item: (*item[0][:3], item[1][0], item[0][4:]))
    ]
    columns = ["kind", "task", "backbone", "length", "status", "seeds", "reason"]
    return Table("Without a result", "Drawn as crosses in the figures.", columns, lines) if lines else None


def text(metric: Metric, point: Point) -> str:
    """`99.8 % [99.1-99.9]`."""
    if point.low is None or point.high is None or point.low == point.high:
        return metric.show(point.value)
    low, high = metric.show(point.low).removesuffix(" %"), metric.show(point.high).removesuffix(" %")
    return f"{metric.show(point.value)} [{low}{units.DASH}{high}]"


def solved(study: Study, group: Group) -> tuple[int, int] | None:
    """(seeds that solved the task, seeds that were trained to an end) at the training length; divergence counts."""
    rows = study.at("quality", group, group.train_seq_len)
    scored = {row.seed: number(row, "token_accuracy") or 0.0 for row in rows if row.status in ("ok", "diverged")}
    if not scored or study.headline(group.task) is not metrics.ACCURACY:
        return None
    return sum(score >= metrics.SOLVED for score in scored.values()), len(scored)


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
    cells += [_point(study, metric, group, length) for length in lengths]
    best = study.best_baseline(group.task, group.train_seq_len)
    cells.append(Cell(f"{best[0]} {metric.show(best[1])}", best[1]) if best else NOTHING)
    if metric is metrics.ACCURACY:
        share = solved(study, group)
        cells.append(Cell(f"{share[0]}/{share[1]}", share[0] / share[1]) if share else NOTHING)
        cells.append(_steps_to_99(every))
    return [*cells, Cell(str(_n_seeds(every)), _n_seeds(every)), span(every, "n_params", units.count)]


def _steps_to_99(rows: Sequence[Row]) -> Cell:
    """The median over the seeds that got there, and how many did."""
    reached = {row.seed: number(row, "steps_to_99") for row in rows if "steps_to_99" in row.metrics}
    steps = [step for step in reached.values() if step is not None]
    if not reached:
        return NOTHING
    if not steps:
        return Cell("never", float("inf"))
    middle = float(np.median(steps))
    return Cell(f"{middle:,.0f}" + (f" ({len(steps)}/{len(reached)})" if len(steps) < len(reached) else ""), middle)


def _by_length(study: Study, kind: Kind) -> list[tuple[Group, int]]:
    """By task, then length, then series: what is compared stands together."""
    pairs = [(group, length) for group in study.groups(kind) for length in study.index[kind][group]]
    tasks = study.labels.tasks
    return sorted(pairs, key=lambda pair: (tasks.index(pair[0].task), pair[1]))


def _settings(rows: Sequence[Row]) -> list[Cell]:
    """The columns that say what ran."""
    steps = _words(str(row.metrics["step"]) for row in rows if row.metrics.get("step"))
    seeds = _n_seeds(rows)
    kernels = _words(row.kernel for row in rows)
    return [Cell(kernels), Cell(steps), span(rows, "n_params", units.count), Cell(str(seeds), seeds)]


def _point(study: Study, metric: Metric, group: Group, length: int) -> Cell:
    point = study.points(metric).get(group, {}).get(length)
    trouble = study.trouble(metric.kind, group, length)
    if point is None:
        return Cell(trouble) if trouble else NOTHING
    return Cell(text(metric, point) + (f" ({trouble})" if trouble else ""), point.value)


def _mean(rows: Sequence[Row], name: str, show: units.Show) -> Cell:
    value = mean((row for row in rows if row.status == "ok"), name)
    return NOTHING if value is None else Cell(show(value), value)


def _words(words: Iterable[str]) -> str:
    return ", ".join(sorted({word for word in words if word})) or units.DASH


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(str(value) for value in sorted(values))


def _n_seeds(rows: Iterable[Row]) -> int:
    return len({row.seed for row in rows})
