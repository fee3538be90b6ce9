"""Run one cell phase by phase: reuse the rows on disk, measure the missing ones and save each at once."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from arch_bench import results, tracking
from arch_bench.cell import longest, match
from arch_bench.cell.claim import claimed
from arch_bench.cell.shape import Shape, Usage, explain, is_provisional, run_shape, save
from arch_bench.config.schema import Cell, ConfigError
from arch_bench.results import RETRIED, Kind, Outcome, Row, Status
from arch_bench.runtime import answer, joblog, workers
from arch_bench.runtime.workers import Setting

ORDER: tuple[Kind, ...] = ("kernels", "speed", "decode", "scan", "quality")
"""Order of the phases. Quality is last: its process logs every row to the one W&B run that it opens."""
TIMED = frozenset({"kernels", "speed", "decode"})
"""Phases whose figures would be spoiled by another process on the same device."""
_ON_ALL_DEVICES: frozenset[Kind] = frozenset({"quality", "scan", "speed"})
"""Phases that run on every device of a cell; the others take one."""


class Seat(NamedTuple):
    """Place where one shape of a cell runs."""

    setting: Setting = Setting()
    is_shared: bool = False
    """True if others use the same device: a shape that runs out of memory here may fit when it is alone."""


class Seating(Protocol):
    """Allocator of seats: it gives each shape a seat, or makes it wait for one."""

    def __call__(self, cell: Cell, shape: Shape, *, alone: bool) -> AbstractContextManager[Seat]:
        """Return a seat for the shape, with the whole device if `alone`."""


def anywhere(cell: Cell, shape: Shape, *, alone: bool) -> AbstractContextManager[Seat]:
    """Return a seat on the whole machine: shapes run one after the other."""
    return nullcontext(Seat())


def run_cell(
    cell: Cell, say: Callable[[Row], None], tell: Callable[[str], None] = lambda _: None, seating: Seating = anywhere
) -> list[Row]:
    """Measure the missing rows of a cell and return all of its rows. `say` is called with every row as it arrives.

    `tell` is called with each automatic choice.

    Raises Taken if another sweep runs the cell, ConfigError for a mistake in the configuration, and with
    `isolate=false` also any bug, with the cell's key as a note.
    """
    cell, n_params = final(cell, is_elsewhere=True)
    if n_params is not None:
        tell(f"d_model {cell.d_model:,}: {n_params:,} parameters (match.params={cell.match.params})")
    if is_done(cell):
        return _completed(cell, say, seating)
    cell = settle(cell)  # now for this machine
    with claimed(results.claim_path(cell.results_dir, cell.model_dump())):
        return _completed(cell, say, seating)


def _completed(cell: Cell, say: Callable[[Row], None], seating: Seating) -> list[Row]:
    rows: list[Row] = []
    n_measured, is_mirrored = 0, False
    for shape in shapes(cell, rows):
        known = [] if cell.rerun else explain(cell, shape, _known(cell, shape))
        fresh = [] if known else _seated(cell, shape, rows, seating)
        n_measured += sum(row.status not in RETRIED for row in fresh)
        if known and shape.kind == "quality":  # an earlier process was killed between saving and cleaning up
            results.forget_training(cell.results_dir, cell.model_dump())
        is_mirrored |= shape.kind == "quality" and bool(fresh)  # by its own process, or by the next if cut short
        for row in known or fresh:
            say(row)
        rows += known or fresh
    if n_measured and not is_mirrored:
        with tracking.track(cell) as tracker:
            tracker.log_rows(rows)
    return rows


def final(cell: Cell, *, is_elsewhere: bool = False) -> tuple[Cell, int | None]:
    """Return the cell as its rows will name it, and its parameter count if a budget chose its width.

    is_elsewhere: the cell may run on another machine, which has the device that it names. Raises ConfigError.
    """
    return match.matched(settle(cell, is_elsewhere=is_elsewhere))


def is_done(cell: Cell) -> bool:
    """Check that every row of a final cell is on disk with a status that is not retried.

    Return False for a cell whose shapes are only known as it runs: a search, or the kernels of a mixer.
    """
    if cell.rerun or "kernels" in cell.phases or ("speed" in cell.phases and cell.speed.search_max_len):
        return False
    return all(_known(cell, shape) for shape in shapes(cell, []))


def rows_of(cell: Cell) -> list[Row]:
    """Return the rows of a final cell that are on disk, for its phases."""
    rows = []
    for path in sorted((Path(cell.results_dir) / "rows").glob(f"{results.cell_key(cell.model_dump())}-*.json")):
        with suppress(ValueError):  # torn or foreign: measured again
            rows.append(results.read(path))
    return [row for row in rows if row.kind in cell.phases]


def abandon(cell: Cell, reason: str) -> list[Row]:
    """Save the missing rows of a cell as crashed, since its process has ended, and return all of its rows.

    Raises ConfigError.
    """
    cell, _ = final(cell, is_elsewhere=True)
    rows: list[Row] = []
    for shape in shapes(cell, rows):
        rows += _known(cell, shape) or _give_up(cell, shape, [], "crashed", reason)
    return rows


def settle(cell: Cell, *, is_elsewhere: bool = False) -> Cell:
    """Resolve `auto` for this machine, so that rows record the actual device and precision. Raises ConfigError."""
    import torch

    from arch_bench.runtime.measure import pick_device
    from arch_bench.runtime.precision import pick_precision
    from arch_bench.train.step import pick_step

    is_named = is_elsewhere and cell.device != "auto"
    device = torch.device(cell.device) if is_named else pick_device(cell.device)
    pick_step(cell.step, device, cell.trainer.strategy)
    _check_devices(cell, device.type, is_here=not is_named)
    return cell.model_copy(update={"device": device.type, "precision": pick_precision(cell.precision, device)})


def _check_devices(cell: Cell, device: str, *, is_here: bool) -> None:
    import torch

    strategy, n, batch_size = cell.trainer.strategy, cell.trainer.devices, cell.trainer.batch_size
    if strategy == "single" and n > 1:
        raise ConfigError(f"trainer.devices={n}: trainer.strategy=single has 1; choose ddp or fsdp for more")
    if strategy != "single" and not cell.isolate:
        raise ConfigError(f"isolate=false: trainer.strategy={strategy} needs a process for each device; use single")
    if strategy != "single" and device == "mps":
        raise ConfigError(f"trainer.strategy={strategy}: needs CUDA devices, or the CPU; not mps")
    if batch_size % n:
        raise ConfigError(f"trainer.devices={n}: does not divide trainer.batch_size={batch_size}")
    if is_here and device == "cuda" and n > (n_there := torch.cuda.device_count()):
        raise ConfigError(f"trainer.devices={n}: this machine has {n_there}")


def shapes(cell: Cell, rows: list[Row]) -> Iterator[Shape]:
    """Yield the shapes to run, in order: one process per timed length, one for training and all of its tests.

    rows: the rows of the shapes so far, filled in by the caller; the search for the longest length uses them.
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
            yield from (Shape(kind, [length]) for length in longest.lengths(lambda: _timed(rows)))


