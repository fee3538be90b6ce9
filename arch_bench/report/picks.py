"""Sentences about kernels: whether `auto` picks the fastest, and how far that is from a library's bare call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from arch_bench.report import contenders, metrics, units
from arch_bench.report.facets import Facet
from arch_bench.report.study import Group, Point, Study
from arch_bench.report.tables import words

MOST_WRONG = 3
"""Choices that are told to be wrong, a sentence each."""
MOST_NAMED = 6
"""Names of right choices in one sentence; more of them are counted."""
MOST_DISTANCES = 4


class Loss(NamedTuple):
    """A length at which another kernel of ours is faster than the one that `auto` picks."""

    length: int
    rival: Group
    factor: float
    """Infinite where what `auto` picks has no result."""


class Choice(NamedTuple):
    """What `auto` picks in one facet, held against the other kernels of ours."""

    group: Group
    n_lengths: int
    """Those with a rival."""
    losses: list[Loss]
    n_seeds: list[int]


class Distance(NamedTuple):
    """The time of what `auto` picks over that of the bare call, at their longest common length."""

    group: Group
    bare: Group
    length: int
    factor: float
    n_seeds: int


def sentences(study: Study) -> list[str]:
    """Where `auto` is right, where it is not, and how far it is from plain calls."""
    found = choices(study)
    wrong = sorted((each for each in found if each.losses), key=lambda each: -_worst(each).factor)
    more = len(wrong) - MOST_WRONG
    rest = f"For {more} more, kernel=auto does not pick the fastest either: see the table of kernels." * (more > 0)
    return [_right(found), *(_wrong(each) for each in wrong[:MOST_WRONG]), rest, _far(study)]


def choices(study: Study) -> list[Choice]:
    """One per facet where what `auto` picks has a rival."""
    found = [_choice(study, group) for group in study.groups("kernels") if contenders.is_auto(study, group)]
    return [each for each in found if each.n_lengths]


def distances(study: Study) -> list[Distance]:
    """One per backbone: under the batch policy with the longest common length."""
    best: dict[str, Distance] = {}
    for group in study.groups("kernels"):
        found = _distance(study, group) if contenders.is_auto(study, group) else None
        if found and (group.task not in best or found.length > best[group.task].length):
            best[group.task] = found
    return list(best.values())


def _choice(study: Study, group: Group) -> Choice:
    choice = Choice(group, 0, [], [])
    for length in sorted(study.index["kernels"][group]):
        found = contenders.times(study, group.facet, length)
        mine = found.pop(group, None)
        rival = next((other for other in found if not contenders.role(study, other)), None)
        if rival:
            points = [found[rival], mine] if mine else [found[rival]]
            choice.n_seeds.extend(point.n_seeds for point in points)
            choice.losses.extend(_losses(length, mine, rival, found[rival]))
            choice = choice._replace(n_lengths=choice.n_lengths + 1)
    return choice


def _losses(length: int, mine: Point | None, rival: Group, best: Point) -> list[Loss]:
    """One or none; what is level is no loss."""
    if mine is None:
        return [Loss(length, rival, math.inf)]
    return [] if mine.value <= best.value or mine.is_level(best) else [Loss(length, rival, mine.value / best.value)]


def _worst(choice: Choice) -> Loss:
    return max(choice.losses, key=lambda loss: loss.factor)


def _distance(study: Study, group: Group) -> Distance | None:
    mine = study.points(metrics.KERNEL).get(group, {})
    for length in sorted(mine, reverse=True):
        for other, point in contenders.times(study, group.facet, length).items():
            if contenders.is_bare(study, other):
                n_seeds = min(point.n_seeds, mine[length].n_seeds)
                return Distance(group, other, length, mine[length].value / point.value, n_seeds)
    return None


def _right(found: Sequence[Choice]) -> str:
    """A backbone is named once if `auto` is right under each of its batch policies."""
    right = [each for each in found if not each.losses]
    if not right:
        return ""
    partly = {each.group.task for each in found if each.losses}
    places = [each.group.facet for each in right]
    names = list(dict.fromkeys(_where(each, places) if each.task in partly else each.task for each in places))
    which = units.listed(names) if len(names) <= MOST_NAMED else f"{len(right)} of {len(found)} comparisons"
    basis = _basis(places, [n for each in right for n in each.n_seeds])
    return f"At every length kernel=auto picks the fastest of our kernels, or one level with it, for {which} ({basis})."


def _wrong(choice: Choice) -> str:
    worst, lost = _worst(choice), f"{len(choice.losses)} of {choice.n_lengths} lengths"
    text = f"For {choice.group.task} kernel=auto picks {choice.group.series}, which is not the fastest at {lost}: "
    if math.isinf(worst.factor):
        text += f"at {units.tokens(worst.length)} it has no result and {worst.rival.series} has"
    else:
        text += f"at {units.tokens(worst.length)} {worst.rival.series} is {units.times(worst.factor)} as fast"
    return f"{text} ({_basis([choice.group.facet], choice.n_seeds)})."


def _far(study: Study) -> str:
    found = distances(study)
    if not found:
        return ""
    furthest = sorted(found, key=lambda each: -abs(math.log(each.factor)))[:MOST_DISTANCES]
    told = [each for each in found if each in furthest]
    places, lengths = [each.group.facet for each in told], {each.length for each in told}
    ends = [f" at {units.tokens(each.length)}" * (len(lengths) > 1) for each in told]
    clauses = [
        f"{_where(each.group.facet, places)} {_relation(study, each)}{end}"
        for each, end in zip(told, ends, strict=True)
    ]
    start = f"At {units.tokens(told[0].length)} and with" if len(lengths) == 1 else "With"
    more = f"; {len(found) - len(told)} more are in the table of kernels" * (len(found) > len(told))
    basis = _basis(places, [each.n_seeds for each in told])
    return f"{start} kernel=auto, {units.listed(clauses)} ({basis}){more}."


def _relation(study: Study, distance: Distance) -> str:
    """`is slower than mamba_ssm.Mamba by 12 %`; a graph is not to be compared with eager calls without saying so."""
    steps = [
        words(str(row.metrics.get("step", "")) for row in study.at("kernels", group, distance.length))
        for group in (distance.group, distance.bare)
    ]
    caution = f" ({' against '.join(steps)})" if steps[0] != steps[1] else ""
    return _compared(distance.factor, distance.bare.series) + caution


def _compared(factor: float, bare: str) -> str:
    longer, off = factor > 1, max(factor, 1 / factor)
    percent = 100 * (off - 1)
    if off <= metrics.CLOSE_COST:
        return f"is within {max(1, math.ceil(round(percent, 6)))} % of {bare}"
    if off >= 2:
        return f"takes {units.times(off)} as long as {bare}" if longer else f"is {units.times(off)} as fast as {bare}"
    return f"is {'slower' if longer else 'faster'} than {bare} by {percent:.0f} %"


def _where(place: Facet, places: Sequence[Facet]) -> str:
    """`mamba (batch 1)`; the conditions only if they are not those of all."""
    conditions = {each.conditions for each in places}
    return f"{place.task} ({place.conditions})" if len(conditions) > 1 else place.task


def _basis(places: Sequence[Facet], n_seeds: Sequence[int]) -> str:
    """`batch 1, 3 seeds`; the conditions if they are those of all."""
    conditions = {each.conditions for each in places}
    shared = conditions.pop() if len(conditions) == 1 else ""
    return ", ".join(part for part in (shared, units.seeds(*n_seeds)) if part)
