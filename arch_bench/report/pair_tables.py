"""The tables of differences: a matrix for each task and training length, row minus column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from arch_bench.report import contests, metrics, pairs, stats, units
from arch_bench.report.study import Group, Study
from arch_bench.report.tables import NOTHING, Cell, Table

MOST_CONTENDERS, MOST_LENGTHS, MOST_TABLES = 10, 4, 8
NOTE = (
    "Row minus column: the difference of the means over seeds, and its 95 % interval by Welch's t, which stands for "
    "one pair alone. *: the pair differs by Welch's t test with Holm's correction for all pairs of the table, so that "
    "at most 5 % of such tables of equal contenders have any star; by the same test with the spread also of those "
    "whose seeds score like both; by an exact permutation test of them all; and by more than what counts as level."
)
Verdicts = Mapping[int, np.ndarray]
"""Tested length -> a p-value for each pair of contenders, adjusted for all pairs of all lengths."""


def matrices(study: Study) -> list[Table]:
    """The first explains itself; what has one seed is named in the last, for nothing can be said of it."""
    every = pairs.rivals(study)
    telling = [groups for groups in every if _has_several_seeds(study, groups)]
    tables = [_matrix(study, groups, is_first=not place) for place, groups in enumerate(telling[:MOST_TABLES])]
    return tables + _untold(telling[MOST_TABLES:], [groups for groups in every if groups not in telling])


def _has_several_seeds(study: Study, groups: Sequence[Group]) -> bool:
    """Whether there is a pair with an interval."""
    points = study.points(study.headline(groups[0].task))
    lengths = _lengths(study, groups)
    return any(sum(n in points.get(g, {}) and points[g][n].n_seeds > 1 for g in groups) > 1 for n in lengths)


def _matrix(study: Study, groups: Sequence[Group], is_first: bool) -> Table:
    kept, metric, lengths = groups[:MOST_CONTENDERS], study.headline(groups[0].task), _lengths(study, groups)
    verdicts = _verdicts(study, groups, lengths)  # of all: the best of many are no fair sample
    lines = [_line(study, kept, place, n, verdicts[n]) for n in lengths for place in range(len(kept) - 1)]
    unit = "points of token accuracy" if metric is metrics.ACCURACY else "bits per byte, of which less is better"
    note = f"In {unit}; the best at the training length first."
    note += f" The best {len(kept)} of {len(groups)}." * (len(groups) > len(kept))
    title = f"Differences: {groups[0].task}, trained at {groups[0].train_seq_len:,}"
    columns = ["tested at", "row", *(f"minus {group.series}" for group in kept[1:])]
    return Table(title, f"{NOTE} {note}" if is_first else f"As above. {note}", columns, lines)


def _verdicts(study: Study, groups: Sequence[Group], lengths: Sequence[int]) -> Verdicts:
    """Each length's p-values are adjusted for its own pairs: what is left is to share them among the lengths."""
    metric = study.headline(groups[0].task)
    found = {n: np.minimum(len(lengths) * contests.tested(study, groups, metric, n), 1.0) for n in lengths}
    trained = groups[0].train_seq_len
    stopped = [contests.has_stopped(study.at("quality", group, trained)) for group in groups]
    if trained in found:  # beyond that length trainings that stopped alike may still differ
        found[trained][np.outer(stopped, stopped)] = 1.0
    return found


def _line(study: Study, groups: Sequence[Group], place: int, length: int, verdicts: np.ndarray) -> list[Cell]:
    """Below the diagonal the same stands with the other sign, and is left out."""
    cells = [
        _cell(study, groups[place], groups[column], length, bool(verdicts[place, column] <= stats.LEVEL))
        for column in range(place + 1, len(groups))
    ]
    return [Cell(f"{length:,}", length), Cell(groups[place].series), *[Cell("")] * place, *cells]


def _cell(study: Study, one: Group, other: Group, length: int, is_apart: bool) -> Cell:
    """`+12.3* [+8.1 to +15.0]`."""
    gap, metric = pairs.difference(study, one, other, length), study.headline(one.task)
    if gap is None:
        return NOTHING
    value = pairs.amount(metric, gap.value)
    if gap.low is None:
        return Cell(f"{value} (1 seed)", gap.value)
    return Cell(f"{value}{'*' * is_apart} {pairs.interval(metric, gap)}", gap.value)


def _lengths(study: Study, groups: Sequence[Group]) -> list[int]:
    """All, or the training length and the longest."""
    trained = groups[0].train_seq_len
    found = sorted({length for group in groups for length in study.index["quality"][group]})
    if len(found) <= MOST_LENGTHS:
        return found
    longest = found[-MOST_LENGTHS:]
    return longest if trained in longest or trained not in found else [trained, *longest[1:]]


def _untold(too_many: Sequence[Sequence[Group]], single: Sequence[Sequence[Group]]) -> list[Table]:
    notes = []
    if too_many:
        notes.append(f"Left out, to keep this short: {_named(too_many)}.")
    if single:
        notes.append(
            f"With one seed each, nothing can be said of whether one is ahead of another: {_named(single)}. "
            f"Measure {stats.LEAST_SEEDS} seeds or more."
        )
    return [Table("Differences", " ".join(notes), [], [])] if notes else []


def _named(found: Sequence[Sequence[Group]]) -> str:
    return units.listed([f"{groups[0].task} trained at {groups[0].train_seq_len:,}" for groups in found])
