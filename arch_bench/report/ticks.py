"""Where tick marks and labels stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from arch_bench.report.metrics import Metric

Number = TypeVar("Number", int, float)
MOST = 6
"""Ticks on an axis."""
LEAST_GAP = 0.12
"""Of two ticks on a logarithmic axis, as a share of it: their texts stand apart."""


def ticks(low: float, high: float, metric: Metric) -> list[float]:
    """Round values between `low` and `high`, in the units that the metric is read in."""
    if metric.is_share:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    if metric.is_bytes:
        return _powers_of_two(low, high)
    return _decades(low, high) if metric.is_log else _linear(low, high)


def thinned(lengths: Sequence[Number]) -> list[Number]:
    """At most `MOST` of the measured lengths, the longest among them; of many lengths only powers of two.

    Without those whose texts would touch, on a logarithmic axis: the first and the last stay.
    """
    powers = [length for length in lengths if math.log2(length).is_integer()]
    chosen = powers if len(lengths) > MOST and len(powers) > 1 else list(lengths)
    stride = math.ceil(len(chosen) / MOST)
    return _apart(chosen[::-1][::stride][::-1])


def _apart(lengths: Sequence[Number]) -> list[Number]:
    """From the longest downwards, those that are `LEAST_GAP` from the next longer one and from the shortest."""
    kept = list(lengths[-1:])
    for place in range(len(lengths) - 2, -1, -1):
        near = [kept[-1]] if place == 0 else [kept[-1], lengths[0]]
        gaps = [abs(math.log(lengths[place] / each)) for each in near]
        if place == 0 or min(gaps) >= LEAST_GAP * math.log(lengths[-1] / lengths[0]):
            kept.append(lengths[place])
    return kept[::-1]


def spread(positions: Sequence[float], gap: float, ceiling: float = 1.0) -> list[float]:
    """Ascending positions pushed apart to at least `gap`, upwards as far as `ceiling` allows, then downwards."""
    placed: list[float] = []
    for position in positions:
        placed.append(max(position, placed[-1] + gap) if placed else position)
    for place in reversed(range(len(placed))):
        placed[place] = min(placed[place], ceiling)
        ceiling = placed[place] - gap
    return placed


def _powers_of_two(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    halves = [
        step * 2.0**power for power in range(first, last + 1) for step in (1, 1.5) if low <= step * 2**power <= high
    ]
    if len(halves) <= MOST:
        return halves
    stride = math.ceil((last - first - 1) / MOST)
    return [2.0**power for power in range(first + 1, last) if power % stride == 0]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(found) <= MOST:
            return found
    return found[:: math.ceil(len(found) / MOST)]


def _linear(low: float, high: float) -> list[float]:
    rough = (high - low) / (MOST - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough)
    return [round(place * step, 10) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
