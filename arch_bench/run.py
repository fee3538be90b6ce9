"""One cell: what is on disk already is kept, what is missing is measured, phase by phase, and saved at once."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from arch_bench import isolate, match, provenance, results, search, tracking
from arch_bench.config import Cell, ConfigError
from arch_bench.isolate import Setting
from arch_bench.results import Kind, Outcome, Row, Status

ORDER: tuple[Kind, ...] = ("kernels", "speed", "decode", "scan", "quality")
"""Measuring comes first: the quality process then logs every row to the one W&B run it opens."""


RETRIED = frozenset({"timeout", "crashed"})
"""What may end better the next time."""
TIMED = frozenset({"kernels", "speed", "decode"})
"""Phases whose figures another process on the same device would spoil."""


class Shape(NamedTuple):
    """The lengths of a phase that share one process."""

    kind: Kind
    lengths: list[int]
    contender: str = ""
    """Of the phase `kernels`: the implementation."""


class Seat(NamedTuple):
    """Where one shape of a cell runs."""

    setting: Setting = Setting()
    is_shared: bool = False
    """Others are on the same device: what runs out of memory here may fit when it is alone."""


class Place(Protocol):
    """Gives shapes their seats, and makes them wait for one."""

    def __call__(self, cell: Cell, shape: Shape, *, alone: bool) -> AbstractContextManager[Seat]:
        """alone: with the whole device."""


def anywhere(cell: Cell, shape: Shape, *, alone: bool) -> AbstractContextManager[Seat]:
    """One after the other, each has the machine to itself."""
    return nullcontext(Seat())


def run_cell(
    cell: Cell, say: Callable[[Row], None], tell: Callable[[str], None] = lambda _: None, place: Place = anywhere
) -> list[Row]:
    """Measure what a cell still lacks; returns all of its rows. `say` hears of every row as it comes.

    `tell` hears what was chosen for the user.

    Raises ConfigError for a mistake in the configuration; with `isolate=false` also a bug, noted with the cell's key.
    """
    cell, n_params = final(cell)
    if n_params is not None:
        tell(f"d_model {cell.d_model:,}: {n_params:,} parameters (match.params={cell.match.params})")
    rows: list[Row] = []
    n_measured, is_mirrored = 0, False
    for shape in shapes(cell, rows):
        known = [] if cell.rerun else _known(cell, shape)
        fresh = [] if known else _placed(cell, shape, rows, place)
        n_measured += len(fresh)
        is_mirrored |= shape.kind == "quality" and any(row.status not in RETRIED for row in fresh)
        for row in known or fresh:
            say(row)
        rows += known or fresh
    if n_measured and not is_mirrored:
        with tracking.track(cell) as tracker:
            tracker.log_rows(rows)
    return rows


def final(cell: Cell) -> tuple[Cell, int | None]:
    """The cell as its rows will name it, and its parameters if a budget chose its width. Raises ConfigError."""
    return match.matched(settle(cell))


def is_done(cell: Cell) -> bool:
    """Whether every row of a final cell is on disk, with a status that is not tried again.

    Never of a cell whose shapes only come out as it runs: a search, or the kernels of a mixer.
    """
    if cell.rerun or "kernels" in cell.phases or ("speed" in cell.phases and cell.speed.search_max_len):
        return False
    return all(_known(cell, shape) for shape in shapes(cell, []))


def rows_of(cell: Cell) -> list[Row]:
    """Every row of a final cell that is on disk, of the phases that it asks for."""
    rows = []
    for path in sorted((Path(cell.results_dir) / "rows").glob(f"{results.cell_key(cell.model_dump())}-*.json")):
        with suppress(ValueError):  # torn or foreign: measured again
            rows.append(results.read(path))
    return [row for row in rows if row.kind in cell.phases]


def settle(cell: Cell) -> Cell:
    """Replace what `auto` means on this machine, so that a row says what it ran on. Raises ConfigError."""
    from arch_bench.measure import pick_device
    from arch_bench.precision import pick_precision
    from arch_bench.train_step import pick_step

    device = pick_device(cell.device)
    pick_step(cell.step, device)
    return cell.model_copy(update={"device": device.type, "precision": pick_precision(cell.precision, device)})


def shapes(cell: Cell, rows: list[Row]) -> Iterator[Shape]:
    """What has to run, in order: one process per timed length, one for training and all of its tests.

    rows: those of the shapes so far, filled in by the caller; the search for the longest length goes by them.
    """
    for kind in ORDER:
        if kind not in cell.phases:
            continue
        if kind == "quality":
            yield Shape(kind, [cell.seq_len * scale for scale in cell.eval_scales])
        elif kind == "scan":
            yield Shape(kind, [cell.seq_len])
        elif kind == "kernels":
            names = _contenders(cell)
            yield from (Shape(kind, [length], name) for length in cell.speed.lengths for name in names)
        else:
            yield from (Shape(kind, [length]) for length in getattr(cell, kind).lengths)
        if kind == "speed" and cell.speed.search_max_len:
            yield from (Shape(kind, [length]) for length in search.lengths(lambda: _timed(rows)))


def _timed(rows: list[Row]) -> dict[int, Status]:
    return {row.seq_len: row.status for row in rows if row.kind == "speed"}


def _contenders(cell: Cell) -> list[str]:
    from arch_bench import kernels

    if not cell.isolate:
        return kernels.contenders(cell)
    return isolate.call(kernels.contenders, cell, time_limit_s=cell.time_limit_s)


def row_path(cell: Cell, kind: Kind, seq_len: int, contender: str = "") -> Path:
    """Where the row of one kind at one length, and of one contender, is."""
    return Path(cell.results_dir) / "rows" / results.file_name(cell.model_dump(), kind, seq_len, contender)


def _known(cell: Cell, shape: Shape) -> list[Row]:
    """The rows of a shape from disk; none unless all are there, whole, and not worth another try."""
    rows: list[Row] = []
    for seq_len in shape.lengths:
        try:
            rows.append(results.read(row_path(cell, shape.kind, seq_len, shape.contender)))
        except (FileNotFoundError, ValueError):
            return []
    return [] if any(row.status in RETRIED for row in rows) else rows


def _placed(cell: Cell, shape: Shape, earlier: list[Row], place: Place) -> list[Row]:
    """Run one shape where there is room; what runs out of memory beside others is run again alone."""
    with place(cell, shape, alone=shape.kind in TIMED) as seat:
        rows = _measure(cell, shape, earlier, seat.setting)
    if not seat.is_shared or all(row.status != "oom" for row in rows):
        return rows
    with place(cell, shape, alone=True) as seat:
        return _measure(cell, shape, earlier, seat.setting)


def _measure(cell: Cell, shape: Shape, earlier: list[Row], setting: Setting) -> list[Row]:
    """Run one shape in its process; a process that ends badly becomes status rows."""
    before = _known(cell, shape)
    try:
        if not cell.isolate:
            return run_shape(cell, shape, earlier)
        preload, limit = tracking.modules(cell), cell.time_limit_s
        return isolate.call(run_shape, cell, shape, earlier, time_limit_s=limit, preload=preload, setting=setting)
    except isolate.TimedOut as error:
        return _give_up(cell, shape, before, "timeout", str(error))
    except isolate.Crashed as error:
        where = f" ({setting.log})" if setting.log else ""
        return _give_up(cell, shape, before, "crashed", f"{error}{where}")
    except ConfigError:
        raise
    except Exception as error:
        error.add_note(f"in cell {results.cell_key(cell.model_dump())}: {cell.backbone_name} on {cell.task_name}")
        if not cell.isolate:
            raise
        return _give_up(cell, shape, before, "crashed", f"{_summary(error)} ({_logged(cell, shape, error)})")


def _summary(error: Exception) -> str:
    """The class and the first line, of an exception that lost its class on the way too."""
    first = (str(error).strip().splitlines() or [""])[0]
    return first if type(error) is RuntimeError and "Error: " in first else f"{type(error).__name__}: {first}"


def log_path(cell: Cell, shape: Shape) -> Path:
    """Where what a shape printed, or its traceback, is kept."""
    name = "-".join([results.cell_key(cell.model_dump()), shape.kind, str(shape.lengths[0]), shape.contender])
    return Path(cell.results_dir) / "logs" / f"{name.strip('-')}.log"


def _logged(cell: Cell, shape: Shape, error: Exception) -> Path:
    path = log_path(cell, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(traceback.format_exception(error)))
    return path


def _give_up(cell: Cell, shape: Shape, before: list[Row], status: Status, reason: str) -> list[Row]:
    rows = _known(cell, shape)
    if rows != before:
        return rows  # it saved them before it ended
    failed = [Outcome(seq_len=n, kernel=shape.contender, status=status, reason=reason) for n in shape.lengths]
    return _save(cell, shape.kind, failed, cell.device, wall_s=None)


def run_shape(cell: Cell, shape: Shape, earlier: list[Row]) -> list[Row]:
    """Measure, save, mirror: what happens inside the fresh process."""
    from arch_bench import checkpoint
    from arch_bench.guard import guarded
    from arch_bench.measure import device_name, limit_threads, pick_device
    from arch_bench.precision import set_tf32

    started = time.perf_counter()
    limit_threads()
    set_tf32(cell.precision)
    device = device_name(pick_device(cell.device))
    if shape.kind != "quality":
        outcomes = guarded(lambda: [_measure_one(cell, shape)], shape.lengths, shape.contender)
        rows = _save(cell, shape.kind, outcomes, device, time.perf_counter() - started)
        if shape.kind == "scan":
            checkpoint.path_of(cell).unlink(missing_ok=True)
        return rows
    from arch_bench import quality

    with tracking.track(cell) as tracker:
        outcomes = guarded(lambda: quality.measure(cell, shape.lengths, tracker.lightning), shape.lengths)
        rows = _save(cell, shape.kind, outcomes, device, time.perf_counter() - started)
        checkpoint.path_of(cell).unlink(missing_ok=True)
        tracker.log_rows(earlier + rows)
    return rows


def _measure_one(cell: Cell, shape: Shape) -> Outcome:
    from arch_bench import decode, kernels, quality, speed

    (length,) = shape.lengths
    match shape.kind:
        case "speed":
            return speed.measure(cell, length)
        case "decode":
            return decode.measure(cell, length)
        case "scan":
            return quality.scan(cell)
    return kernels.measure(cell, length, shape.contender)


def _save(cell: Cell, kind: Kind, outcomes: list[Outcome], device: str, wall_s: float | None) -> list[Row]:
    share = None if wall_s is None else wall_s / len(outcomes)
    rows = [to_row(cell, kind, outcome, device, share) for outcome in outcomes]
    for row in rows:
        results.save(row, row_path(cell, kind, row.seq_len, row.kernel if kind == "kernels" else ""))
    return rows


def to_row(cell: Cell, kind: Kind, outcome: Outcome, device: str, wall_s: float | None) -> Row:
    """An outcome with the identity and the provenance of its cell."""
    config: dict[str, Any] = cell.model_dump()
    commit, is_dirty = provenance.commit()
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
        reason=outcome.reason,
        metrics=outcome.metrics,
        commit=commit,
        dirty=is_dirty,
        versions=provenance.versions(),
        device=device,
        data=outcome.data,
        config=config,
        chosen=cell.chosen,
        wall_s=wall_s,
    )
