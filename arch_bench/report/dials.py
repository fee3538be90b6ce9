"""Which dials tell the rows of one report apart, and what each series and task is called because of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from arch_bench.report import facets
from arch_bench.results import Kind, Row

Value = str | int | float | bool | None
Identity = tuple[str, str, str, Kind, str]
"""Key, backbone, task, kind, and the settings of the phase, the contender among kernels with them."""

IDENTITY = {"name", "backbone_name", "task_name", "seq_len", "seed", "experiment"}
"""Columns of the row themselves."""
HOUSEKEEPING = {
    "phases",
    "eval_scales",
    "results_dir",
    "isolate",
    "rerun",
    "time_limit_s",
    "checkpoint_every_s",
    "logger",
    "chosen",
    "trial",
    "scan",
    "launcher",
    "hydra",
}
EFFORT = {
    *("lengths", "search_max_len", "n_steps", "max_seconds", "n_tokens"),
    *("val_every", "n_val_batches", "n_test_batches"),
}
"""How long or where one measures: not what is measured."""
MODELS: set[Kind] = {"quality", "scan", "speed", "decode"}
"""What measures whole models on a task; kernels are layers alone."""
MATTERS_TO: dict[str, set[Kind]] = {
    "speed": {"speed", "kernels"},
    "decode": {"decode"},
    "trainer": {"quality", "scan"},
    "optim": {"quality", "scan"},
    "trainer.strategy": {"quality", "scan", "speed"},
    "trainer.devices": {"quality", "scan", "speed"},
    **dict.fromkeys(("step", "task", "n_layers", "loss_kernel"), MODELS),
}
"""Groups of dials that change only some kinds of row; a learning rate does not split a timing."""
RATE = "optim.lr"
"""What a scan tries several of: there it tells nothing apart."""
NEVER_FOLLOWS = {"d_model", "n_layers", "precision", "kernel", "device"}
"""These are a choice even if the rows show just one value per length; others may be a function of the length."""


@dataclass
class Labels:
    """The names of rows, and the order that series and tasks are listed in."""

    tasks: list[str] = field(default_factory=list)
    series: list[str] = field(default_factory=list)
    backbone: dict[str, str] = field(default_factory=dict)
    """Series -> backbone."""
    dials: list[str] = field(default_factory=list)
    """The dials that the names show, in full."""
    subjects: list[str] = field(default_factory=list)
    """What kernels are for, in order: a backbone, with its dials as in the name of a series."""
    names: dict[Identity, tuple[str, str]] = field(default_factory=dict)
    """What is measured -> (task, series), or (subject, contender)."""
    ran: dict[tuple[Identity, int], str] = field(default_factory=dict)
    """What is measured, and its length -> how the step ran, where a series ran in several ways."""

    def of(self, row: Row) -> tuple[str, str]:
        """(task, series) of a row; of kernels, (subject, contender)."""
        task, series = self.names[this := identity(row)]
        way = self.ran.get((this, row.seq_len))
        return task, f"{series} ({way})" if way else series


class Place(NamedTuple):
    """Dials tell apart what shares it."""

    backbone: str
    task: str
    """Empty for kernels."""
    kind: Kind
    batching: str
    """Gives a row another panel, and so tells nothing apart within one."""
    contender: str
    """Empty for anything but kernels."""


@dataclass(frozen=True)
class _Cell:
    place: Place
    train_seq_len: int
    seed: int
    dials: Mapping[str, Value]


def label(rows: Sequence[Row]) -> Labels:
    """Name every row: the backbone with the dials that tell its rows apart; dials of the task go to the task's name.

    A dial counts when it takes several values within one (backbone, task). It is left out when its value follows
    from the training length or from dials already named: d_head from d_model, a position table from the length.
    """
    cells = _cells(rows)
    labels = Labels(dials=_telling(list(cells.values())))
    _name_models(labels, {this: cell for this, cell in cells.items() if cell.place.kind != "kernels"})
    _name_kernels(labels, {this: cell for this, cell in cells.items() if cell.place.kind == "kernels"})
    return labels


def silent(rows: Sequence[Row], labels: Labels) -> dict[str, list[Value]]:
    """Dials that differ within a (backbone, task) and that no name shows, with their values: disclosed, not drawn."""
    shown = {_leaf(dial) for dial in labels.dials} | {"experiment"}
    found: dict[str, dict[Value, None]] = {}
    for group in _grouped(_cells(rows).values()):
        for dial in sorted({dial for cell in group for dial in cell.dials}):
            values = {cell.dials.get(dial) for cell in group}
            if len(values) > 1 and _leaf(dial) not in shown:
                found.setdefault(_leaf(dial), {}).update(dict.fromkeys(sorted(values, key=_sortable)))
    return {dial: list(values) for dial, values in found.items()}


def shared(rows: Sequence[Row]) -> dict[str, Value]:
    """Dials of the harness (not of one backbone or task) that have one value in every row."""
    every = [cell.dials for cell in _cells(rows).values()]
    names = {dial for dials in every for dial in dials if not dial.startswith(("backbone.", "task.", "experiment"))}
    values = {name: {dials[name] for dials in every if name in dials} for name in names}
    return {name: next(iter(values[name])) for name in sorted(values, key=_depth) if len(values[name]) == 1}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested mappings -> dotted names; lists become JSON."""
    flat: dict[str, Value] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, Value) else json.dumps(value)
    return flat


