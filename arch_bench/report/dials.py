"""Which dials tell the rows of one report apart, and what each series and task is called because of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple, get_args

from arch_bench import results
from arch_bench.report import devices, facets
from arch_bench.results import Kind, Row

Value = str | int | float | bool | None
SCALARS = (str, int, float, bool, type(None))
UNIQUE = {"config", "metrics", "curve"}
"""Groups that no two rows share."""
Identity = tuple[str, str, str, Kind, str, str, str]
"""Key, backbone, task, kind, the settings of the phase with the contender among kernels, device and precision."""

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
    "task.cache_dir",
    "task.sha256",
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
CONDITIONS = {"device", "precision", "trainer.devices", "trainer.strategy"}
"""Where and how cells run. Names tell these also where each backbone has one value and others have another."""
RECIPE = ("task.", "trainer.", "optim.")
"""Dials that begin so say what is learned, for how long and by which recipe. With `CONDITIONS`, they give rows a panel
of their own, also where each backbone has one value: what was trained otherwise is no rival. The rate is none of them:
it is chosen for each backbone."""
CORPUS = "task.corpus"
"""The hash of the text that was read: a corpus may have changed under one path."""
NEVER_FOLLOWS = {"d_model", "n_layers", "kernel", *CONDITIONS}
"""These are a choice even if the rows show just one value per length; others may be a function of the length."""


@dataclass
class Labels:
    """The names of rows, and the order that series and tasks are listed in."""

    tasks: list[str] = field(default_factory=list)
    series: list[str] = field(default_factory=list)
    backbone: dict[str, str] = field(default_factory=dict)
    """Series -> backbone."""
    shown: dict[str, dict[str, Value]] = field(default_factory=dict)
    """Series -> the dials in its name."""
    dials: list[str] = field(default_factory=list)
    """The dials that the names show, in full."""
    of_task: dict[str, tuple[str, dict[str, Value]]] = field(default_factory=dict)
    """Name of a task -> the task, and the dials in that name."""
    subjects: list[str] = field(default_factory=list)
    """What kernels are for, in order: a backbone, with its dials as in the name of a series."""
    names: dict[Identity, tuple[str, str]] = field(default_factory=dict)
    """What is measured -> (task, series), or (subject, contender)."""
    ran: dict[tuple[Identity, int], str] = field(default_factory=dict)
    """What is measured, and its length -> how the step ran, where a series ran in several ways."""
    cells: list[Measured] = field(default_factory=list)
    """What was measured, each once."""
    devices: dict[str, str] = field(default_factory=dict)
    """The names of devices, as `devices.known` finds them."""

    def identity(self, row: Row) -> Identity:
        return identity(row, self.devices)

    def device(self, row: Row) -> str:
        return devices.device(row, self.devices)

    def of(self, row: Row) -> tuple[str, str]:
        """(task, series) of a row; of kernels, (subject, contender)."""
        task, series = self.names[this := self.identity(row)]
        way = self.ran.get((this, row.seq_len))
        return task, f"{series} ({way})" if way else series

    def agree(self, one: str, other: str) -> bool:
        """Whether two series share the value of every dial that both names show."""
        return _agree(self.shown[one], self.shown[other])

    def is_one_task(self, one: str, other: str) -> bool:
        """Whether two names are of one task, with the same value of every dial that both show."""
        (first, some), (second, others) = self.of_task[one], self.of_task[other]
        return first == second and _agree(some, others)


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
    device: str
    """Of costs, likewise; empty for scores."""


@dataclass(frozen=True)
class Measured:
    """A cell under one kind and its settings."""

    place: Place
    train_seq_len: int
    seed: int
    dials: Mapping[str, Value]


def label(rows: Sequence[Row]) -> Labels:
    """Name every row: the backbone with the dials that tell its rows apart; dials of the task go to the task's name.

    A dial counts when it takes several values within one (backbone, task), one that `splits` also when it does between
    backbones; those stand in the task's name and so give rows another panel. It is left out when its value follows
    from the training length or from dials already named: d_head from d_model, a position table from the length.
    """
    names = devices.known(rows)
    cells = measured(rows, names)
    labels = Labels(dials=_telling(list(cells.values())), devices=names, cells=list(cells.values()))
    _name_models(labels, {this: cell for this, cell in cells.items() if cell.place.kind != "kernels"})
    _name_kernels(labels, {this: cell for this, cell in cells.items() if cell.place.kind == "kernels"})
    return labels


def shared(cells: Iterable[Measured]) -> dict[str, Value]:
    """Dials of the harness (not of one backbone or task) that have one value in every cell."""
    every = [cell.dials for cell in cells]
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


class Flattener:
    """Flattens many configurations, whose groups recur: each group that prints the same once."""

    def __init__(self, is_kept: Callable[[str], bool] | None = None) -> None:
        self._is_kept = cache(is_kept or (lambda name: True))
        self._known: dict[tuple[str, str], dict[str, Value]] = {}

    def __call__(self, config: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
        flat: dict[str, Value] = {}
        for key, value in config.items():
            name = prefix + key
            if isinstance(value, dict):
                flat |= self(value, f"{name}.") if key in UNIQUE else self._recurring(name, value)
            elif self._is_kept(name):
                flat[name] = value if isinstance(value, SCALARS) else json.dumps(value)
        return flat

    def _recurring(self, name: str, group: dict[str, Any]) -> dict[str, Value]:
        place = name, repr(group)
        if place not in self._known:
            every = flatten(group, f"{name}.")
            self._known[place] = {each: value for each, value in every.items() if self._is_kept(each)}
        return self._known[place]


def show(value: Value) -> str:
    """A dial's value in a name."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def identity(row: Row, names: Mapping[str, str]) -> Identity:
    """What a row measures, its length aside; rows that share it are repeats of one measurement.

    The key of a cell says nothing of how its phases were set (tokens per step, say) and on which model of a device it
    ran, so those stand beside it. names: those of `devices.known`.
    """
    contender = row.kernel if row.kind == "kernels" else ""
    phase = _phase(facets.settings(row), contender)
    return row.key, row.backbone, row.task, row.kind, phase, devices.device(row, names), row.precision


