"""Sentences about cost against length: who passes whom, how steeply a cost grows, which timing looks wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arch_bench.report import crossovers, metrics, outliers, scaling, units
from arch_bench.report.crossovers import Crossover
from arch_bench.report.metrics import Metric
from arch_bench.report.scaling import Exponent
from arch_bench.report.study import Group, Study
from arch_bench.results import Kind

MOST_PASSED = 3
"""Series that one sentence says were passed."""
BRACKETS = "in brackets the least and the greatest slope between neighbouring lengths"
"""Said where they stand, because in the sentences around it brackets are intervals over seeds."""


def passing(study: Study) -> list[str]:
    """One sentence on training and one on decoding: the widest lead that was not there at shorter lengths."""
    found = [each for each in crossovers.crossovers(study) if not each.doubt]
    kinds: tuple[Kind, ...] = ("speed", "decode")
    return [_passing(study, of_kind) for kind in kinds if (of_kind := [c for c in found if c.metric.kind == kind])]


def _passing(study: Study, found: Sequence[Crossover]) -> str:
    names = list(crossovers.NAMES)
    alike = [each for each in found if crossovers.is_like(study, each.ahead, each.behind)] or list(found)
    best = min(alike, key=lambda each: (names.index(each.metric), -each.lead))
    same = [each for each in alike if (each.facet, each.metric, each.ahead) == (best.facet, best.metric, best.ahead)]
    told = sorted(same, key=lambda each: -each.lead)[:MOST_PASSED]
    passed = units.listed([f"{each.behind.series} at {units.tokens(each.length)}" for each in told])
    seeds = units.seeds(*(n for each in told for n in each.n_seeds))
    text = f"{best.ahead.series} passes {passed} in {crossovers.NAMES[best.metric]} ({best.facet.title}, {seeds})"
    n_more = len(found) - len(told)
    return f"{text}; {n_more} more crossover{'s are' if n_more > 1 else ' is'} in the table." if n_more else f"{text}."


def steepness(study: Study) -> str:
    """The steepest and the flattest growth of a training step, or else of a decoded token."""
    return _steepness(study, metrics.TRAIN_STEP, "a training step") or _steepness(
        study, metrics.MS_PER_TOKEN, "the time of a decoded token"
    )


def _steepness(study: Study, metric: Metric, name: str) -> str:
    """In the facet where most series have an exponent, at the longest lengths."""
    fits = {group: found for group in study.points(metric) if (found := scaling.exponent(study, group, metric))}
    every = {group: found for group, found in fits.items() if not found.doubt}
    if not every:
        return _refused(fits, name)
    of_facet = [{g: e for g, e in every.items() if g.facet == facet} for facet in study.facets(metric.kind)]
    fitted = max(of_facet, key=lambda of: (len(of), max((e.lengths[-1] for e in of.values()), default=0)))
    ordered = sorted(fitted.items(), key=lambda item: -item[1].value)
    told = [ordered[0], ordered[-1]][: len(ordered)]
    where = f"{told[0][0].facet.title}, {units.seeds(*(exponent.n_seeds for _, exponent in told))}"
    most = f", the steepest and the flattest of {len(fitted)}" if len(fitted) > 2 else ""
    bent = f"; {BRACKETS}" if any("[" in _power(exponent) for _, exponent in told) else ""
    return f"{_grown(told, name)} ({where}{most}{bent})."


def _refused(fits: Mapping[Group, Exponent], name: str) -> str:
    """Why nothing is said of how a cost grows, by the first that has a reason."""
    if not fits:
        return ""
    group, found = next(iter(fits.items()))
    return f"No exponent is stated of {name}: {group.series} ({group.facet.title}): {found.doubt}."


def _grown(told: Sequence[tuple[Group, Exponent]], name: str) -> str:
    """`From 4,096 to 65,536 tokens`, once if all share it."""
    spans = [f"from {exponent.lengths[0]:,} to {units.tokens(exponent.lengths[-1])}" for _, exponent in told]
    verbs = ["grows ", ""]
    laws = [f"of {group.series} {verb}as L^{_power(e)}" for (group, e), verb in zip(told, verbs, strict=False)]
    if len(set(spans)) == 1:
        return f"F{spans[0][1:]} {name} {units.listed(laws)}"
    return (
        f"{name[0].upper()}{name[1:]} {units.listed([f'{law} {span}' for law, span in zip(laws, spans, strict=True)])}"
    )


def suspicion(study: Study) -> str:
    """The first outlier, and how many more there are."""
    found = outliers.outliers(study)
    if not found:
        return ""
    first, more = found[0], len(found) - 1
    text = f"Look twice at {first.group.series} at {units.tokens(first.length)} "
    text += f"({first.group.facet.title}: {first.reason})"
    return f"{text}; {more} more {'are' if more > 1 else 'is'} flagged in the tables." if more else f"{text}."


def _power(exponent: Exponent) -> str:
    return units.power(exponent.value, exponent.low, exponent.high)
