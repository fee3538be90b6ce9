"""How a cost grows with length, how far it can be followed, and what stops it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from arch_bench.report import metrics
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Study, number
from arch_bench.results import Kind, Row

N_LENGTHS = 3
"""The longest ones are fitted: there the term that grows fastest is least hidden by the fixed costs."""
MOST_REACH = 0.35
"""By how much the spread of times may move an exponent that is stated."""
MOST_FALL = 0.75
"""A sum of powers grows ever more steeply; by as much as this its slope may seem to fall, for caches and occupancy."""
MOST_SLOPE = 2.3
"""Attention's scores grow as the square; steeper than this between two lengths is the machine."""
MOST_IDLE = 0.2
"""What a decoded token may seem to grow by where it has no more to read."""
MOST_LOAD = 1.5
"""Processes that wanted a core when a phase began: what is timed on a CPU is one."""
LEAST_SPAN = 4
"""Lengths closer together than three powers of two (a search for the longest that fits finds such) fit the noise."""


class Exponent(NamedTuple):
    """A cost grows as the length to this power."""

    value: float
    low: float
    """The smallest slope between two neighbouring lengths; `high` the largest. A power of the length has one slope."""
    high: float
    lengths: tuple[int, ...]
    """What was fitted, ascending."""
    batch_size: float | None
    n_seeds: int
    """The most that any of the lengths has."""
    doubt: str = ""
    """Why it is not to be stated; empty if the rows support it."""


class Limit(NamedTuple):
    """The longest length that ended well, and the first trouble from there on."""

    length: int | None
    trouble: str
    """A status, with the share of seeds that have it if not all; empty if nothing longer was tried."""
    at: int | None


def exponent(study: Study, group: Group, metric: Metric) -> Exponent | None:
    """The least-squares slope of log cost over log length, at the longest lengths measured at one batch size.

    Another batch is another amount of work, so lengths only count together if their batches are equal. Each counts
    once, by the geometric mean of its processes: what bends the line is in all of them alike, so no number of them
    makes its slope surer. None with fewer than three lengths; more than three are taken where the longest three span
    less than a factor of four.
    """
    by_batch = _values(study, group, metric)
    fitting = {size: of for size, of in by_batch.items() if len(of) >= N_LENGTHS}
    if not fitting:
        return None
    size = max(fitting, key=lambda size: (max(fitting[size]), len(fitting[size])))
    lengths = _longest(sorted(fitting[size]))
    x, y = np.log(lengths), np.array([np.log(fitting[size][length]).mean() for length in lengths])
    slopes = np.diff(y) / np.diff(x)
    n_seeds = max(len(fitting[size][length]) for length in lengths)
    ends = float(slopes.min()), float(slopes.max())
    doubt = _doubt(study, group, metric, lengths, slopes)
    return Exponent(_slope(x, y), *ends, tuple(lengths), size, n_seeds, doubt)


def memory(study: Study, group: Group) -> tuple[Metric, Exponent] | None:
    """The exponent of activations; of the peak, parameters and all, where activations are not on record."""
    metric = metrics.ACTIVATIONS if group in study.points(metrics.ACTIVATIONS) else metrics.PEAK_MEMORY
    found = exponent(study, group, metric)
    return (metric, found) if found else None


def limit(study: Study, kind: Kind, group: Group) -> Limit:
    """A length fits if at least one seed ended well there."""
    lengths = sorted(study.index[kind][group])
    done = [n for n in lengths if any(row.status == "ok" for row in study.at(kind, group, n))]
    longest = max(done, default=None)
    for length in lengths[lengths.index(longest) if longest else 0 :]:
        if trouble := study.trouble(kind, group, length):
            return Limit(longest, trouble, length)
    return Limit(longest, "", None)


def state_per_token(study: Study, group: Group) -> tuple[float, int] | None:
    """Bytes of state for each token of the longest context, and that context."""
    if not (points := study.points(metrics.STATE).get(group)):
        return None
    return points[max(points)].value / max(points), max(points)


def busy(study: Study, group: Group, metric: Metric, lengths: Sequence[int]) -> str:
    """Return the load average of a CPU on which others ran too, in words; empty if none is on record or it was idle."""
    rows = [row for length in lengths for row in study.at(metric.kind, group, length) if row.status == "ok"]
    loads = [value for row in rows if _is_cpu(row) and (value := number(row, "load_average")) is not None]
    return f"load average {max(loads):.1f}" if loads and max(loads) > MOST_LOAD else ""


def _is_cpu(row: Row) -> bool:
    return str(row.config.get("device", row.device)) == "cpu"


def _doubt(study: Study, group: Group, metric: Metric, lengths: Sequence[int], slopes: np.ndarray) -> str:
    """A time that scatters, or that grows by leaps and bounds, has no exponent; nor has one of a busy machine."""
    spreads = [_spread(study.at(metric.kind, group, length), metric) for length in (lengths[0], lengths[-1])]
    reach = sum(map(math.log, spreads)) / 2 / math.log(lengths[-1] / lengths[0])
    if reach > MOST_REACH:
        return f"times spread by {max(spreads):.1f}x, exponent unsure by {reach:.1f}"
    falls = max((before - after for before, after in combinations(slopes, 2)), default=0.0)
    if falls > MOST_FALL:
        return f"slopes fall from {slopes.max():.1f} to {slopes.min():.1f}: no sum of powers does"
    if slopes.max() > MOST_SLOPE:
        return f"a slope of {slopes.max():.1f}: nothing here grows faster than a square"
    if metric is metrics.MS_PER_TOKEN and slopes.mean() > MOST_IDLE and _has_constant_state(study, group, lengths):
        return f"the state is as large at {lengths[-1]:,} as at {lengths[0]:,}"
    return busy(study, group, metric, lengths)


def _has_constant_state(study: Study, group: Group, lengths: Sequence[int]) -> bool:
    points = study.points(metrics.STATE).get(group, {})
    sizes = [points[length].value for length in (lengths[0], lengths[-1]) if length in points]
    return len(sizes) == 2 and max(sizes) <= metrics.CLOSE_COST * min(sizes)


def _spread(rows: Sequence[Row], metric: Metric) -> float:
    """The highest over the lowest of the times of all processes, p10 and p90 of each counted."""
    ended = [row for row in rows if row.status == "ok"]
    names = (metric.name, f"{metric.name}_p10", f"{metric.name}_p90")
    values = [value for row in ended for name in names if (value := number(row, name)) and value > 0]
    return max(values) / min(values) if values else 1.0


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of the least-squares line."""
    spread = x - x.mean()
    return float(spread @ y / (spread @ spread))


def _longest(lengths: list[int]) -> list[int]:
    wide = [place for place in range(len(lengths)) if lengths[-1] >= LEAST_SPAN * lengths[place]]
    return lengths[min(max(wide, default=0), len(lengths) - N_LENGTHS) :]


def _values(study: Study, group: Group, metric: Metric) -> dict[float | None, dict[int, list[float]]]:
    """Batch size -> length -> the value of each process."""
    found: dict[float | None, dict[int, list[float]]] = {}
    for length in study.points(metric).get(group, {}):
        for row in study.at(metric.kind, group, length):
            value = number(row, metric.name)
            if row.status == "ok" and value is not None and value > 0:
                found.setdefault(number(row, "batch_size"), {}).setdefault(length, []).append(value)
    return found
