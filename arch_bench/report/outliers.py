"""Timings that should be measured again before they are believed. They are named, and never dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from arch_bench.report import metrics
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Study, mean, number
from arch_bench.results import Kind

OFF = 1.5
"""A judgement: far more than the few percent that repeats differ by, less than a fallback or a cold cache costs."""
BACKWARD = 6.0
"""Two matrix products for each one of the forward, a third if that is computed again, and as much again to spare."""
TIMES = {
    metrics.TRAIN_STEP: "step",
    metrics.MS_PER_TOKEN: "ms per token",
    metrics.PREFILL: "prefill",
    metrics.KERNEL: "forward + backward",
}


class Outlier(NamedTuple):
    kind: Kind
    group: Group
    length: int
    reason: str


def outliers(study: Study) -> list[Outlier]:
    """In reading order, each point once for each reason."""
    found = [each for metric, name in TIMES.items() for each in _off_the_line(study, metric, name)]
    return found + _slow_backwards(study, "speed") + _slow_backwards(study, "kernels")


def reasons(study: Study, kind: Kind) -> dict[tuple[Group, int], str]:
    """(group, length) -> what is odd there."""
    found: dict[tuple[Group, int], list[str]] = {}
    for each in outliers(study):
        if each.kind == kind:
            found.setdefault((each.group, each.length), []).append(each.reason)
    return {place: "; ".join(texts) for place, texts in found.items()}


def strays(times: Mapping[int, float], batches: Mapping[int, float | None]) -> dict[int, float]:
    """Length -> time over what its two neighbours say. The worst is left out before the next is looked for.

    The worst is the furthest from the middle of what is sound: its neighbours are off too, because of it.
    """
    kept, found = dict(sorted(times.items())), {}
    while odd := {n: each for n, each in _offsets(kept, batches).items() if not each[1] / OFF <= each[0] <= OFF}:
        worst = max(odd, key=lambda n: abs(math.log(odd[n][0]) - math.log(odd[n][1]) / 2))
        found[worst] = odd[worst][0]
        del kept[worst]
    return found


def _offsets(times: Mapping[int, float], batches: Mapping[int, float | None]) -> dict[int, tuple[float, float]]:
    """Length -> (time over the log-log line between its neighbours, the least that a sound curve has there).

    A time is a sum of powers of the length, which on log axes bends upwards: no point lies above the line, and where
    a fixed cost gives way to a quadratic one, neighbours a factor of s away, one lies at 2 / (s + 1 / s) of it.
    """
    lengths, found = list(times), {}
    for before, here, after in zip(lengths, lengths[1:], lengths[2:], strict=False):
        if all(_is_comparable(here, other, batches) for other in (before, after)):
            share = math.log(here / before) / math.log(after / before)
            line = times[before] ** (1 - share) * times[after] ** share
            step = math.sqrt(after / before)
            found[here] = times[here] / line, 2 / (step + 1 / step)
    return found


def _is_comparable(one: int, other: int, batches: Mapping[int, float | None]) -> bool:
    """Whether a step at two lengths holds equally many sequences, or equally many tokens."""
    first, second = batches[one], batches[other]
    return first == second or (first is not None and second is not None and first * one == second * other)


def _off_the_line(study: Study, metric: Metric, name: str) -> list[Outlier]:
    found = []
    for group, points in study.points(metric).items():
        times = {length: point.value for length, point in points.items()}
        batches = {length: _batch(study, metric.kind, group, length) for length in points}
        for length, off in sorted(strays(times, batches).items()):
            reason = f"{name} {_factor(off)} the line between its neighbours"
            found.append(Outlier(metric.kind, group, length, reason))
    return found


def _batch(study: Study, kind: Kind, group: Group, length: int) -> float | None:
    """The batch that all seeds agree on; NaN, which equals nothing, if they do not."""
    sizes = {number(row, "batch_size") for row in study.at(kind, group, length) if row.status == "ok"}
    return sizes.pop() if len(sizes) == 1 else math.nan


def _factor(off: float) -> str:
    return f"{off:.1f}x above" if off > 1 else f"{1 / off:.1f}x below"


def _slow_backwards(study: Study, kind: Kind) -> list[Outlier]:
    found = []
    for group in study.groups(kind):
        for length in sorted(study.index[kind][group]):
            rows = [row for row in study.at(kind, group, length) if row.status == "ok"]
            forward, both = mean(rows, "forward_ms"), mean(rows, "forward_backward_ms")
            if forward and both and both - forward > BACKWARD * forward:
                times = f"backward {(both - forward) / forward:.1f}x its forward"
                found.append(Outlier(kind, group, length, times))
    return found