_phases: dict[tuple[str, str], str] = {}
"""How a phase was set, as Python prints it -> as `_phase` does: the same settings recur in many rows."""


def _phase(settings: Mapping[str, Any], contender: str) -> str:
    """Return settings without `EFFORT`, in an order of their own."""
    place = repr(settings), contender
    if place not in _phases:
        kept = {name: value for name, value in settings.items() if name not in EFFORT}
        _phases[place] = json.dumps([kept, contender], sort_keys=True)
    return _phases[place]


def measured(rows: Sequence[Row], names: Mapping[str, str]) -> dict[Identity, Measured]:
    """One entry per cell, kind and settings; what ran (precision, device) stands in for what was asked (`auto`)."""
    cells: dict[Identity, Measured] = {}
    known = {f"{group}.{name}" for row in rows for group in results.ADDED for name in row.config.get(group) or {}}
    flat = {kind: Flattener(partial(_is_dial, kind=kind)) for kind in get_args(Kind)}
    neutral = {dial: value for dial, value in flatten(results.ADDED).items() if dial in known}
    corpora = {row.key: str(row.data["sha256"])[:8] for row in rows if row.data.get("sha256")}
    for row in rows:
        if (this := identity(row, names)) not in cells:
            added = {dial: value for dial, value in neutral.items() if _is_dial(dial, row.kind)}
            asked = added | flat[row.kind](row.config)
            place = _place(row, device := devices.device(row, names))
            ran = {"precision": row.precision, "device": device, "experiment": row.experiment}
            if row.kind in facets.TRAINED:
                ran[CORPUS] = corpora.get(row.key, "")
            dials = asked | {dial: value for dial, value in ran.items() if value}
            cells[this] = Measured(place, row.train_seq_len, row.seed, dials)
    return cells


def _place(row: Row, device: str) -> Place:
    task, contender = ("", row.kernel) if row.kind == "kernels" else (row.task, "")
    where = "" if row.kind in facets.TRAINED else device
    return Place(row.backbone, task, row.kind, facets.batching(row), contender, where)


