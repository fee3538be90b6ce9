"""The table of seeds that solve a task: a recall task flips from guessing to right, and a mean hides that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from arch_bench.report import contests, metrics, stats, units
from arch_bench.report.contests import Contest, Verdicts
from arch_bench.report.study import Group, Study, number
from arch_bench.report.tables import NOTHING, Cell, Table, build, solved
from arch_bench.results import Row

MOST_NAMED = 6
"""Contenders in one sentence."""
NOTE = (
    f"Seeds with a token accuracy of {100 * metrics.SOLVED:.0f} % and more on the test split of each length, of all; "
    "one that diverged has not solved it. Steps until validation reached that: the median over the seeds that got "
    "there, and their range. In brackets the exact (Clopper-Pearson) 95 % interval of the share: of three seeds that "
    "all solve it, that begins at 29 %. By Fisher's exact test three seeds against three never differ, not even 3/3 "
    "from 0/3 (p = 0.10); four against four may, as one pair alone."
)


def numbers(study: Study) -> Table | None:
    """One line per series and training length, one column per tested length; texts are never solved, and left out."""
    groups = [group for group in study.groups("quality") if study.headline(group.task) is metrics.ACCURACY]
    lengths = sorted({length for group in groups for length in study.index["quality"][group]})
    columns = ["task", "backbone", "trained at", *(f"at {n:,}" for n in lengths), "steps to 99 %", "got there"]
    return build("Seeds that solve it", NOTE, columns, [_line(study, group, lengths) for group in groups])


def sentences(study: Study) -> list[str]:
    """One per contest in which shares differ: how many seeds solve the task, and whether that tells any apart."""
    return [sentence for contest in contests.told(study) if (sentence := _sentence(study, contest))]


def _sentence(study: Study, contest: Contest) -> str:
    groups = [entry.group for entry in contest.ranked]
    shares = {group: share for group in groups if (share := solved(study, group, contest.length))}
    ordered = sorted(shares, key=lambda group: (-shares[group][0], group.series))
    if len({share[0] for share in shares.values()}) < 2 or min(n for _, n in shares.values()) < 2:
        return ""
    more = [f"{len(ordered) - MOST_NAMED} more"] * (len(ordered) > MOST_NAMED)
    names = [f"{group.series} {shares[group][0]}/{shares[group][1]}" for group in ordered[:MOST_NAMED]]
    where = f"Seeds that solve {groups[0].task} at {units.tokens(contest.length)} (99 % and more)"
    return f"{where}: {units.listed([*names, *more])}; {_verdict(study, contest, shares)}."


def _verdict(study: Study, contest: Contest, shares: Mapping[Group, tuple[int, int]]) -> str:
    """By Fisher's exact test; what the means do not tell apart is not told apart by what is made of them."""
    places, verdicts = list(combinations(shares, 2)), Verdicts(study, contest)
    adjusted = stats.holm(np.array([stats.fisher(*shares[one], *shares[other]) for one, other in places]))
    level = stats.LEVEL / contests.n_contests(study)
    apart = [
        (one, other) if shares[one][0] > shares[other][0] else (other, one)
        for (one, other), p in zip(places, adjusted, strict=True)
        if p <= level and verdicts.are_apart(one, other)
    ]
    n_pairs = f" ({len(places)} pairs)" * (len(places) > 1)
    if apart:
        told = [f"{one.series} from {other.series}" for one, other in apart[:MOST_NAMED]]
        more = [f"{len(apart) - MOST_NAMED} more pairs"] * (len(apart) > MOST_NAMED)
        return f"Fisher's exact test tells {units.listed([*told, *more])}{n_pairs}"
    n = max(n for _, n in shares.values())
    is_hopeless = len(places) * stats.fisher(n, n, 0, n) > level
    never = f", and with {n} seeds each could not tell {n}/{n} from 0/{n}" * is_hopeless
    return f"Fisher's exact test tells none apart{n_pairs}{never}"


def steps_to_99(rows: Sequence[Row]) -> tuple[list[float], int]:
    """Steps of the seeds that got there, rising, and how many were trained to an end or diverged."""
    diverged = {row.seed: None for row in rows if row.status == "diverged"}  # it may at a longer test length only
    by_seed = diverged | {row.seed: number(row, "steps_to_99") for row in rows if "steps_to_99" in row.metrics}
    return sorted(steps for steps in by_seed.values() if steps is not None), len(by_seed)


def _line(study: Study, group: Group, lengths: Sequence[int]) -> list[Cell]:
    every = [row for length in lengths for row in study.at("quality", group, length)]
    start = [Cell(group.task), Cell(group.series), Cell(f"{group.train_seq_len:,}", group.train_seq_len)]
    shares = [solved(study, group, length) for length in lengths]
    cells = [_share(*share) if share else NOTHING for share in shares]
    return [*start, *cells, *_steps(*steps_to_99(every))]


def _share(n_solved: int, n: int) -> Cell:
    """`3/3 [29-100 %]`; of one seed nothing is known."""
    low, high = stats.share_interval(n_solved, n)
    ends = f" [{100 * low:.0f}{units.DASH}{100 * high:.0f} %]" * (n > 1)
    return Cell(f"{n_solved}/{n}{ends}", n_solved / n)


def _steps(steps: Sequence[float], n_trained: int) -> list[Cell]:
    if not n_trained:
        return [NOTHING, NOTHING]
    share = Cell(f"{len(steps)}/{n_trained}", len(steps) / n_trained)
    if not steps:
        return [Cell("never", float("inf")), share]
    middle, ends = float(np.median(steps)), dict.fromkeys(f"{step:,.0f}" for step in (steps[0], steps[-1]))
    span = f" [{' to '.join(ends)}]" if len(ends) > 1 else " (1 seed)" if len(steps) == 1 else ""
    return [Cell(f"{middle:,.0f}{span}", middle), share]
