"""The sentences at the top of a report: what the rows say, and nothing that they do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from arch_bench.report import facets, growth, learning_rates, metrics, pairs, picks, tables, units
from arch_bench.report.dials import Value
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Point, Study, number
from arch_bench.results import Row

MOST_SCORES = 3
"""Sentences on who leads, one to a task."""
CLOSE = {metrics.ACCURACY: 0.01, metrics.BITS_PER_BYTE: 0.01}
"""Scores nearer than this are called equal."""
NEAR_GUESSING = {metrics.ACCURACY: 0.02, metrics.BITS_PER_BYTE: 0.1}


class Entry(NamedTuple):
    series: str
    point: Point


class Contest(NamedTuple):
    """What can be compared: the series of one facet at one length, best first."""

    facet: Facet
    length: int
    entries: list[Entry]


def findings(study: Study) -> list[str]:
    """Some ten plain sentences at the most, fewer if the rows support fewer."""
    sentences = [sentence for task in study.tasks("quality") if (sentence := _scores(study, task))][:MOST_SCORES]
    sentences += [*pairs.sentences(study)[:MOST_SCORES], learning_rates.warning(study)]
    sentences += [_longer(study), _training(study), _decoding(study), *growth.passing(study), growth.steepness(study)]
    sentences += [*picks.sentences(study), growth.suspicion(study), _without_result(study)]
    return [sentence for sentence in sentences if sentence]


def _scores(study: Study, task: str) -> str:
    """Who leads at the training length, and who does not get past guessing."""
    metric = study.headline(task)
    contest = _at_training_length(study, task, metric)
    if not contest:
        return ""
    best, *rest = contest.entries
    leaders = [best, *(entry for entry in rest if _is_close(entry.point, best.point, metric))]
    guess = study.best_baseline(task, contest.length)
    lost = [entry for entry in contest.entries if guess and _is_guessing(entry.point, guess[1], metric)]
    where = f"On {task} at {units.tokens(contest.length)} ({_behind(contest.entries)}),"
    guessing = f"the {guess[0]} baseline ({metric.show(guess[1])})" if guess else ""
    if best in lost:
        return f"{where} nothing gets past {guessing}: the best is {_scored(best, metric)}."
    text = f"{where} {_leading(leaders, len(contest.entries), metric)}"
    others = [entry for entry in rest if entry not in leaders and entry not in lost]
    if lost:
        text += f"; {units.listed([_scored(each, metric) for each in lost])} {_do(lost)} not get past {guessing}"
    elif others:
        text += f"; {_scored(others[-1], metric)} is last"
    return f"{text}."


def _leading(leaders: Sequence[Entry], n_entries: int, metric: Metric) -> str:
    best = leaders[0]
    if len(leaders) == 1:
        verb = "scores" if n_entries == 1 else "scores best:"
        return f"{best.series} {verb} {_words(metric, best.point)} {metric.title}"
    if len(leaders) <= 3:
        return f"{units.listed([_scored(entry, metric) for entry in leaders])} are level in {metric.title}"
    return f"{len(leaders)} of {n_entries} are level in {metric.title}, {_scored(best, metric)} among them"


def _longer(study: Study) -> str:
    """What becomes of a score at the longest tested length, where that is the furthest from training."""
    reach: list[tuple[tuple[float, ...], str]] = []
    for task in study.tasks("quality"):
        found: dict[tuple[int, int], list[tuple[str, Point, Point]]] = {}
        metric = study.headline(task)
        for group, points in study.of(Facet(task), metric).items():
            start, end = points.get(group.train_seq_len), points[max(points)]
            guess = study.best_baseline(task, group.train_seq_len)
            is_lost = start and guess and _is_guessing(start, guess[1], metric)
            if start and not is_lost and max(points) > group.train_seq_len:
                found.setdefault((group.train_seq_len, max(points)), []).append((group.series, start, end))
        for (trained, tested), changes in found.items():
            behind = units.seeds(*(point.n_seeds for _, *both in changes for point in both))
            text = f"Trained on {task} at {units.tokens(trained)} and tested at {tested:,} ({behind}), "
            rank = (tested / trained, max(abs(a.value - b.value) / max(a.value, b.value) for _, a, b in changes))
            reach.append((rank, f"{text}{_changes(changes, metric)}."))
    return max(reach, key=lambda item: item[0])[1] if reach else ""


def _changes(changes: Sequence[tuple[str, Point, Point]], metric: Metric) -> str:
    ordered = sorted(changes, key=lambda change: -metric.sign * change[2].value)
    shown = ordered if len(ordered) <= 3 else [ordered[0], ordered[-1]]
    parts = [f"{series} goes from {_words(metric, a)} to {_words(metric, b)}" for series, a, b in shown]
    return units.listed(parts) + (f" (the best and the worst of {len(ordered)})" if len(ordered) > 3 else "")


def _training(study: Study) -> str:
    """Who trains fastest at the longest length that several reach."""
    metric = metrics.TOKENS_PER_S
    contest = _longest_contest(study, metric)
    if not contest:
        return ""
    first, second, *rest = contest.entries
    sizes = {number(row, "batch_size") for row in _rows_of(study, contest, metric)}
    caution = _sizes(study, contest, metric) + (", at different batch sizes" if len(sizes) > 1 else "")
    text = f"At {units.tokens(contest.length)} ({contest.facet.title}, {_behind(contest.entries)}{caution}), "
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
    basis = _behind(contest.entries) + _sizes(study, contest, metrics.MS_PER_TOKEN)
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


def _at_training_length(study: Study, task: str, metric: Metric) -> Contest | None:
    """At the training length that most series share, the longest of them."""
    by_length: dict[int, list[Entry]] = {}
    for group, points in study.of(Facet(task), metric).items():
        if group.train_seq_len in points:
            by_length.setdefault(group.train_seq_len, []).append(Entry(group.series, points[group.train_seq_len]))
    if not by_length:
        return None
    length = max(by_length, key=lambda length: (len(by_length[length]), length))
    return Contest(Facet(task), length, sorted(by_length[length], key=lambda entry: -metric.sign * entry.point.value))


def _longest_contest(study: Study, metric: Metric) -> Contest | None:
    """The longest length at which several series have a value; among facets, the one with most of them.

    Series that each have the largest batch that fits them are no contest.
    """
    found = []
    for facet in study.facets(metric.kind):
        lengths = {length for points in study.of(facet, metric).values() for length in points}
        for length in lengths if facet.batching != facets.LARGEST else ():
            for entries in _alike(study, _entries(study, facet, length, metric)):
                if len(entries) > 1:
                    found.append(Contest(facet, length, entries))
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
    found = [Entry(group.series, of[length]) for group, of in study.of(facet, metric).items() if length in of]
    return sorted(found, key=lambda entry: -metric.sign * entry.point.value)


def _sizes(study: Study, contest: Contest, metric: Metric) -> str:
    """`, with 2 to 8 layers`: what makes a contest uneven, but for widths that match parameters."""
    rows = _rows_of(study, contest, metric)
    layers: set[int] = {row.config["n_layers"] for row in rows if "n_layers" in row.config}
    widths: set[int] = {row.config["d_model"] for row in rows if not row.config.get("match", {}).get("params")}
    parts = [f"with {min(layers)} to {max(layers)} layers"] if len(layers) > 1 else []
    parts += [f"d_model {min(widths)} to {max(widths)}"] if len(widths) > 1 else []
    return "".join(f", {part}" for part in parts)


def _rows_of(study: Study, contest: Contest, metric: Metric) -> list[Row]:
    series = {entry.series for entry in contest.entries}
    groups = [group for group in study.groups(metric.kind, contest.facet) if group.series in series]
    return [row for group in groups for row in study.at(metric.kind, group, contest.length) if row.status == "ok"]


def _is_close(one: Point, other: Point, metric: Metric) -> bool:
    return abs(one.value - other.value) <= CLOSE[metric] or one.overlaps(other)


def _is_guessing(point: Point, guess: float, metric: Metric) -> bool:
    return metric.sign * (point.value - guess) <= NEAR_GUESSING[metric]


def _behind(entries: Sequence[Entry]) -> str:
    return units.seeds(*(entry.point.n_seeds for entry in entries))


def _scored(entry: Entry, metric: Metric) -> str:
    return f"{entry.series} ({_words(metric, entry.point)})"


def _words(metric: Metric, point: Point) -> str:
    """With the interval of several seeds; the spread of one is told in the tables."""
    return tables.text(metric, point) if point.n_seeds > 1 else metric.show(point.value)


def _do(entries: Sequence[Entry]) -> str:
    return "does" if len(entries) == 1 else "do"


def _rates(*entries: Entry) -> str:
    return " and ".join(f"{_words(metrics.TOKENS_PER_S, entry.point)} tokens/s" for entry in entries)


def _ms(entry: Entry) -> str:
    return f"{_words(metrics.MS_PER_TOKEN, entry.point)} ms a token"


def _times(one: Entry, other: Entry) -> str:
    high, low = max(one.point.value, other.point.value), min(one.point.value, other.point.value)
    return units.plain(round(high / low, 1))