def _is_dial(dial: str, kind: Kind) -> bool:
    first, last = dial.partition(".")[0], leaf(dial)
    is_other = {first, last} & IDENTITY or {first, dial} & HOUSEKEEPING or last in EFFORT or last == "_partial_"
    is_asked = kind == "kernels" and last == "kernel"  # whichever was asked for, every one of them was timed
    is_asked |= kind == "scan" and dial == RATE
    return not (is_other or is_asked) and kind in MATTERS_TO.get(dial, MATTERS_TO.get(first, {kind}))


def _telling(cells: Sequence[Measured]) -> list[str]:
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


def _refines(cells: Sequence[Measured], kept: Sequence[str], dial: str) -> bool:
    """Whether `dial` separates cells that the dials in `kept` leave together."""
    seen: dict[tuple[Any, ...], Value] = {}
    is_of_panel = splits(dial)
    kept = [name for name in kept if splits(name)] if is_of_panel else kept
    for cell in cells:
        if dial in cell.dials:
            length = 0 if dial in NEVER_FOLLOWS else cell.train_seq_len
            seed = cell.seed if dial == "experiment" else 0  # a second experiment may just add seeds
            place = cell.place._replace(backbone="", contender="") if is_of_panel else cell.place
            group = (place, length, seed, *(cell.dials.get(name) for name in kept))
            if seen.setdefault(group, cell.dials[dial]) != cell.dials[dial]:
                return True
    return False


def _name_models(labels: Labels, cells: Mapping[Identity, Measured]) -> None:
    tasks: dict[tuple[Any, ...], str] = {}
    series: dict[tuple[Any, ...], tuple[str, str]] = {}
    for this, cell in cells.items():
        task_order, task = _name(cell, cell.place.task, labels.dials, splits)
        order, name = _name(cell, cell.place.backbone, labels.dials, lambda dial: not splits(dial))
        tasks[task_order] = task
        labels.of_task[task] = cell.place.task, {dial: cell.dials[dial] for dial, _ in task_order[1:]}
        series[order] = (name, cell.place.backbone)
        labels.shown[name] = {dial: cell.dials[dial] for dial, _ in order[1:]}
        labels.names[this] = (task, name)
    labels.tasks = list(dict.fromkeys(tasks[order] for order in sorted(tasks)))
    labels.backbone = {name: backbone for _, (name, backbone) in sorted(series.items())}
    labels.series = list(labels.backbone)


def _name_kernels(labels: Labels, cells: Mapping[Identity, Measured]) -> None:
    subjects: dict[tuple[Any, ...], str] = {}
    for this, cell in cells.items():
        order, name = _name(cell, cell.place.backbone, labels.dials, lambda dial: not dial.startswith("task."))
        subjects[order] = name
        labels.names[this] = (name, cell.place.contender)
    labels.subjects = [subjects[order] for order in sorted(subjects)]


def splits(dial: str) -> bool:
    """Return whether a dial belongs to the name of the task: rows that differ in it share no panel."""
    return dial in CONDITIONS or (dial.startswith(RECIPE) and dial != RATE)


def _agree(first: Mapping[str, Value], second: Mapping[str, Value]) -> bool:
    return all(first[dial] == second[dial] for dial in first.keys() & second)


def _name(
    cell: Measured, base: str, dials: Sequence[str], is_part: Callable[[str], bool]
) -> tuple[tuple[Any, ...], str]:
    """(sort key, name) of a base and of those dials that are part of the name and that the cell has."""
    leaves = [leaf(dial) for dial in dials]
    present = [dial for dial in dials if dial in cell.dials and is_part(dial)]
    if cell.place.device and "device" in present:
        present.remove("device")  # a panel of its own says it
    parts = [f"{leaf(dial) if leaves.count(leaf(dial)) == 1 else dial}={show(cell.dials[dial])}" for dial in present]
    return (base, *((dial, sortable(cell.dials[dial])) for dial in present)), " ".join([base, *parts])


def leaf(dial: str) -> str:
    return dial.rpartition(".")[2]


def _depth(dial: str) -> tuple[int, str]:
    return dial.count("."), dial


def sortable(value: Value) -> tuple[bool, float, str]:
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if isinstance(value, int | float) else 0.0, str(value)