def show(value: Value) -> str:
    """A dial's value in a name."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def identity(row: Row) -> Identity:
    """What a row measures, its length aside; rows that share it are repeats of one measurement.

    The key of a cell says nothing of how its phases were set (tokens per step, say), so those stand beside it.
    """
    settings = {name: value for name, value in facets.settings(row).items() if name not in EFFORT}
    contender = {"contender": row.kernel} if row.kind == "kernels" else {}
    return row.key, row.backbone, row.task, row.kind, json.dumps(settings | contender, sort_keys=True)


def _cells(rows: Sequence[Row]) -> dict[Identity, _Cell]:
    """One entry per cell, kind and settings; what ran (precision, device) stands in for what was asked (`auto`)."""
    devices = _devices(rows)
    cells: dict[Identity, _Cell] = {}
    for row in rows:
        if (this := identity(row)) not in cells:
            asked = {dial: value for dial, value in flatten(row.config).items() if _is_dial(dial, row.kind)}
            ran = {"precision": row.precision, "device": devices[row.key], "experiment": row.experiment}
            dials = asked | {dial: value for dial, value in ran.items() if value}
            cells[this] = _Cell(_place(row), row.train_seq_len, row.seed, dials)
    return cells


def _place(row: Row) -> Place:
    task, contender = ("", row.kernel) if row.kind == "kernels" else (row.task, "")
    return Place(row.backbone, task, row.kind, facets.batching(row), contender)


def _devices(rows: Sequence[Row]) -> dict[str, str]:
    """Key -> the device's name. A cell that failed knows just its type: it takes the one name known for that type."""
    names: dict[str, str] = {}
    by_type: dict[str, set[str]] = {}
    for row in rows:
        if row.device and row.device != (asked := str(row.config.get("device", ""))):
            names[row.key] = row.device
            by_type.setdefault(asked, set()).add(row.device)
    for row in rows:
        if row.key not in names:
            known = by_type.get(row.device, set())
            names[row.key] = next(iter(known)) if len(known) == 1 else row.device
    return names


def _is_dial(dial: str, kind: Kind) -> bool:
    first, leaf = dial.partition(".")[0], _leaf(dial)
    is_other = {first, leaf} & IDENTITY or first in HOUSEKEEPING or leaf in EFFORT or leaf == "_partial_"
    is_asked = kind == "kernels" and leaf == "kernel"  # whichever was asked for, every one of them was timed
    is_asked |= kind == "scan" and dial == RATE
    return not (is_other or is_asked) and kind in MATTERS_TO.get(dial, MATTERS_TO.get(first, {kind}))


def _telling(cells: Sequence[_Cell]) -> list[str]:
    """The fewest dials that tell cells of one place and training length apart, the shortest names first."""
    values: dict[str, set[Value]] = {}
    for cell in cells:
        for dial, value in cell.dials.items():
            values.setdefault(dial, set()).add(value)
    kept: list[str] = []
    for dial in sorted(values, key=lambda dial: (dial == "experiment", _depth(dial))):
        if len(values[dial]) > 1 and _refines(cells, kept, dial):
            kept.append(dial)
    return kept


def _refines(cells: Sequence[_Cell], kept: Sequence[str], dial: str) -> bool:
    """Whether `dial` separates cells that the dials in `kept` leave together."""
    seen: dict[tuple[Any, ...], Value] = {}
    for cell in cells:
        if dial in cell.dials:
            length = 0 if dial in NEVER_FOLLOWS else cell.train_seq_len
            seed = cell.seed if dial == "experiment" else 0  # a second experiment may just add seeds
            group = (cell.place, length, seed, *(cell.dials.get(name) for name in kept))
            if seen.setdefault(group, cell.dials[dial]) != cell.dials[dial]:
                return True
    return False


def _grouped(cells: Iterable[_Cell]) -> list[list[_Cell]]:
    groups: dict[Place, list[_Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.place, []).append(cell)
    return list(groups.values())


def _name_models(labels: Labels, cells: Mapping[Identity, _Cell]) -> None:
    tasks: dict[tuple[Any, ...], str] = {}
    series: dict[tuple[Any, ...], tuple[str, str]] = {}
    for this, cell in cells.items():
        task_order, task = _name(cell, cell.place.task, labels.dials, is_task=True)
        order, name = _name(cell, cell.place.backbone, labels.dials)
        tasks[task_order] = task
        series[order] = (name, cell.place.backbone)
        labels.names[this] = (task, name)
    labels.tasks = list(dict.fromkeys(tasks[order] for order in sorted(tasks)))
    labels.backbone = {name: backbone for _, (name, backbone) in sorted(series.items())}
    labels.series = list(labels.backbone)


def _name_kernels(labels: Labels, cells: Mapping[Identity, _Cell]) -> None:
    subjects: dict[tuple[Any, ...], str] = {}
    for this, cell in cells.items():
        order, name = _name(cell, cell.place.backbone, labels.dials)
        subjects[order] = name
        labels.names[this] = (name, cell.place.contender)
    labels.subjects = [subjects[order] for order in sorted(subjects)]


def _name(cell: _Cell, base: str, dials: Sequence[str], is_task: bool = False) -> tuple[tuple[Any, ...], str]:
    """(sort key, name) of a base and those of the dials that are the task's, or are not, and that the cell has."""
    leaves = [_leaf(dial) for dial in dials]
    present = [dial for dial in dials if dial in cell.dials and dial.startswith("task.") == is_task]
    parts = [f"{_leaf(dial) if leaves.count(_leaf(dial)) == 1 else dial}={show(cell.dials[dial])}" for dial in present]
    return (base, *((dial, _sortable(cell.dials[dial])) for dial in present)), " ".join([base, *parts])


def _leaf(dial: str) -> str:
    return dial.rpartition(".")[2]


def _depth(dial: str) -> tuple[int, str]:
    return dial.count("."), dial


def _sortable(value: Value) -> tuple[bool, float, str]:
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if isinstance(value, int | float) else 0.0, str(value)
