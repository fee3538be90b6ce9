"""The sentence on a task: who leads at the training length, whom its seeds cannot rank, and who only guesses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from arch_bench.report import metrics, pairs, tables, units
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.shortfalls import shortfalls
from arch_bench.report.study import Group, Point, Study

CLOSE = {metrics.ACCURACY: 0.01, metrics.BITS_PER_BYTE: 0.01}
"""Scores no further apart than this are called level."""
WITHIN = {metrics.ACCURACY: "within 1 point", metrics.BITS_PER_BYTE: "within 0.01"}
"""`CLOSE`, in words."""
NEAR_GUESSING = {metrics.ACCURACY: 0.02, metrics.BITS_PER_BYTE: 0.1}
MOST_NAMED = 3
"""Contenders in one clause."""


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


def sentence(study: Study, task: str) -> str:
    """Empty without a score at a training length."""
    contest = _contest(study, task)
    if not contest:
        return ""
    where = f"On {task} at {units.tokens(contest.length)}"
    if not contest.ranked:
        return f"{where}, nothing is ranked, for want of seeds: {_unranked(contest)}."
    text = f"{where} ({behind(contest.ranked)}), {_ranking(study, contest)}"
    return f"{text}; not ranked, for want of seeds: {_unranked(contest)}." if contest.short else f"{text}."


def is_guessing(point: Point, guess: float, metric: Metric) -> bool:
    return metric.sign * (point.value - guess) <= NEAR_GUESSING[metric]


def behind(entries: Sequence[Entry]) -> str:
    """How many seeds are behind some entries."""
    return units.seeds(*(entry.point.n_seeds for entry in entries))


def words(metric: Metric, point: Point) -> str:
    """With the interval of several seeds; the spread of one is told in the tables."""
    return tables.text(metric, point) if point.n_seeds > 1 else metric.show(point.value)


def _contest(study: Study, task: str) -> Contest | None:
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
    tested = [group for group in groups if study.at("quality", group, length)]
    return Contest(length, metric, entries, shortfalls(study, tested, metric, [length]))


def _ranking(study: Study, contest: Contest) -> str:
    """Who leads of those with every seed, and who does not get past guessing."""
    metric, (best, *rest) = contest.metric, contest.ranked
    guess = study.best_baseline(best.group.task, contest.length)
    guessing = f"the {guess[0]} baseline ({metric.show(guess[1])})" if guess else ""
    lost = [entry for entry in contest.entries if guess and is_guessing(entry.point, guess[1], metric)]
    if best in lost:
        some = "nothing" if len(lost) == len(contest.entries) else "of those with every seed none"
        return f"{some} gets past {guessing}: the best is {_scored(best, metric)}"
    level = [best, *(entry for entry in rest if abs(entry.point.value - best.point.value) <= CLOSE[metric])]
    unclear = [entry for entry in rest if entry not in level and not _is_behind(study, contest, entry)]
    text = _leading(contest, level, unclear, lost)
    if lost := [entry for entry in rest if entry in lost]:
        verb = "does" if len(lost) == 1 else "do"
        return f"{text}; {units.listed([_scored(each, metric) for each in lost])} {verb} not get past {guessing}"
    is_last = rest and rest[-1] not in level and rest[-1] not in unclear
    return f"{text}; {_scored(rest[-1], metric)} is last" if is_last else text


def _is_behind(study: Study, contest: Contest, entry: Entry) -> bool:
    """By seed: intervals that touch are no reason to call two level, for the same seeds are hard for both."""
    gap = pairs.difference(study, contest.ranked[0].group, entry.group, contest.length)
    return gap is not None and gap.is_clear


def _leading(contest: Contest, level: Sequence[Entry], unclear: Sequence[Entry], lost: Sequence[Entry]) -> str:
    """Nobody scores best whom the seeds cannot tell from another."""
    metric, best, n = contest.metric, level[0], len(contest.ranked)
    others = few([_scored(entry, metric) for entry in unclear if entry not in lost])
    doubt = f"{behind([best])} cannot tell {{}} from {others}" if others else ""
    if len(level) > 1:
        text = f"{units.listed([_scored(entry, metric) for entry in level])} are level in {metric.title}"
        text = text if len(level) <= MOST_NAMED else f"{len(level)} of {n} are level in {metric.title}"
        among = f", {_scored(best, metric)} among them" * (len(level) > MOST_NAMED)
        return f"{text} ({WITHIN[metric]}){among}" + (f"; {doubt.format(best.series)}" if doubt else "")
    verb = "leads with" if unclear else "scores" if n == 1 else "scores best:"
    text = f"{best.series} {verb} {words(metric, best.point)} {metric.title}"
    return f"{text}, but {doubt.format('it')}" if doubt else text


def _unranked(contest: Contest) -> str:
    """`mamba (99.0 %, 1 of 3 seeds: 2 diverged)`; the best first, those without a score last."""
    scored = {entry.group: entry.point for entry in contest.entries if entry.group in contest.short}
    without = [group for group in contest.short if group not in scored]
    return few([_lacking(contest, group, scored) for group in [*scored, *without]])


def _lacking(contest: Contest, group: Group, scored: Mapping[Group, Point]) -> str:
    score = f"{words(contest.metric, scored[group])}, " if group in scored else ""
    return f"{group.series} ({score}{contest.short[group]})"


def few(names: Sequence[str]) -> str:
    """Some by name, the others by their number; empty for none."""
    more = [f"{len(names) - MOST_NAMED} more"] * (len(names) > MOST_NAMED)
    return units.listed([*names[:MOST_NAMED], *more]) if names else ""


def _scored(entry: Entry, metric: Metric) -> str:
    return f"{entry.series} ({words(metric, entry.point)})"
