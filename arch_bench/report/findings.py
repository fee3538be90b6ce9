"""The sentences at the top of a report: what the rows say, and nothing that they do not."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from arch_bench.report import (
    contests,
    facets,
    growth,
    learning_rates,
    metrics,
    pairs,
    picks,
    reach,
    solved_table,
    standings,
    units,
)
from arch_bench.report.contests import Entry
from arch_bench.report.dials import Value
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.standings import behind, words
from arch_bench.report.study import Study, number
from arch_bench.results import Row


class Race(NamedTuple):
    """What can be compared: the series of one facet at one length, best first."""

    facet: Facet
    length: int
    entries: list[Entry]


def findings(study: Study) -> list[str]:
    """Some ten plain sentences at the most, fewer if the rows support fewer."""
    tasks = [contest.entries[0].group.task for contest in contests.told(study)]
    sentences = [standings.sentence(study, task) for task in tasks]
    sentences += [*pairs.sentences(study), *solved_table.sentences(study), learning_rates.warning(study)]
    sentences += [reach.sentence(study), _training(study), _decoding(study)]
    sentences += [*growth.passing(study), growth.steepness(study)]
    sentences += [*picks.sentences(study), growth.suspicion(study), _without_result(study)]
    return [sentence for sentence in sentences if sentence]


def _training(study: Study) -> str:
    """Who trains fastest at the longest length that several reach."""
    metric = metrics.TOKENS_PER_S
    contest = _longest_contest(study, metric)
    if not contest:
        return ""
    first, second, *rest = contest.entries
    sizes = {number(row, "batch_size") for row in _rows_of(study, contest, metric)}
    caution = _sizes(study, contest, metric) + (", at different batch sizes" if len(sizes) > 1 else "")
    text = f"At {units.tokens(contest.length)} ({contest.facet.title}, {behind(contest.entries)}{caution}), "
    if first.point.is_level(second.point):
        text += f"{first.series} and {second.series} train about equally fast ({_rates(first, second)})"
        text += f", {_times(first, rest[-1])}x as fast as {rest[-1].series}" if rest else ""
    else:
        text += f"{first.series} trains fastest ({_rates(first)}), {_times(first, second)}x as fast as {second.series}"
        text += f" and {_times(first, rest[-1])}x as fast as {rest[-1].series}" if rest else ""
    return f"{text}."


def _decoding(study: Study) -> str:
    """Time and state per token at the longest context that several reach."""
    contest = _longest_contest(study, metrics.MS_PER_TOKEN)
    if not contest:
        return ""
    first, second, *_ = contest.entries
    basis = behind(contest.entries) + _sizes(study, contest, metrics.MS_PER_TOKEN)
    text = f"Decoding at a context of {units.tokens(contest.length)} ({contest.facet.title}, {basis}), "
    if first.point.is_level(second.point):
        text += f"{first.series} and {second.series} are level at {_ms(first)}"
    else:
        text += f"{first.series} is fastest at {_ms(first)}, {_times(first, second)}x as fast as {second.series}"
    rivals = {entry.series for entry in contest.entries}
    states = [e for e in _entries(study, contest.facet, contest.length, metrics.STATE) if e.series in rivals]
    if len(states) > 1 and states[-1].point.value > metrics.CLOSE_COST * states[0].point.value:
        small, large = states[0], states[-1]
        text += f"; {small.series} carries the smallest state ({units.size(small.point.value)}), "
        text += f"{large.series} the largest ({units.size(large.point.value)})"
    return f"{text}."


def _without_result(study: Study) -> str:
    """A rate of a scan that fails is what scans are for."""
    every = [row for row in study.rows if row.kind != "scan"]
    bad = [row for row in every if row.status != "ok"]
    if not bad:
        return ""
    often = Counter(row.status for row in bad)
    row = max(bad, key=lambda row: often[row.status])
    task, series = study.labels.of(row)
    name = f"{series} of {task}" if row.kind == "kernels" else series
    example = f"{name} at {units.tokens(row.seq_len)} ({row.kind}: {row.status})"
    return f"{len(bad):,} of {len(every):,} rows have no result, {example} for one; each is listed below."


def _longest_contest(study: Study, metric: Metric) -> Race | None:
    """The longest length at which several series have a value; among facets, the one with most of them.

    Series that each have the largest batch that fits them are no contest.
    """
    found = []
    for facet in study.facets(metric.kind):
        lengths = {length for points in study.of(facet, metric).values() for length in points}
        for length in lengths if facet.batching != facets.LARGEST else ():
            for entries in _alike(study, _entries(study, facet, length, metric)):
                if len(entries) > 1:
                    found.append(Race(facet, length, entries))
    return max(found, key=lambda contest: (contest.length, len(contest.entries)), default=None)


def _alike(study: Study, entries: list[Entry]) -> list[list[Entry]]:
    """Apart where a dial that all names show differs, if that leaves pairs: a small model is no rival of a big one."""
    dials = [study.labels.shown[entry.series] for entry in entries]
    shared = set.intersection(*map(set, dials)) if dials else set()
    apart: dict[tuple[Value, ...], list[Entry]] = {}
    for entry, of in zip(entries, dials, strict=True):
        apart.setdefault(tuple(of[name] for name in sorted(shared)), []).append(entry)
    return [*apart.values()] if any(len(some) > 1 for some in apart.values()) else [entries]


def _entries(study: Study, facet: Facet, length: int, metric: Metric) -> list[Entry]:
    found = [Entry(group, of[length]) for group, of in study.of(facet, metric).items() if length in of]
    return sorted(found, key=lambda entry: -metric.sign * entry.point.value)


def _sizes(study: Study, contest: Race, metric: Metric) -> str:
    """`, with 2 to 8 layers`: what makes a contest uneven, but for widths that match parameters."""
    rows = _rows_of(study, contest, metric)
    layers = {found for row in rows if isinstance(found := row.config.get("n_layers"), int)}
    widths = {found for row in rows if isinstance(found := row.config.get("d_model"), int) and not _is_matched(row)}
    parts = [f"with {min(layers)} to {max(layers)} layers"] if len(layers) > 1 else []
    parts += [f"d_model {min(widths)} to {max(widths)}"] if len(widths) > 1 else []
    return "".join(f", {part}" for part in parts)


def _is_matched(row: Row) -> bool:
    match = row.config.get("match")
    return isinstance(match, dict) and bool(match.get("params"))


def _rows_of(study: Study, contest: Race, metric: Metric) -> list[Row]:
    series = {entry.series for entry in contest.entries}
    groups = [group for group in study.groups(metric.kind, contest.facet) if group.series in series]
    return [row for group in groups for row in study.at(metric.kind, group, contest.length) if row.status == "ok"]


def _rates(*entries: Entry) -> str:
    return " and ".join(f"{words(metrics.TOKENS_PER_S, entry.point)} tokens/s" for entry in entries)


def _ms(entry: Entry) -> str:
    return f"{words(metrics.MS_PER_TOKEN, entry.point)} ms a token"


def _times(one: Entry, other: Entry) -> str:
    high, low = max(one.point.value, other.point.value), min(one.point.value, other.point.value)
    return units.plain(round(high / low, 1))
