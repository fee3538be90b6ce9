"""Seeds without a score: whoever lacks some is not ranked, for those that survive are no fair sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from arch_bench.report import units
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Study, by_seed


def shared_seeds(study: Study, group: Group, metric: Metric, lengths: Sequence[int]) -> set[int]:
    """Those with a score at every one of some tested lengths."""
    return set.intersection(*(set(by_seed(study.at("quality", group, n), metric.name)) for n in lengths))


def shortfalls(study: Study, groups: Sequence[Group], metric: Metric, lengths: Sequence[int]) -> dict[Group, str]:
    """Who lacks seeds that another of the groups has, or that failed: `1 of 3 seeds: 2 diverged`.

    A seed counts if it has a score at every one of the lengths.
    """
    scored = {group: shared_seeds(study, group, metric, lengths) for group in groups}
    of_any = set().union(*scored.values())
    found = {}
    for group, seeds in scored.items():
        rows = [row for length in lengths for row in study.at("quality", group, length)]
        wanted = of_any | {row.seed for row in rows}
        bad = {(row.status, row.seed) for row in rows if row.status != "ok" and row.seed not in seeds}
        reasons = ", ".join(f"{n} {status}" for status, n in sorted(Counter(status for status, _ in bad).items()))
        if seeds < wanted:
            found[group] = f"{len(seeds)} of {units.seeds(len(wanted))}" + (f": {reasons}" if reasons else "")
    return found
