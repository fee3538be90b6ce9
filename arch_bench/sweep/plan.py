"""What a round of a sweep has to do: how many cells there are, are done, failed and remain, and how long that takes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from arch_bench.cell.run import final, is_done, rows_of
from arch_bench.config.errors import one_line
from arch_bench.config.instantiate import build, made, takes
from arch_bench.config.schema import Cell, ConfigError, with_kernel
from arch_bench.results import RETRIED, Kind, Row
from arch_bench.runtime import workers

NO_ESTIMATE = " (no estimate: nothing like them has been run here)"


class Plan(NamedTuple):
    """The cells of a round, by what is on disk."""

    done: list[Cell]
    failed: list[Cell]
    """Those that crashed or ran out of time before; they are tried again."""
    missing: list[Cell]
    seconds: float | None
    """For the failed and the missing, one after the other; None when nothing like them has been run here."""
    mistakes: list[str]
    """Of the missing, those that cannot be run: the user's mistakes, in one line each."""

    @property
    def remaining(self) -> list[Cell]:
        return self.failed + self.missing

    def text(self) -> str:
        """In one line."""
        n_cells = len(self.done) + len(self.remaining)
        parts = [f"{n_cells:,} cell{'s' if n_cells != 1 else ''}", f"{len(self.done):,} done"]
        if self.failed:
            parts.append(f"{len(self.failed):,} failed before")
        parts.append(f"{len(self.remaining):,} to run")
        if self.remaining and self.seconds is not None:
            parts.append(f"about {duration(self.seconds)} of computing")
        return ", ".join(parts)


def plan(cells: Iterable[Cell], history: list[Row]) -> Plan:
    """Look for the rows of each cell. history: rows whose processes were timed, to estimate by."""
    found = Plan([], [], [], None, [])
    named = [(cell, _final(cell)) for cell in cells]
    asked = [each for _, each in named if isinstance(each, Cell) and not is_done(each)]
    mistakes, times = dict(zip(map(_like, asked), _mistakes(asked), strict=True)), list[float | None]()
    for cell, each in named:
        if not isinstance(each, Cell):
            found.missing.append(cell)
            found.mistakes.extend([each] if each else [])
        elif _like(each) in mistakes and (mistake := mistakes[_like(each)]):
            found.missing.append(cell)
            found.mistakes.append(mistake)
        elif is_done(each):
            found.done.append(cell)
        else:
            has_failed = any(row.status in RETRIED for row in rows_of(each))
            (found.failed if has_failed else found.missing).append(cell)
            times.append(_estimate(each, history))
    known = [seconds for seconds in times if seconds is not None]
    return found._replace(seconds=statistics.mean(known) * len(times) if known else None)


def _final(cell: Cell) -> Cell | str:
    """A cell as its rows will name it, or the user's mistake; empty for a bug, which is told when it is its turn."""
    try:
        return final(cell, is_elsewhere=True)[0]
    except ConfigError as error:
        return one_line(error)
    except Exception:
        return ""


def _mistakes(cells: Sequence[Cell]) -> list[str]:
    """What is wrong with each, asked once of all that are alike.

    It is asked in a process of its own, unless `isolate=false`: a constructor that aborts or never returns ends no
    plan. Whoever does is asked alone, and told when it is its turn.
    """
    new = {_like(cell): cell for cell in cells if _like(cell) not in _KNOWN}
    here, apart = ({like: cell for like, cell in new.items() if cell.isolate is is_apart} for is_apart in (False, True))
    _KNOWN.update(zip(here, check_all([*here.values()]), strict=True))
    if apart:
        try:
            answers = workers.call(check_all, [*apart.values()], time_limit_s=ALL_S)
        except (workers.Crashed, workers.TimedOut):
            answers = [_alone(cell) for cell in apart.values()]
        _KNOWN.update(zip(apart, answers, strict=True))
    return [_KNOWN[_like(cell)] for cell in cells]


ALL_S, ONE_S = 120.0, 20.0
"""Seconds that making all models of a plan may take, and one of them."""
_KNOWN: dict[str, str] = {}


def _like(cell: Cell) -> str:
    return json.dumps(cell.model_dump(include={"backbone", "task"}), sort_keys=True)


def _alone(cell: Cell) -> str:
    try:
        return workers.call(check_all, [cell], time_limit_s=ONE_S)[0]
    except (workers.Crashed, workers.TimedOut):
        return ""


def check_all(cells: Sequence[Cell]) -> list[str]:
    """Return what is wrong with each final cell, in one line; empty for nothing, and for a bug."""
    found = []
    for cell in cells:
        try:
            check(cell)
            found.append("")
        except ConfigError as error:
            found.append(one_line(error))
        except Exception:
            found.append("")
    return found


def check(cell: Cell) -> None:
    """Make the task and the backbone of a final cell: no storage, and no corpus is read.

    Raises ConfigError for what they refuse.
    """
    import torch

    from arch_bench.ops.kernel import Unsupported
    from tasks.base import Task

    task = made("task", cell.task, cell.task_name)
    is_read = type(task).provenance is not Task.provenance
    if not (is_read and takes("backbone", cell.backbone, "n_source")):  # which `build` asks an example for
        with torch.device("meta"), suppress(Unsupported):  # of this machine
            build(with_kernel(cell, "reference"), "backbone", vocab_size=2)


def _estimate(cell: Cell, history: list[Row]) -> float | None:
    """Seconds of all phases of a cell, by the median of rows of the like."""
    total = 0.0
    for kind in cell.phases:
        likes = [row for row in history if row.kind == kind and row.wall_s is not None and _is_like(cell, row)]
        times = [_seconds(row) for row in likes]
        if not times:
            return None
        total += statistics.median(times) * _n_rows(cell, kind)
    return total


def _seconds(row: Row) -> float:
    """A row's share. Of a training in several attempts `wall_s` knows the last, and `train_s` all but their tests."""
    n_rows = len(row.config.get("eval_scales", [1])) if row.kind == "quality" else 1
    return max(row.wall_s or 0.0, float(row.metrics.get("train_s") or 0.0) / n_rows)


def _n_rows(cell: Cell, kind: Kind) -> int:
    match kind:
        case "quality":
            return len(cell.eval_scales)
        case "speed" | "decode":
            return len(getattr(cell, kind).lengths)
    return 1


def _is_like(cell: Cell, row: Row) -> bool:
    mine = cell.model_dump(include=_DECISIVE)
    return mine == {name: row.config.get(name) for name in mine}


_DECISIVE = {"backbone_name", "task_name", "seq_len", "d_model", "n_layers", "device", "trainer"}
"""What the time of a cell depends on most."""


def duration(seconds: float) -> str:
    """For people: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
