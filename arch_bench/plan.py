"""What a round of a sweep has to do: how many cells there are, are done, failed and remain, and how long that takes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from arch_bench.complaint import one_line
from arch_bench.config import Cell, ConfigError, with_kernel
from arch_bench.objects import build, made, takes
from arch_bench.results import RETRIED, Kind, Row
from arch_bench.run import final, is_done, rows_of


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
    times: list[float | None] = []
    for cell in cells:
        try:
            named, _ = final(cell, is_elsewhere=True)
            is_there = is_done(named)
            if not is_there:
                check(named)
        except ConfigError as error:
            found.mistakes.append(one_line(error))
            found.missing.append(cell)
            continue
        except Exception:  # a bug, told when it is its turn
            found.missing.append(cell)
            continue
        if is_there:
            found.done.append(cell)
            continue
        has_failed = any(row.status in RETRIED for row in rows_of(named))
        (found.failed if has_failed else found.missing).append(cell)
        times.append(_estimate(named, history))
    known = [seconds for seconds in times if seconds is not None]
    return found._replace(seconds=statistics.mean(known) * len(times) if known else None)


def check(cell: Cell) -> None:
    """Make the task and the backbone of a final cell, once of all that are alike: no storage, and no corpus is read.

    Raises ConfigError for what they refuse.
    """
    import torch

    from arch_bench.ops.kernel import Unsupported
    from tasks.base import Task

    like = json.dumps(cell.model_dump(include={"backbone", "task"}), sort_keys=True)
    if like in _CHECKED:
        return
    task = made("task", cell.task, cell.task_name)
    is_read = type(task).provenance is not Task.provenance
    if not (is_read and takes("backbone", cell.backbone, "n_source")):  # which `build` asks an example for
        with torch.device("meta"), suppress(Unsupported):  # of this machine
            build(with_kernel(cell, "reference"), "backbone", vocab_size=2)
    _CHECKED.add(like)


_CHECKED: set[str] = set()


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
