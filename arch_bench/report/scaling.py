"""How a cost grows with length, how far it can be followed, and what stops it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from arch_bench.report import metrics
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Study, number
from arch_bench.results import Kind

N_LENGTHS = 3
"""The longest ones are fitted: there the term that grows fastest is least hidden by the fixed costs."""
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
    return Exponent(_slope(x, y), float(slopes.min()), float(slopes.max()), tuple(lengths), size, n_seeds)


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
