"""Dials that differ between rows of one task and that no name shows: disclosed in words, not drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from arch_bench.report import dials, units
from arch_bench.report.dials import Labels, Measured, Value

OWN = ("backbone.", "task.")
"""Dials that begin so are what a backbone or a task is: they may differ between those."""
ELSEWHERE = {"experiment", "batching", "device"}
"""Told by panels, or as facts of their own."""
MOST_VALUES = 6
MOST_NAMED = 3
"""Backbones that a value is said to be of."""
Found = dict[str, dict[Value, set[str]]]
"""Last part of a dial -> value, by rising size -> the backbones that have it; none for a dial of the backbone's own."""


def told(labels: Labels) -> str:
    """`n_heads (4, 8), n_layers (8 for jamba, else 2)`."""
    return ", ".join(f"{dial} ({_words(of)})" for dial, of in unnamed(labels).items())


def unnamed(labels: Labels) -> Found:
    """What differs within one kind of measurement of a (backbone, task), or within a task for all but `OWN`."""
    hidden = {dials.leaf(dial) for dial in labels.dials} | ELSEWHERE
    found: dict[str, dict[Value, set[str]]] = {}
    for group in _grouped((cell.place, cell) for cell in labels.cells):
        for dial in sorted({dial for cell in group for dial in cell.dials}):
            _note(found, dial, [(cell.dials.get(dial), cell) for cell in group])
    for group in _grouped((cell.place.task, cell) for cell in labels.cells):
        for dial in sorted({dial for cell in group for dial in cell.dials if not dial.startswith(OWN)}):
            _note(found, dial, [(cell.dials[dial], cell) for cell in group if dial in cell.dials])
    return {dial: dict(sorted(of.items(), key=_size)) for dial, of in found.items() if dial not in hidden}


def _note(found: Found, dial: str, values: Sequence[tuple[Value, Measured]]) -> None:
    if len({value for value, _ in values}) > 1:
        for value, cell in values:
            owners = found.setdefault(dials.leaf(dial), {}).setdefault(value, set())
            owners |= set() if dial.startswith(OWN) else {cell.place.backbone}


def _grouped(pairs: Iterable[tuple[Any, Measured]]) -> list[list[Measured]]:
    groups: dict[Any, list[Measured]] = {}
    for key, cell in pairs:
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


def _size(item: tuple[Value, Any]) -> tuple[bool, float, str]:
    return dials.sortable(item[0])


def _words(of: Mapping[Value, set[str]]) -> str:
    """The values; if they depend on the backbone then with the backbones, but for the value of most."""
    values, owners = [dials.show(value) for value in of], list(of.values())
    if len(values) > MOST_VALUES:
        return f"{values[0]} to {values[-1]}, {units.count(len(values))} values"
    if all(each == owners[0] for each in owners):
        return ", ".join(values)
    most = max(owners, key=len)
    parts = [f"{value} for {_few(names)}" for value, names in zip(values, owners, strict=True) if names is not most]
    return ", ".join([*parts, f"else {values[owners.index(most)]}"])


def _few(backbones: Iterable[str]) -> str:
    names = sorted(backbones)
    more = len(names) - MOST_NAMED
    return units.listed([*names[:MOST_NAMED], f"{more} more"] if more > 0 else names)
