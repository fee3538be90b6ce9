"""The contenders for a backbone's mixer: its kernels and bare library calls, each timed alone, and how they compare."""

from __future__ import annotations

from collections.abc import Iterable

from arch_bench.report import metrics, style
from arch_bench.report.facets import Facet
from arch_bench.report.study import Group, Point, Study, number
from arch_bench.report.style import Style
from arch_bench.results import Row

FIRST = "reference"
"""Every backbone has it: it looks the same in every panel."""


def is_auto(study: Study, group: Group) -> bool:
    """Whether `kernel=auto` picks it. That is decided before a length is known, so one row speaks for all."""
    return _says(_rows(study, group), "is_auto")


def is_bare(study: Study, group: Group) -> bool:
    """Whether it is a library's own call. A row without a result does not say: then its name does, by a dot."""
    same = [row for other in study.index["kernels"] if other.series == group.series for row in _rows(study, other)]
    return _says(same, "is_bare") or "." in group.series


def role(study: Study, group: Group) -> str:
    """`auto`, `bare`, or nothing."""
    if is_auto(study, group):
        return "auto"
    return "bare" if is_bare(study, group) else ""


def name(study: Study, group: Group) -> str:
    """`sdpa_cudnn (auto)`; a bare call is known by its looks."""
    return f"{group.series} (auto)" if is_auto(study, group) else group.series


def ordered(study: Study, groups: Iterable[Group]) -> list[Group]:
    """As they are drawn: what is thick lies below, what is thin and dashed on top."""
    return sorted(groups, key=lambda group: (is_bare(study, group), not is_auto(study, group)))


def look(study: Study, group: Group) -> Style:
    """The same wherever the backbone's contenders are drawn, whatever its dials and the batches.

    What ran in several ways (as a graph, eagerly) has one colour, and a dash for each way.
    """
    bare, (backbone, kernel) = is_bare(study, group), _who(study, group)
    kernels: dict[str, set[str]] = {}
    for other in study.index["kernels"]:
        if _who(study, other)[0] == backbone and is_bare(study, other) == bare:
            kernels.setdefault(_who(study, other)[1], set()).add(other.series)
    rank = sorted(kernels, key=lambda name: (name != FIRST, name)).index(kernel)
    way = sorted(kernels[kernel]).index(group.series)
    return style.contender(rank, way, bare, is_auto(study, group))


def times(study: Study, facet: Facet, length: int) -> dict[Group, Point]:
    """Forward and backward of every contender that has a value, the fastest first."""
    found = {group: of[length] for group, of in study.of(facet, metrics.KERNEL).items() if length in of}
    return dict(sorted(found.items(), key=lambda item: item[1].value))


def of_fastest(study: Study, group: Group, length: int) -> float | None:
    """Its time over that of the fastest at the same length."""
    found = times(study, group.facet, length)
    return found[group].value / next(iter(found.values())).value if group in found else None


def of_bare(study: Study, group: Group, length: int) -> float | None:
    """Its time over that of the bare call at the same length, the fastest if there are several."""
    found = times(study, group.facet, length)
    bare = next((point for other, point in found.items() if is_bare(study, other)), None)
    return found[group].value / bare.value if bare and group in found else None


def _rows(study: Study, group: Group) -> list[Row]:
    return [row for rows in study.index["kernels"][group].values() for row in rows]


def _who(study: Study, group: Group) -> tuple[str, str]:
    """Backbone and kernel, without dials and without how it ran."""
    row = _rows(study, group)[0]
    return row.backbone, row.kernel


def _says(rows: Iterable[Row], name: str) -> bool:
    return any(number(row, name) for row in rows)
