"""The tables of paired comparisons: a matrix for each task and training length, row minus column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from arch_bench.report import metrics, pairs, units
from arch_bench.report.pairs import Difference
from arch_bench.report.study import Group, Study
from arch_bench.report.tables import NOTHING, Cell, Table

MOST_CONTENDERS, MOST_LENGTHS, MOST_TABLES = 10, 4, 8
NOTE = (
    "Row minus column, seed by seed (a seed is the same data for all): the mean difference, its 95 % bootstrap "
    "interval over seeds, and the effect size: in how many of the seeds the row scores better, ties by half (the "
    "probability of superiority for paired data, (d_w + 1) / 2 of Cliff 1993). *: the interval excludes 0, with 3 "
    "seeds or more. It does so wherever all n seeds agree, which two equal contenders do by chance once in 2^(n - 1) "
    "times: once in 4 with 3 seeds. Nothing is corrected for the number of pairs."
)


def matrices(study: Study) -> list[Table]:
    """The first explains itself; what has one seed is named in the last, for nothing can be said of it."""
    every = pairs.contests(study)
    telling = [groups for groups in every if any(gap.point.n_seeds > 1 for gap in _gaps(study, groups))]
    tables = [_matrix(study, groups, is_first=not place) for place, groups in enumerate(telling[:MOST_TABLES])]
    return tables + _untold(telling[MOST_TABLES:], [groups for groups in every if groups not in telling])


def _gaps(study: Study, groups: Sequence[Group]) -> Iterable[Difference]:
    for length in _lengths(study, groups):
        for place, one in enumerate(groups):
            yield from (gap for other in groups[place + 1 :] if (gap := pairs.difference(study, one, other, length)))


def _matrix(study: Study, groups: Sequence[Group], is_first: bool) -> Table:
    kept, metric = groups[:MOST_CONTENDERS], study.headline(groups[0].task)
    lines = [_line(study, kept, place, n) for n in _lengths(study, kept) for place in range(len(kept) - 1)]
    unit = "points of token accuracy" if metric is metrics.ACCURACY else "bits per byte, of which less is better"
    note = f"In {unit}; the best at the training length first."
    note += f" The best {len(kept)} of {len(groups)}." * (len(groups) > len(kept))
    title = f"Paired differences: {groups[0].task}, trained at {groups[0].train_seq_len:,}"
    columns = ["tested at", "row", *(f"minus {group.series}" for group in kept[1:])]
    return Table(title, f"{NOTE} {note}" if is_first else f"As above. {note}", columns, lines)


def _line(study: Study, groups: Sequence[Group], place: int, length: int) -> list[Cell]:
    """Below the diagonal the same stands with the other sign, and is left out."""
    cells = [Cell("")] * place + [_cell(study, groups[place], other, length) for other in groups[place + 1 :]]
    return [Cell(f"{length:,}", length), Cell(groups[place].series), *cells]


def _cell(study: Study, one: Group, other: Group, length: int) -> Cell:
    """`+12.3* [+8.1 to +15.0] 3/3`."""
    gap, metric = pairs.difference(study, one, other, length), study.headline(one.task)
    if gap is None:
        return NOTHING
    n, value = gap.point.n_seeds, pairs.amount(metric, gap.point.value)
    if n == 1:
        return Cell(f"{value} (1 seed)", gap.point.value)
    parts = [value + "*" * gap.is_clear, pairs.interval(metric, gap.point), f"{gap.superiority * n:g}/{n}"]
    return Cell(" ".join(parts), gap.point.value)


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
            f"Measure {pairs.LEAST_SEEDS} seeds or more."
        )
    return [Table("Paired differences", " ".join(notes), [], [])] if notes else []


def _named(contests: Sequence[Sequence[Group]]) -> str:
    return units.listed([f"{groups[0].task} trained at {groups[0].train_seq_len:,}" for groups in contests])
