"""Contests: the contenders that share a task and a training length, and which of them the seeds tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from arch_bench.report import metrics, stats
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.shortfalls import shortfalls
from arch_bench.report.study import Group, Point, Study, by_seed, number
from arch_bench.results import Row

CLOSE = {metrics.ACCURACY: 0.01, metrics.BITS_PER_BYTE: 0.01}
"""Scores no further apart than this are called level."""
WITHIN = {metrics.ACCURACY: "within 1 point", metrics.BITS_PER_BYTE: "within 0.01"}
"""`CLOSE`, in words."""
MOST_TOLD = 3
"""Tasks that the sentences of a report are about: they share its error rate."""


class Entry(NamedTuple):
    group: Group
    point: Point

    @property
    def series(self) -> str:
        return self.group.series


class Contest(NamedTuple):
    """The contenders of a task at the training length that most of them share, the longest of those."""

    length: int
    metric: Metric
    entries: list[Entry]
    """Those with a score, the best first."""
    short: dict[Group, str]
    """Those that lack seeds, with a score or without, and what they have."""

    @property
    def ranked(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.group not in self.short]


class Verdicts:
    """Which contenders of a contest differ, with an error rate that all sentences of a study share."""

    def __init__(self, study: Study, contest: Contest) -> None:
        groups = [entry.group for entry in contest.ranked]
        self._level = stats.LEVEL / n_contests(study)
        self._place = {group: place for place, group in enumerate(groups)}
        self._stopped = {group for group in groups if has_stopped(study.at("quality", group, contest.length))}
        self._values = tested(study, groups, contest.metric, contest.length)
        self._means = {entry.group: entry.point.value for entry in contest.ranked}
        self._tolerance = CLOSE[contest.metric]

    def are_level(self, one: Group, other: Group) -> bool:
        """Whether two scores count as the same: nearly equal, or of trainings that stopped because both had learned."""
        near = abs(self._means[one] - self._means[other]) <= self._tolerance * (1 + 1e-9)
        return near or {one, other} <= self._stopped

    def are_apart(self, one: Group, other: Group) -> bool:
        if self.are_level(one, other):
            return False
        return bool(self._values[self._place[one], self._place[other]] <= self._level)

    def is_apart_from_all(self, one: Group) -> bool:
        return all(self.are_apart(one, other) for other in self._place if other != one)


def contest(study: Study, task: str) -> Contest | None:
    """Return the contest that the sentences on a task are about; None without a score at a training length."""
    metric = study.headline(task)
    by_length: dict[int, list[Entry]] = {}
    for group, points in study.of(Facet(task), metric).items():
        if group.train_seq_len in points:
            by_length.setdefault(group.train_seq_len, []).append(Entry(group, points[group.train_seq_len]))
    if not by_length:
        return None
    length = max(by_length, key=lambda length: (len(by_length[length]), length))
    entries = sorted(by_length[length], key=lambda entry: -metric.sign * entry.point.value)
    groups = [group for group in study.groups("quality", Facet(task)) if group.train_seq_len == length]
    present = [group for group in groups if study.at("quality", group, length)]
    return Contest(length, metric, entries, shortfalls(study, present, metric, [length]))


def told(study: Study) -> list[Contest]:
    """Return the contests that sentences are about, chosen by their order and never by their scores."""
    found = (contest(study, task) for task in study.tasks("quality"))
    return [each for each in found if each][:MOST_TOLD]


def n_contests(study: Study) -> int:
    """Return how many contests share the error rate of a study."""
    return max(1, len(told(study)))


def tested(study: Study, groups: Sequence[Group], metric: Metric, length: int) -> np.ndarray:
    """Return the adjusted p-values of all pairs of groups at one tested length."""
    samples = [
        np.array(list(by_seed(study.at("quality", group, length), metric.name).values()), dtype=float)
        for group in groups
    ]
    return stats.differences(samples, CLOSE[metric])


def has_stopped(rows: Sequence[Row]) -> bool:
    """Return whether every training ended early, because validation had reached `trainer.stop_at`."""
    ended = [row for row in rows if row.status == "ok"]
    return bool(ended) and all(_stopped(row) for row in ended)


def _stopped(row: Row) -> bool:
    trainer = row.config.get("trainer")
    if not isinstance(trainer, Mapping) or trainer.get("stop_at") is None:
        return False
    steps, most = number(row, "steps"), trainer.get("max_steps")
    return steps is not None and isinstance(most, int | float) and steps < most
