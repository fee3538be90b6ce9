"""The table of kernels: every contender's times beside the fastest and beside a library's bare call."""

from __future__ import annotations

from arch_bench.report import contenders, facets, metrics, outliers, units
from arch_bench.report.study import Group, Study, number
from arch_bench.report.tables import NOTHING, Cell, Table, at_point, average, build, n_seeds, span, words

COLUMNS = ["backbone", "batching", "device", "length", "kernel", "batch", "forward ms", "forward + backward ms"]
COLUMNS += ["of fastest", "of bare call", "peak memory", "activations", "role", "gate error", "step", "seeds"]
COLUMNS += ["outlier"]


def numbers(study: Study) -> Table | None:
    """One line per facet, length and contender, the fastest of a length first and those without a result last."""
    is_split = len({facet.batching for facet in study.facets("kernels")}) > 1
    odd = outliers.reasons(study, "kernels")
    lines = []
    for group, length in _by_time(study):
        rows = study.at("kernels", group, length)
        doubt = odd.get((group, length))
        lines.append([
            Cell(group.task), Cell(facets.words(group.batching)) if is_split else NOTHING,
            Cell(group.device), Cell(f"{length:,}", length), Cell(group.series), span(rows, "batch_size", units.plain),
            at_point(study, metrics.KERNEL_FORWARD, group, length), at_point(study, metrics.KERNEL, group, length),
            _times(contenders.of_fastest(study, group, length)), _times(contenders.of_bare(study, group, length)),
            average(rows, "peak_mem_bytes", units.size), average(rows, "activation_bytes", units.size),
            Cell(contenders.role(study, group)), _worst(study, group, length, "gate_error"),
            Cell(words(str(row.metrics.get("step", "")) for row in rows)),
            Cell(str(n_seeds(rows)), n_seeds(rows)), Cell(doubt) if doubt else NOTHING,
        ])  # fmt: skip
    return build("Kernels in numbers", _note(study), COLUMNS, lines)


def _note(study: Study) -> str:
    policies = {facets.words(facet.batching) for facet in study.facets("kernels")} - {""}
    where = f" ({policies.pop()})" if len(policies) == 1 else ""
    note = (
        f"One sequence layer alone{where}, each contender in a process of its own; brackets: p10 to p90 of the calls "
    )
    note += "of one seed, or the interval over seeds. Of fastest, of bare call: times its forward + backward at that "
    return f"{note}length. Gate error: how far off the fp32 reference, relative, the worst of all seeds."


def _by_time(study: Study) -> list[tuple[Group, int]]:
    """By facet, then length; what has no result stands last."""
    points, every = study.points(metrics.KERNEL), study.facets("kernels")
    pairs = [(group, length) for group in study.groups("kernels") for length in study.index["kernels"][group]]

    def order(pair: tuple[Group, int]) -> tuple[int, int, float]:
        group, length = pair
        point = points.get(group, {}).get(length)
        return every.index(group.facet), length, point.value if point else float("inf")

    return sorted(pairs, key=order)


def _times(factor: float | None) -> Cell:
    return Cell(units.times(factor), factor) if factor else NOTHING


def _worst(study: Study, group: Group, length: int, name: str) -> Cell:
    values = [value for row in study.at("kernels", group, length) if (value := number(row, name)) is not None]
    return Cell(f"{max(values):.1e}" if any(values) else "0", max(values)) if values else NOTHING
