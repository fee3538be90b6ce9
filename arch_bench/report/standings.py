"""The sentence on a task: who leads at the training length, whom its seeds cannot rank, and who only guesses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arch_bench.report import contests, metrics, tables, units
from arch_bench.report.contests import CLOSE, WITHIN, Contest, Entry, Verdicts
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Point, Study

NEAR_GUESSING = {metrics.ACCURACY: 0.02, metrics.BITS_PER_BYTE: 0.1}
MOST_NAMED = 3
"""Contenders in one clause."""


def sentence(study: Study, task: str) -> str:
    """Empty without a score at a training length."""
    contest = contests.contest(study, task)
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


def _ranking(study: Study, contest: Contest) -> str:
    """Who leads of those with every seed, and who does not get past guessing."""
    metric, (best, *rest) = contest.metric, contest.ranked
    guess = study.best_baseline(best.group.task, contest.length)
    guessing = f"the {guess[0]} baseline ({metric.show(guess[1])})" if guess else ""
    lost = [entry for entry in contest.entries if guess and is_guessing(entry.point, guess[1], metric)]
    if best in lost:
        first = "highest" if metric.is_higher_better else "lowest"
        some = "nothing" if len(lost) == len(contest.entries) else "of those with every seed none"
        return f"{some} gets past {guessing}: the {first} mean is {_scored(best, metric)}"
    verdicts = Verdicts(study, contest)
    level = [best, *(entry for entry in rest if verdicts.are_level(best.group, entry.group))]
    unclear = [e for e in rest if e not in level and not verdicts.are_apart(best.group, e.group)]
    text = _leading(contest, level, unclear, lost)
    if lost := [entry for entry in rest if entry in lost]:
        verb = "does" if len(lost) == 1 else "do"
        return f"{text}; {units.listed([_scored(each, metric) for each in lost])} {verb} not get past {guessing}"
    is_last = rest and verdicts.is_apart_from_all(rest[-1].group)
    return f"{text}; {_scored(rest[-1], metric)} is last" if is_last else text


def _leading(contest: Contest, level: Sequence[Entry], unclear: Sequence[Entry], lost: Sequence[Entry]) -> str:
    """Nobody scores best whom the seeds cannot tell from another."""
    metric, best, n = contest.metric, level[0], len(contest.ranked)
    others = few([_scored(entry, metric) for entry in unclear if entry not in lost])
    doubt = f"{behind([best])} cannot tell {{}} from {others}" if others else ""
    first = "highest" if metric.is_higher_better else "lowest"
    if len(level) > 1:
        text = f"{units.listed([_scored(entry, metric) for entry in level])} are level in {metric.title}"
        text = text if len(level) <= MOST_NAMED else f"{len(level)} of {n} are level in {metric.title}"
        among = f", {_scored(best, metric)} among them" * (len(level) > MOST_NAMED)
        return f"{text} ({_nearness(contest, level)}){among}" + (f"; {doubt.format(best.series)}" if doubt else "")
    verb = f"has the {first} mean:" if unclear else "scores" if n == 1 else "scores best:"
    text = f"{best.series} {verb} {words(metric, best.point)} {metric.title}"
    return f"{text}, but {doubt.format('it')}" if doubt else text


def _nearness(contest: Contest, level: Sequence[Entry]) -> str:
    """Why entries are level: their scores, or that they stopped because they had learned as much as was asked."""
    gaps = [abs(entry.point.value - level[0].point.value) for entry in level]
    is_near = max(gaps) <= CLOSE[contest.metric] * (1 + 1e-9)
    return WITHIN[contest.metric] if is_near else f"{WITHIN[contest.metric]}, or all stopped at trainer.stop_at"


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