def _timed(rows: list[Row]) -> dict[int, Status]:
    return {row.seq_len: row.status for row in rows if row.kind == "speed"}


def _contenders(cell: Cell) -> list[str]:
    from arch_bench.cost import kernels

    if not cell.isolate:
        return kernels.contenders(cell)
    return workers.call(kernels.contenders, cell, time_limit_s=cell.time_limit_s)


def _known(cell: Cell, shape: Shape) -> list[Row]:
    """Read the rows of a shape from disk; return none unless all exist, are whole and need no retry."""
    rows: list[Row] = []
    for path in shape.paths(cell):
        try:
            rows.append(results.read(path))
        except (FileNotFoundError, ValueError):
            return []
    return [] if any(row.status in RETRIED or _is_given_up(row, cell) for row in rows) else rows


def _is_given_up(row: Row, cell: Cell) -> bool:
    """Check if the row was pruned by a search other than the cell's."""
    search = cell.trial.study if cell.trial else ""
    return row.status == "pruned" and row.config["trial"]["study"] != search


def _seated(cell: Cell, shape: Shape, earlier: list[Row], seating: Seating) -> list[Row]:
    """Run one shape where there is room; run it again alone if it failed beside others, who may be the cause."""
    with seating(cell, shape, alone=shape.kind in TIMED) as seat:
        here = shape._replace(is_shared=seat.is_shared)
        rows = _measure(cell, here, earlier, seat.setting)
    if not any(is_provisional(row, here) for row in rows):
        return rows
    with seating(cell, shape, alone=True) as seat:
        return _measure(cell, shape, earlier, seat.setting)


