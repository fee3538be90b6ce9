"""Series that ran in several ways, taken apart: a time of an eager step says nothing of a graph's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from arch_bench.report import facets
from arch_bench.report.dials import Labels
from arch_bench.results import Kind, Row


def take_apart(labels: Labels, rows: Sequence[Row]) -> None:
    """Let the names of a series' timings say how the step ran, if it ran in several ways."""
    by_series: dict[tuple[Kind, str, str, str], list[Row]] = {}
    for row in rows:
        if row.kind not in facets.TRAINED:
            subject, series = labels.of(row) if row.kind == "kernels" else ("", labels.of(row)[1])
            by_series.setdefault((row.kind, subject, series, labels.device(row)), []).append(row)
    split: dict[str, set[str]] = {}
    for (kind, _, series, _), found in by_series.items():
        if len(ways := {_ran(row) for row in found} - {""}) > 1:
            if kind != "kernels":  # a contender is in no list of series
                split.setdefault(series, set()).update(ways)
            labels.ran |= {(labels.identity(row), row.seq_len): _way(row, found, labels) for row in found}
    labels.backbone = {
        name: backbone
        for series, backbone in labels.backbone.items()
        for name in (series, *(f"{series} ({way})" for way in sorted(split.get(series, ()))))
    }
    labels.shown |= {f"{series} ({way})": labels.shown[series] for series, ways in split.items() for way in ways}
    labels.series = list(labels.backbone)


def _ran(row: Row) -> str:
    return str(row.metrics.get("step") or "") if row.status == "ok" else ""


def _way(row: Row, found: Sequence[Row], labels: Labels) -> str:
    """How a row ran. One that failed: as it was asked to, else as its nearest neighbour did, a shorter one first."""
    if row.status == "ok":
        return _ran(row)
    ways = {_ran(other) for other in found} - {""}
    if (asked := str(row.config.get("step"))) in ways:
        return asked
    near = [other for other in found if _ran(other) and _place(other, labels) == _place(row, labels)]
    return _ran(min(near, key=lambda other: _distance(row, other))) if near else ""


def _place(row: Row, labels: Labels) -> tuple[str, str]:
    return labels.of(row)[0], facets.batching(row)


def _distance(row: Row, other: Row) -> tuple[bool, float]:
    return other.seq_len > row.seq_len, abs(math.log2(other.seq_len / row.seq_len))
