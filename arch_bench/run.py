"""One cell: what is on disk already is kept, what is missing is measured, phase by phase, and saved at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from arch_bench import isolate, match, provenance, results, search, tracking
from arch_bench.config import Cell, ConfigError
from arch_bench.results import Kind, Outcome, Row, Status

if TYPE_CHECKING:
    from arch_bench.team import Place, Team

ORDER: tuple[Kind, ...] = ("kernels", "speed", "decode", "quality")
"""Measuring comes first: the quality process then logs every row to the one W&B run it opens."""


_SHARED: frozenset[Kind] = frozenset({"quality", "speed"})
"""What runs on all devices of a cell; the other kinds take one."""
_RETRIED = frozenset({"timeout", "crashed"})
"""What may end better the next time."""


class Shape(NamedTuple):
    """The lengths of a phase that share one process."""

    kind: Kind
    lengths: list[int]
    contender: str = ""
    """Of the phase `kernels`: the implementation."""


def run_cell(cell: Cell, say: Callable[[Row], None], tell: Callable[[str], None] = lambda _: None) -> list[Row]:
    """Measure what a cell still lacks; returns all of its rows. `say` hears of every row as it comes.

    `tell` hears what was chosen for the user.

    Raises ConfigError for a mistake in the configuration; any other exception is a bug, noted with the cell's key.
    """
    cell, n_params = match.matched(settle(cell))
    if n_params is not None:
        tell(f"d_model {cell.d_model:,}: {n_params:,} parameters (match.params={cell.match.params})")
    rows: list[Row] = []
    n_measured, is_mirrored = 0, False
    for shape in shapes(cell, rows):
        known = [] if cell.rerun else _known(cell, shape)
        fresh = [] if known else _measure(cell, shape, rows)
        n_measured += len(fresh)
        is_mirrored |= shape.kind == "quality" and any(row.status not in _RETRIED for row in fresh)
        for row in known or fresh:
            say(row)
        rows += known or fresh
    if n_measured and not is_mirrored:
        with tracking.track(cell) as tracker:
            tracker.log_rows(rows)
    return rows


def settle(cell: Cell) -> Cell:
    """Replace what `auto` means on this machine, so that a row says what it ran on. Raises ConfigError."""
    from arch_bench.measure import pick_device
    from arch_bench.precision import pick_precision
    from arch_bench.train_step import pick_step

    device = pick_device(cell.device)
    pick_step(cell.step, device, cell.trainer.strategy)
    _check_devices(cell, device.type)
    return cell.model_copy(update={"device": device.type, "precision": pick_precision(cell.precision, device)})


def _check_devices(cell: Cell, device: str) -> None:
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
    if device == "cuda" and n > (n_there := torch.cuda.device_count()):
        raise ConfigError(f"trainer.devices={n}: this machine has {n_there}")


def shapes(cell: Cell, rows: list[Row]) -> Iterator[Shape]:
    """What has to run, in order: one process per timed length, one for training and all of its tests.

    rows: those of the shapes so far, filled in by the caller; the search for the longest length goes by them.
    """
    for kind in ORDER:
        if kind not in cell.phases:
            continue
        if kind == "quality":
            yield Shape(kind, [cell.seq_len * scale for scale in cell.eval_scales])
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
    return [] if any(row.status in _RETRIED for row in rows) else rows


def _measure(cell: Cell, shape: Shape, earlier: list[Row]) -> list[Row]:
    """Run one shape in its process; a process that ends badly becomes status rows."""
    before = _known(cell, shape)
    try:
        if not cell.isolate:
            return run_shape(cell, shape, earlier)
        if cell.trainer.strategy != "single" and shape.kind in _SHARED:
            return _measure_together(cell, shape, earlier, before)
        preload = tracking.modules(cell)
        return isolate.call(run_shape, cell, shape, earlier, time_limit_s=cell.time_limit_s, preload=preload)
    except isolate.TimedOut as error:
        return _give_up(cell, shape, before, "timeout", str(error))
    except isolate.Crashed as error:
        return _give_up(cell, shape, before, "crashed", str(error))
    except Exception as error:
        error.add_note(f"in cell {results.cell_key(cell.model_dump())}: {cell.backbone_name} on {cell.task_name}")
        raise


def _measure_together(cell: Cell, shape: Shape, earlier: list[Row], before: list[Row]) -> list[Row]:
    """The same by a process for each device; the first saves. What ends another of them alone is heard of here."""
    from arch_bench import distributed
    from arch_bench.guard import guarded

    rows: list[Row] = []

    def measure() -> list[Outcome]:
        with distributed.places(cell.trainer.devices) as places:
            calls = [(cell, shape, earlier, place) for place in places]
            limits: dict[str, Any] = {"time_limit_s": cell.time_limit_s, "preload": tracking.modules(cell)}
            rows.extend(isolate.call_together(run_shape, calls, **limits))
        return []

    failed = guarded(measure, shape.lengths)
    return _give_up(cell, shape, before, failed[0].status, failed[0].reason) if failed else rows


def _give_up(cell: Cell, shape: Shape, before: list[Row], status: Status, reason: str) -> list[Row]:
    rows = _known(cell, shape)
    if rows != before:
        return rows  # it saved them before it ended
    failed = [Outcome(seq_len=n, kernel=shape.contender, status=status, reason=reason) for n in shape.lengths]
    return _save(cell, shape.kind, failed, cell.device)


def run_shape(cell: Cell, shape: Shape, earlier: list[Row], place: Place | None = None) -> list[Row]:
    """Measure, save, mirror: what happens inside the fresh process. Of several, the first saves and mirrors."""
    from arch_bench.distributed import joined
    from arch_bench.guard import guarded
    from arch_bench.measure import device_name, limit_threads, pick_device
    from arch_bench.precision import set_tf32

    limit_threads()
    set_tf32(cell.precision)
    with joined(place, cell.trainer.strategy, pick_device(cell.device)) as team:
        if team.rank:
            _outcomes(cell, shape, team, None)
            return []
        device = device_name(pick_device(cell.device))
        if shape.kind != "quality":
            outcomes = guarded(lambda: _outcomes(cell, shape, team, None), shape.lengths, shape.contender)
            return _save(cell, shape.kind, outcomes, device)
        with tracking.track(cell) as tracker:
            outcomes = guarded(lambda: _outcomes(cell, shape, team, tracker.lightning), shape.lengths)
            rows = _save(cell, shape.kind, outcomes, device)
            tracker.log_rows(earlier + rows)
        return rows


def _outcomes(cell: Cell, shape: Shape, team: Team, logger: Any) -> list[Outcome]:
    if shape.kind != "quality":
        return [_measure_cost(cell, shape, team)]
    from arch_bench import quality

    return quality.measure(cell, shape.lengths, logger, team)


def _measure_cost(cell: Cell, shape: Shape, team: Team) -> Outcome:
    from arch_bench import decode, kernels, speed

    (length,) = shape.lengths
    match shape.kind:
        case "speed":
            return speed.measure(cell, length, team)
        case "decode":
            return decode.measure(cell, length)
    return kernels.measure(cell, length, shape.contender)


def _save(cell: Cell, kind: Kind, outcomes: list[Outcome], device: str) -> list[Row]:
    rows = [to_row(cell, kind, outcome, device) for outcome in outcomes]
    for row in rows:
        results.save(row, row_path(cell, kind, row.seq_len, row.kernel if kind == "kernels" else ""))
    return rows


def to_row(cell: Cell, kind: Kind, outcome: Outcome, device: str) -> Row:
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
    )
