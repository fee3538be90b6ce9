"""Run one shape of a cell inside its fresh process: measure it, save its rows at once and mirror them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from arch_bench import results, tracking
from arch_bench.config.schema import Cell
from arch_bench.results import Kind, Metrics, Outcome, Row, provenance
from arch_bench.runtime import environment

if TYPE_CHECKING:
    from arch_bench.train.team import Place, Team

TRAINED: frozenset[Kind] = frozenset({"scan", "quality"})
"""Phases that train and may have a checkpoint."""


class Shape(NamedTuple):
    """Lengths of a phase that share one process."""

    kind: Kind
    lengths: list[int]
    contender: str = ""
    """Implementation to measure, in the phase `kernels` only."""
    is_shared: bool = False
    """True if others use the same device: running out of memory is then no result."""

    def paths(self, cell: Cell) -> list[Path]:
        """Return the paths of its rows."""
        return [row_path(cell, self.kind, seq_len, self.contender) for seq_len in self.lengths]


def row_path(cell: Cell, kind: Kind, seq_len: int, contender: str = "") -> Path:
    """Return the path of the row of one kind at one length, for one contender."""
    return Path(cell.results_dir) / "rows" / results.file_name(cell.model_dump(), kind, seq_len, contender)


class Usage(NamedTuple):
    """Time and memory that a process took; both None for a row without a measurement."""

    wall_s: float | None = None
    process_bytes: int | None = None


def run_shape(cell: Cell, shape: Shape, earlier: list[Row], place: Place | None = None) -> list[Row]:
    """Measure, save and mirror. With several processes, the first saves and mirrors; the others return no rows."""
    with environment.hidden():
        return _run_shape(cell, shape, earlier, place)


def _run_shape(cell: Cell, shape: Shape, earlier: list[Row], place: Place | None) -> list[Row]:
    from arch_bench.ops.tuning import keep_apart
    from arch_bench.runtime import threads
    from arch_bench.runtime.measure import pick_device
    from arch_bench.runtime.precision import set_tf32
    from arch_bench.train.distributed import joined

    started = time.perf_counter()
    if shape.kind not in TRAINED:
        keep_apart()
    is_timed = shape.kind not in TRAINED
    threads.limit(is_timed=is_timed, is_cpu=pick_device(cell.device).type == "cpu")
    set_tf32(cell.precision)
    with joined(place, cell.trainer.strategy, pick_device(cell.device)) as team:
        if team.rank:
            _outcomes(cell, shape, team, None)
            return []
        return _saved(cell, shape, team, earlier=earlier, started=started, machine=threads.load(is_timed=is_timed))


def _saved(cell: Cell, shape: Shape, team: Team, *, earlier: list[Row], started: float, machine: Metrics) -> list[Row]:
    from arch_bench.runtime.outcome import guarded

    if shape.kind != "quality":
        outcomes = guarded(lambda: _outcomes(cell, shape, team, None), shape.lengths, shape.contender)
        rows = save(cell, shape, _on(machine, outcomes), _usage(cell, started))
    else:
        with tracking.track(cell, trains=True) as tracker:
            outcomes = guarded(lambda: _outcomes(cell, shape, team, tracker.lightning), shape.lengths)
            rows = save(cell, shape, _on(machine, outcomes), _usage(cell, started))
            tracker.log_rows(earlier + rows)
    if shape.kind in TRAINED and not any(is_provisional(row, shape) for row in rows):
        results.forget_training(cell.results_dir, cell.model_dump())
    return rows


def _on(machine: Metrics, outcomes: list[Outcome]) -> list[Outcome]:
    """Add the state of the machine to the metrics measured on it."""
    return [replace(each, metrics=each.metrics | machine) if each.status == "ok" else each for each in outcomes]


def _usage(cell: Cell, started: float) -> Usage:
    from arch_bench.runtime.measure import pick_device, process_bytes

    return Usage(time.perf_counter() - started, process_bytes(pick_device(cell.device)))


def _outcomes(cell: Cell, shape: Shape, team: Team, logger: Any) -> list[Outcome]:
    from arch_bench.cost import decode, kernels, speed
    from arch_bench.train import fit

    if shape.kind == "quality":
        return fit.measure(cell, shape.lengths, logger, team)
    (length,) = shape.lengths
    match shape.kind:
        case "scan":
            return [fit.scan(cell, team)]
        case "speed":
            return [speed.measure(cell, length, team)]
        case "decode":
            return [decode.measure(cell, length)]
    return [kernels.measure(cell, length, shape.contender)]


def save(cell: Cell, shape: Shape, outcomes: list[Outcome], usage: Usage) -> list[Row]:
    """Turn outcomes into rows and save all but the provisional ones.

    Raises Unsaved when the disk is full, and any other OSError.
    """
    kind = shape.kind
    rows = [to_row(cell, kind, outcome, usage, len(outcomes)) for outcome in outcomes]
    for i, row in enumerate(rows):
        if not is_provisional(row, shape):
            path = row_path(cell, kind, row.seq_len, row.kernel if kind == "kernels" else "")
            try:
                kept = results.save(row, path)
            except OSError as error:
                if error.errno not in results.FULL:
                    raise
                unsaved = results.Unsaved(error.errno, error.strerror, str(path))
                unsaved.rows = rows
                raise unsaved from error
            if kept is not None:
                rows[i] = replace(
                    row, reason=f"{row.reason}; its row of {kept.created_at[:10]}, {kept.status}, is kept"
                )
    return rows


def explain(cell: Cell, shape: Shape, known: list[Row]) -> list[Row]:
    """Update the rows of a shape on disk with the protocol's current choice: a wider search may end at the same cell.

    Return the updated rows.
    """
    if not cell.chosen:
        return known
    rows = [replace(row, chosen=cell.chosen, config=row.config | {"chosen": cell.chosen}) for row in known]
    for path, row in zip(shape.paths(cell), rows, strict=False):  # no rows are known for an incomplete shape
        if row not in known:
            results.save(row, path)
    return rows


_BY_OTHERS = ("SIGKILL", "CUDA error", "CUDA driver error", "cudaGetDeviceCount")
"""Crash messages that another process may have caused.

