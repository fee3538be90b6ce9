"""The sentence on what becomes of a score beyond the length of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from arch_bench.report import units
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.shortfalls import shared_seeds, shortfalls
from arch_bench.report.standings import few, is_guessing, words
from arch_bench.report.study import Group, Point, Study, by_seed, over_seeds

MOST_CHANGES = 3
"""Of more, the best and the worst are told."""


class Change(NamedTuple):
    """One contender at both ends, over the seeds that have a score at each."""

    group: Group
    start: Point
    end: Point

    @property
    def size(self) -> float:
        """Relative; between two zeros nothing changes."""
        values = self.start.value, self.end.value
        return abs(values[0] - values[1]) / (max(values) or 1.0)


def sentence(study: Study) -> str:
    """At the longest tested length, where that is the furthest from training; empty if none is longer."""
    found: list[tuple[tuple[float, ...], str]] = []
    for task in study.tasks("quality"):
        metric = study.headline(task)
        starters = _starters(study, task, metric)
        for trained, tested in dict.fromkeys(_ends(study, group, metric) for group in starters):
            rivals = [group for group in starters if group.train_seq_len == trained]
            changes = [_change(study, group, metric, tested) for group in rivals
                       if _ends(study, group, metric)[1] == tested > trained
                       and shared_seeds(study, group, metric, (trained, tested))]  # fmt: skip
            if changes:
                rank = (tested / trained, max(change.size for change in changes))
                found.append((rank, _told(study, rivals, changes, metric, tested)))
    return max(found, key=lambda item: item[0])[1] if found else ""


def _starters(study: Study, task: str, metric: Metric) -> list[Group]:
    """Those that get past guessing at the length of training."""
    found = []
    for group, points in study.of(Facet(task), metric).items():
        start, guess = points.get(group.train_seq_len), study.best_baseline(task, group.train_seq_len)
        if start and not (guess and is_guessing(start, guess[1], metric)):
            found.append(group)
    return found


def _ends(study: Study, group: Group, metric: Metric) -> tuple[int, int]:
    return group.train_seq_len, max(study.points(metric)[group])


def _change(study: Study, group: Group, metric: Metric, tested: int) -> Change:
    """Other seeds at either end would be another comparison."""
    ends = group.train_seq_len, tested
    seeds = sorted(shared_seeds(study, group, metric, ends))
    scores = [by_seed(study.at("quality", group, length), metric.name) for length in ends]
    start, end = (over_seeds([of[seed] for seed in seeds], metric.scale) for of in scores)
    assert start
    assert end
    return Change(group, start, end)


def _told(study: Study, rivals: Sequence[Group], changes: Sequence[Change], metric: Metric, tested: int) -> str:
    """Those that lack seeds stand apart: what survives is no rival."""
    trained = rivals[0].train_seq_len
    went = [group for group in rivals if study.at("quality", group, tested)]
    short = shortfalls(study, went, metric, (trained, tested))
    changes = sorted(changes, key=lambda change: -metric.sign * change.end.value)
    whole = [change for change in changes if change.group not in short]
    shown = whole if len(whole) <= MOST_CHANGES else [whole[0], whole[-1]]
    among = f" (the ends of {len(whole)}, by their means there)" * (len(whole) > MOST_CHANGES)
    partly = few([f"{_goes(each, metric)} ({short[each.group]})" for each in changes if each.group in short])
    told = {change.group for change in changes}
    failed = few([f"{group.series} ({lack})" for group, lack in short.items() if group not in told])
    clauses = [units.listed([_goes(each, metric) for each in shown]) + among if shown else "", partly]
    clauses += [f"without a score there: {failed}"] if failed else []
    seeds = units.seeds(*(change.start.n_seeds for change in whole or changes))
    where = f"Trained on {rivals[0].task} at {units.tokens(trained)} and tested at {tested:,} ({seeds}), "
    return f"{where}{'; '.join(clause for clause in clauses if clause)}."


def _goes(change: Change, metric: Metric) -> str:
    return f"{change.group.series} goes from {words(metric, change.start)} to {words(metric, change.end)}"
