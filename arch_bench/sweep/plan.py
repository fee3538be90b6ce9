"""Plan a round of a sweep: count finished, failed and remaining cells, and estimate the time."""

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
from arch_bench.runtime import answer, workers

NO_ESTIMATE = " (no estimate: nothing like them has been run here)"


class Plan(NamedTuple):
    """Cells of a round, sorted by their rows on disk."""

    done: list[Cell]
    failed: list[Cell]
    """Cells that crashed or ran out of time before; they are retried."""
    missing: list[Cell]
    seconds: float | None
    """Estimated time of the failed and missing cells in sequence; None if no similar cell has run here."""
    mistakes: list[str]
    """User mistakes that keep missing cells from running, one line each."""

    @property
    def remaining(self) -> list[Cell]:
        return self.failed + self.missing

    def text(self) -> str:
        """Return the plan in one line."""
        n_cells = len(self.done) + len(self.remaining)
        parts = [f"{n_cells:,} cell{'s' if n_cells != 1 else ''}", f"{len(self.done):,} done"]
        if self.failed:
            parts.append(f"{len(self.failed):,} failed before")
        parts.append(f"{len(self.remaining):,} to run")
        if self.remaining and self.seconds is not None:
            parts.append(f"about {duration(self.seconds)} of computing")
        return ", ".join(parts)


def plan(cells: Iterable[Cell], history: list[Row]) -> Plan:
    """Look up the rows of each cell. history: timed rows, which the estimate is based on."""
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
    """Return a cell as its rows will name it, or the user's mistake; empty for a bug, which is reported in its turn."""
    try:
        return final(cell, is_elsewhere=True)[0]
    except ConfigError as error:
        return one_line(error)
    except Exception:
        return ""


def _mistakes(cells: Sequence[Cell]) -> list[str]:
    """Return the mistake of each cell, or an empty text, with one check for cells that are alike.

    Unless `isolate=false`, the checks run in their own process, so that a constructor that aborts or never returns
    does not end the plan. Each cell of such a batch is then checked alone; a bug is reported when the cell runs.
    """
    new = {_like(cell): cell for cell in cells if _like(cell) not in _KNOWN}
    here, apart = ({like: cell for like, cell in new.items() if cell.isolate is is_apart} for is_apart in (False, True))
    _KNOWN.update(zip(here, check_all([*here.values()]), strict=True))
    if apart:
        try:
            answers = workers.call(check_all, [*apart.values()], time_limit_s=ALL_S)
        except _ENDED:
            answers = [_alone(cell) for cell in apart.values()]
        _KNOWN.update(zip(apart, answers, strict=True))
    return [_KNOWN[_like(cell)] for cell in cells]


ALL_S, ONE_S = 120.0, 20.0
"""Time limits in seconds for building all models of a plan, and for one model."""
_KNOWN: dict[str, str] = {}
_ENDED = (workers.Crashed, workers.TimedOut, answer.Foreign)
"""What is raised where a constructor ended its process, or raised what is no Exception, as KeyboardInterrupt."""


def _like(cell: Cell) -> str:
    return json.dumps(cell.model_dump(include={"backbone", "task"}), sort_keys=True)


def _alone(cell: Cell) -> str:
    try:
        return workers.call(check_all, [cell], time_limit_s=ONE_S)[0]
    except _ENDED:
        return ""


def check_all(cells: Sequence[Cell]) -> list[str]:
    """Return the mistake of each final cell in one line; empty for none, and for a bug."""
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
    """Build the task and the backbone of a final cell, without storage and without reading a corpus.

    Raises ConfigError for settings that they refuse.
    """
    import torch

    from arch_bench.ops.kernel import Unsupported
    from tasks.base import Task

    task = made("task", cell.task, cell.task_name)
    is_read = type(task).provenance is not Task.provenance
    if not (is_read and takes("backbone", cell.backbone, "n_source")):  # `build` would draw an example
        with torch.device("meta"), suppress(Unsupported):  # on this machine only
            build(with_kernel(cell, "reference"), "backbone", vocab_size=2)


def _estimate(cell: Cell, history: list[Row]) -> float | None:
    """Estimate the seconds of all phases of a cell from the median of similar rows; None if a phase has none."""
    total = 0.0
    for kind in cell.phases:
        likes = [row for row in history if row.kind == kind and row.wall_s is not None and _is_like(cell, row)]
        times = [_seconds(row) for row in likes]
        if not times:
            return None
        total += statistics.median(times) * _n_rows(cell, kind)
    return total


def _seconds(row: Row) -> float:
    """Return a row's share of the time.

    For a training in several attempts, `wall_s` covers only the last, and `train_s` all of them without their tests.
    """
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
"""Settings that a cell's time depends on most."""


def duration(seconds: float) -> str:
    """Format a time for people: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