Linux kills processes that use too much memory, and MPS ends all of its clients for a fault of one.
"""


def is_provisional(row: Row, shape: Shape) -> bool:
    """Check if a row may succeed alone: a sweep killed before that retry must not treat it as final."""
    return shape.is_shared and (row.status == "oom" or any(word in row.reason for word in _BY_OTHERS))


LONGEST = 400
"""Maximum number of characters in a reason."""


def one_line(reason: str) -> str:
    """Return a reason on one line of printable characters, with the middle cut if it is too long."""
    words = " ".join(reason[: 10 * LONGEST].split())
    shown = "".join(each if each.isprintable() else "?" for each in words)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 60]} ... {shown[-55:]}"


def to_row(cell: Cell, kind: Kind, outcome: Outcome, usage: Usage, n_rows: int = 1) -> Row:
    """Build a row from an outcome: add the cell's identity and provenance, and its share of the process's time."""
    from arch_bench.runtime.measure import device_name, pick_device

    config: dict[str, Any] = cell.model_dump()
    commit = provenance.commit()
    return Row(
        experiment=cell.name,
        backbone=cell.backbone_name,
        task=cell.task_name,
        seq_len=outcome.seq_len,
        train_seq_len=cell.seq_len,
        seed=cell.seed,
        kernel=outcome.kernel,
        precision=cell.precision,
        key=results.cell_key(config),
        kind=kind,
        status=outcome.status,
        reason=one_line(outcome.reason),
        metrics=outcome.metrics,
        curve=outcome.curve,
        commit=commit.name,
        commit_why=commit.why,
        dirty=commit.is_dirty,
        versions=provenance.versions(),
        device=device_name(pick_device(cell.device)) if usage.wall_s is not None else cell.device,
        data=outcome.data,
        config=config,
        chosen=cell.chosen,
        wall_s=None if usage.wall_s is None else usage.wall_s / n_rows,
        process_bytes=usage.process_bytes,
    )
