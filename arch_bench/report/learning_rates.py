"""Scans of the learning rate: what was tried, what validation said of each, and which rate was chosen by that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from arch_bench.report import dials, metrics, units
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Point, Study, number, over_seeds
from arch_bench.report.tables import NOTHING, Cell, Table, build, score_text
from arch_bench.results import Row
from arch_bench.sweep import rates as learning_rate

MOST_TOLD = 3
"""Scans in one sentence."""
NOTE = (
    "Loss on the validation split after a training run at each rate; chosen: the lowest, or what stopped after the "
    "fewest steps where trainings may (trainer.stop_at), and the middle one of those that end within "
    f"{learning_rate.TIE:g} of it. A best rate at the edge of what was tried may not be the best there is; beyond one "
    "that diverged there is nothing to try. One seed to a rate cannot tell near ones apart."
)


class Trial(NamedTuple):
    """One rate of one scan."""

    rate: float
    loss: Point | None
    """None where a run did not end well."""
    trouble: str
    """The statuses other than ok."""
    steps: float
    """That it was trained for, as a mean over seeds: fewer than others where it stopped early."""

    @property
    def is_telling(self) -> bool:
        """Whether it says that a rate is better or worse: a loss, or a divergence."""
        return self.loss is not None or self.trouble == "diverged"


class Scan(NamedTuple):
    group: Group
    metric: Metric
    trials: list[Trial]
    """By rising rate."""
    used: list[float]
    """Rates at which the scored runs were trained."""

    @property
    def _trained(self) -> dict[float, learning_rate.Trained]:
        return {trial.rate: learning_rate.Trained(trial.steps, trial.loss.value) for trial in self.trials if trial.loss}

    @property
    def chosen(self) -> Trial | None:
        """As `protocol.Fair` chooses."""
        rate = learning_rate.chosen(self._trained)
        return next((trial for trial in self.trials if trial.rate == rate), None)

    @property
    def edge(self) -> str:
        """`lowest`, `highest` or `only`, if the best rate is that of those tried, and none is as good."""
        telling, best = [trial.rate for trial in self.trials if trial.is_telling], learning_rate.best(self._trained)
        if len(best) != 1 or best[0] not in (telling[0], telling[-1]):
            return ""
        return "only" if len(telling) == 1 else "lowest" if best[0] == telling[0] else "highest"

    @property
    def strays(self) -> list[float]:
        """Rates of scored runs other than the chosen one."""
        return [rate for rate in self.used if self.chosen and not math.isclose(rate, self.chosen.rate)]


def scans(study: Study) -> list[Scan]:
    """In reading order."""
    return [_scan(study, group) for group in study.groups("scan")]


def numbers(study: Study) -> Table | None:
    """One line per scan, one column per rate."""
    found = scans(study)
    rates = sorted({trial.rate for scan in found for trial in scan.trials})
    columns = ["task", "backbone", "trained at", "loss", *(f"lr {dials.show(rate)}" for rate in rates)]
    columns += ["chosen", "caution", "seeds"]
    return build("Learning rates tried", NOTE, columns, [_line(study, scan, rates) for scan in found])


def warning(study: Study) -> str:
    """Which scans should be widened, and which scored runs did not use the chosen rate."""
    found = scans(study)
    edges = [f"{_who(scan)} ({dials.show(scan.chosen.rate)})" for scan in found if scan.edge and scan.chosen]
    strays = [f"{_who(scan)} ({_rates(scan.strays)})" for scan in found if scan.strays]
    parts = []
    if edges:
        parts.append(f"The best learning rate is at the edge of what was tried for {_few(edges)}: try more.")
    if strays:
        parts.append(f"Scored runs were trained at another rate than the scan's best for {_few(strays)}.")
    return " ".join(parts)


def _scan(study: Study, group: Group) -> Scan:
    by_rate: dict[float, list[Row]] = {}
    for rows in study.index["scan"][group].values():
        for row in rows:
            if (rate := rate_of(row)) is not None:
                by_rate.setdefault(rate, []).append(row)
    every = [row for rows in by_rate.values() for row in rows]
    metric = metrics.VAL_MSE if any(metrics.VAL_MSE.name in row.metrics for row in every) else metrics.VAL_LOSS
    trials = [_trial(rate, by_rate[rate], metric) for rate in sorted(by_rate)]
    return Scan(group, metric, trials, _used(study, group))


def _trial(rate: float, rows: Sequence[Row], metric: Metric) -> Trial:
    trouble = ", ".join(sorted({row.status for row in rows} - {"ok"}))
    losses = [value for row in rows if (value := number(row, metric.name)) is not None]
    is_done = not trouble and len(losses) == len(rows)
    steps = [number(row, "steps") or 0.0 for row in rows]
    return Trial(rate, over_seeds(losses) if is_done else None, trouble or "no loss" * (not is_done), fmean(steps))


def _used(study: Study, group: Group) -> list[float]:
    """Of the scored runs that share task, training length and every dial but the rate."""
    same = [
        other
        for other in study.groups("quality")
        if (other.task, other.train_seq_len) == (group.task, group.train_seq_len)
        and without_rate(other.series) == group.series
    ]
    rows = [row for other in same for rows in study.index["quality"][other].values() for row in rows]
    return sorted({rate for row in rows if (rate := rate_of(row)) is not None})


def rate_of(row: Row) -> float | None:
    """The learning rate that a row was asked for; None where its configuration says none."""
    optim = row.config.get("optim")
    rate = optim.get("lr") if isinstance(optim, dict) else None
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < math.inf:
        return None
    return float(rate)


def without_rate(series: str) -> str:
    """The name of a series without the learning rate in it."""
    return " ".join(part for part in series.split(" ") if part.partition("=")[0] not in ("lr", dials.RATE))


def _line(study: Study, scan: Scan, rates: Sequence[float]) -> list[Cell]:
    trials = {trial.rate: trial for trial in scan.trials}
    n_seeds = {row.seed for rows in study.index["scan"][scan.group].values() for row in rows}
    return [
        Cell(scan.group.task),
        Cell(scan.group.series),
        Cell(f"{scan.group.train_seq_len:,}", scan.group.train_seq_len),
        Cell(scan.metric.title.rpartition(", ")[2]),
        *(_tried(scan.metric, trials.get(rate)) for rate in rates),
        Cell(dials.show(scan.chosen.rate), scan.chosen.rate) if scan.chosen else Cell("none"),
        Cell(_caution(scan)),
        Cell(str(len(n_seeds)), len(n_seeds)),
    ]


def _tried(metric: Metric, trial: Trial | None) -> Cell:
    if trial is None:
        return NOTHING
    if trial.loss is None:
        return Cell(trial.trouble)
    words = metric.show(trial.loss.value) if trial.loss.n_seeds == 1 else score_text(metric, trial.loss)
    return Cell(words, trial.loss.value)


def _caution(scan: Scan) -> str:
    words = {"only": "the only rate tried", "": ""}.get(scan.edge, f"the {scan.edge} tried")
    strays = f"scored runs at {_rates(scan.strays)}" if scan.strays else ""
    return "; ".join(part for part in (words, strays) if part)


def _who(scan: Scan) -> str:
    return f"{scan.group.series} on {scan.group.task} at {units.tokens(scan.group.train_seq_len)}"


def _few(names: Sequence[str]) -> str:
    more = len(names) - MOST_TOLD
    return units.listed([*names[:MOST_TOLD], f"{more} more"] if more > 0 else names)


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(map(dials.show, rates))