def _measure(cell: Cell, shape: Shape, earlier: list[Row], setting: Setting) -> list[Row]:
    """Run one shape in its own process; turn a process that fails into status rows."""
    before = _known(cell, shape)
    where = f" ({setting.log})" if setting.log else ""
    if setting.log is None:
        setting = setting._replace(faults=log_path(cell, shape))
    try:
        if not cell.isolate:
            return run_shape(cell, shape, earlier)
        return _in_processes(cell, shape, earlier, setting, before)
    except workers.TimedOut as error:
        return _give_up(cell, shape, before, "timeout", f"{error}{where}")
    except workers.Crashed as error:
        where = where or f" ({_noted(cell, shape, error)})"
        return _give_up(cell, shape, before, "crashed", f"{error}{where}")
    except (ConfigError, results.Unsaved):
        raise
    except MemoryError as error:  # raised outside the guarded part of a phase
        return _give_up(cell, shape, before, "oom", answer.first_line(error))
    except Exception as error:
        error.add_note(f"in cell {results.cell_key(cell.model_dump())}: {cell.backbone_name} on {cell.task_name}")
        if not cell.isolate:
            raise
        return _give_up(cell, shape, before, "crashed", logged(cell, shape, error))


def _in_processes(cell: Cell, shape: Shape, earlier: list[Row], setting: Setting, before: list[Row]) -> list[Row]:
    """Run a shape in one process, or in one per device, of which the first saves."""
    options: dict[str, Any] = {
        "time_limit_s": cell.time_limit_s,
        "preload": tracking.modules(cell),
        "setting": setting,
    }
    if cell.trainer.strategy == "single" or shape.kind not in _ON_ALL_DEVICES:
        return workers.call(run_shape, cell, shape, earlier, **options)
    from arch_bench.runtime.outcome import guarded
    from arch_bench.train import distributed

    rows: list[Row] = []

    def measure() -> list[Outcome]:
        with distributed.places(cell.trainer.devices) as places:
            calls = [(cell, shape, earlier, place) for place in places]
            rows.extend(workers.call_together(run_shape, calls, **options))
        return []

    failed = guarded(measure, shape.lengths)  # a failure in any process but the first is reported here
    return _give_up(cell, shape, before, failed[0].status, failed[0].reason) if failed else rows


def _summary(error: Exception) -> str:
    """Return the class and first line of an exception, including one whose class was lost between processes."""
    name, first = type(error).__name__, answer.first_line(error)
    return first if first == name or isinstance(error, answer.Foreign) else f"{name}: {first}"


def log_path(cell: Cell, shape: Shape) -> Path:
    """Return the path of the log that keeps a shape's output or traceback."""
    name = "-".join([results.cell_key(cell.model_dump()), shape.kind, str(shape.lengths[0]), shape.contender])
    return Path(cell.results_dir) / "logs" / f"{name.strip('-')}.log"


def logged(cell: Cell, shape: Shape, error: Exception) -> str:
    """Append a bug's traceback to the shape's log; return a one-line summary with the path."""
    return f"{_summary(error)} ({_noted(cell, shape, error)})"


def _noted(cell: Cell, shape: Shape, error: Exception) -> Path:
    path = log_path(cell, shape)
    joblog.add(path, answer.bounded("".join(traceback.format_exception(error))))
    return path


def _give_up(cell: Cell, shape: Shape, before: list[Row], status: Status, reason: str) -> list[Row]:
    rows = _known(cell, shape)
    if rows != before:
        return rows  # the process saved its rows before it ended
    failed = [Outcome(seq_len=n, kernel=shape.contender, status=status, reason=reason) for n in shape.lengths]
    return save(cell, shape, failed, Usage())
