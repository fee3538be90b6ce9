"""Weights & Biases as a mirror of a cell: curves during training, its rows afterwards. Never read back.

Rows are on disk before they are mirrored, so a failure here costs only a warning line.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import ValidationError

from arch_bench import results
from arch_bench.config.schema import Cell, first_complaint
from arch_bench.results import Row
from arch_bench.runtime import environment

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

INIT_TIMEOUT_S = 20.0
LONGEST, LONGEST_TAG = 128, 64
"""Maximum characters of a name, and of a tag: W&B refuses a run that exceeds them."""
_IDENTITY = ("kind", "seq_len", "train_seq_len", "backbone", "task", "seed", "kernel", "precision", "status", "reason")


class Tracker:
    """A tracker that does nothing, for `logger=none`."""

    @property
    def lightning(self) -> WandbLogger | None:
        """The logger for a Lightning Trainer."""
        return None

    def log_rows(self, rows: Sequence[Row]) -> None:
        """Mirror finished rows."""


class WandbTracker(Tracker):
    """A tracker that mirrors one cell to one W&B run."""

    def __init__(self, run: Any) -> None:
        self._run = run
        with _forgiving("axes"):
            run.define_metric("trainer/global_step")
            for curves in ("train/*", "val/*"):
                run.define_metric(curves, step_metric="trainer/global_step", step_sync=True)
            run.define_metric("seq_len", summary="none")
            run.define_metric("bench/*", step_metric="seq_len", summary="none")  # else of the last length

    @property
    def lightning(self) -> WandbLogger:
        from lightning.pytorch.loggers import WandbLogger

        class ForgivingLogger(WandbLogger):
            def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
                with _forgiving("config"):
                    super().log_hyperparams(*args, **kwargs)

            def log_metrics(self, *args: Any, **kwargs: Any) -> None:
                with _forgiving("curves"):
                    super().log_metrics(*args, **kwargs)

        return ForgivingLogger(experiment=self._run)

    def log_rows(self, rows: Sequence[Row]) -> None:
        """Log rows as points of `bench/<kind>/<metric>` against `seq_len`, as one table, and as the run's summary.

        Kernels compared side by side have their names in the middle: `bench/kernels/<kernel>/<metric>`.
        """
        import wandb

        with _forgiving("rows"):
            for seq_len in sorted({row.seq_len for row in rows}):
                self._run.log({"seq_len": seq_len} | _points(row for row in rows if row.seq_len == seq_len))
            self._run.log({"rows": wandb.Table(*_table(rows))})
            self._run.summary.update(_summary(rows))


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the entries of W&B's table of runs: the cell's status, its kernels, and every figure.

    Figures at a length other than the training length include it: `bench/quality/<seq_len>/<metric>`. The last known
    sizes of the model and of its state also appear without a prefix (rows come in order of length).
    """
    known = {name: row.metrics[name] for row in rows for name in ("n_params", "state_bytes") if name in row.metrics}
    words = {
        "status": ", ".join(dict.fromkeys(row.status for row in rows)),
        "reason": "; ".join(dict.fromkeys(row.reason for row in rows if row.reason)),
        "kernel": ", ".join(sorted({row.kernel for row in rows if row.kernel})),
    }
    figures: dict[str, Any] = {}
    for row in rows:
        is_trained = row.seq_len == row.train_seq_len
        figures |= _figures(row, _place(row) if is_trained else f"{_place(row)}/{row.seq_len}")
    return figures | known | words


def _points(rows: Iterator[Row]) -> dict[str, Any]:
    return {name: value for row in rows for name, value in _figures(row, _place(row)).items()}


def _place(row: Row) -> str:
    return f"kernels/{row.kernel}" if row.kind == "kernels" else row.kind


def _figures(row: Row, place: str) -> dict[str, Any]:
    return {f"bench/{place}/{name}": value for name, value in row.metrics.items()}


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Return (columns, data): one line per row, and a column for each metric in any row."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    data = [[getattr(row, name) for name in _IDENTITY] + [row.metrics.get(name) for name in metrics] for row in rows]
    return [*_IDENTITY, *metrics], data


def modules(cell: Cell) -> list[str]:
    """Return the modules that tracking the cell imports: slow enough to preload once for all processes."""
    return ["wandb", "wandb.sdk.launch"] if _is_wanted(cell) else []


def _is_wanted(cell: Cell) -> bool:
    return cell.logger.kind == "wandb" and os.environ.get("WANDB_MODE") != "disabled"


@contextmanager
def track(cell: Cell, *, trains: bool = False) -> Iterator[Tracker]:
    """Yield the cell's tracker; its W&B run is always finished on exit, so that no other cell reuses it.

    trains: True if the cell trains; a training continues the run of its interrupted attempt.
    """
    run = _begin(cell, trains=trains) if _is_wanted(cell) else None
    if run is None:
        yield Tracker()
        return
    exit_code = 1  # W&B then shows the run as failed: interrupted, or ended by a bug
    try:
        yield WandbTracker(run)
        exit_code = 0
    finally:
        with _forgiving("finish"):
            run.finish(exit_code)


def _begin(cell: Cell, *, trains: bool) -> Any:
    with _forgiving("run"):
        return _start(cell, _run_id(cell, trains=trains))
    return None


@contextmanager
def _forgiving(what: str) -> Iterator[None]:
    """Turn a failure of W&B into one line on stderr.

    Every exception counts: W&B's own errors, pydantic's for a setting in the environment, a socket's if its service
    died. No failure of a mirror should end a training.
    """
    try:
        yield
    except ValidationError as error:
        _tell(f"W&B {what}: {first_complaint(error)}")
    except Exception as error:
        _tell(f"W&B {what}: {(str(error).splitlines() or [type(error).__name__])[0]}")


@cache
def _tell(line: str) -> None:
    """Print a line once: a service that died fails at every point of a curve."""
    print(line, file=sys.stderr)


def _start(cell: Cell, run_id: str) -> Any:
    """Start a W&B run, online if possible, else offline; return None if both fail."""
    folder = folder_of(cell)
    folder.mkdir(parents=True, exist_ok=True)
    tags = _tags(cell)
    modes: tuple[Literal["online", "offline"], ...] = ("online", "offline") if _wants("online") else ("offline",)
    with environment.hidden([*environment.W_AND_B, *_SAID]):
        import wandb

        for mode in modes:
            if mode == "online" and not _can_go_online():
                continue
            with _forgiving(mode):
                return wandb.init(
                    project=cell.logger.project or "arch-bench",
                    entity=cell.logger.entity,
                    dir=folder,
                    mode=mode,
                    id=run_id,
                    resume="allow",
                    allow_val_change=True,
                    group=cell.name[:LONGEST],
                    name=f"{cell.backbone_name} {cell.task_name} {cell.seq_len} seed {cell.seed}"[:LONGEST],
                    tags=tags,
                    config=cell.model_dump(),
                    settings=wandb.Settings(
                        silent=True,
                        init_timeout=INIT_TIMEOUT_S,
                        x_transaction_log_flush_interval=1.0,
                        sagemaker_disable=True,  # SageMaker support would rename the run
                    ),
                )
    return None


_SAID = ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_TAGS", "WANDB_MODE", "WANDB_DIR")
"""Variables hidden from W&B and honoured through `init`'s arguments: one that W&B refuses would cost the mirror."""


def folder_of(cell: Cell) -> Path:
    """Return the folder in which W&B creates its own: WANDB_DIR, or the results folder."""
    return Path(os.environ.get("WANDB_DIR") or cell.results_dir).resolve()


def _tags(cell: Cell) -> list[str]:
    """Return the backbone, the task and the tags in WANDB_TAGS, cut to the length that W&B allows."""
    tags = [cell.backbone_name, cell.task_name, *os.environ.get("WANDB_TAGS", "").split(",")]
    return list(dict.fromkeys(tag.strip()[:LONGEST_TAG] for tag in tags if tag.strip()))


def _run_id(cell: Cell, *, trains: bool) -> str:
    """Return the ID of the cell's run: that of the training it resumes, or else a new one.

    It is kept beside the checkpoint, for as long as that. A repeated measurement of a cell is a new run.
    """
    config = cell.model_dump()
    path = results.run_id_path(cell.results_dir, config)
    if trains and path.exists() and (found := path.read_text().strip()):
        return found
    run_id = f"{results.cell_key(config)}-{secrets.token_hex(4)}"
    if trains:
        with results.whole(path) as file:
            file.write(run_id.encode())
    return run_id


def kept_offline(cells: Iterable[Cell], since: float) -> str:
    """Return a line on these cells' runs kept offline since then; empty if there are none."""
    lines = []
    for folder in sorted({folder_of(cell) / "wandb" for cell in cells if _is_wanted(cell)}):
        n = sum(path.stat().st_mtime >= since for path in folder.glob("offline-run-*"))
        if n:
            shown = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
            what = "1 run is" if n == 1 else f"{n:,} runs are"
            lines.append(f"W&B: {what} kept offline; to upload: wandb sync {shlex.quote(shown)}/offline-run-*")
    return "\n".join(lines)


def _wants(mode: str) -> bool:
    return os.environ.get("WANDB_MODE", "online") == mode


def _can_go_online() -> bool:
    """Check that the user is logged in (and did not choose `wandb offline`) and that the server responds."""
    import wandb

    with _forgiving("login"):
        session = wandb.setup(wandb.Settings(silent=True))  # `setup` reads the environment; `Settings` alone does not
        if session.settings.mode not in (None, "online"):
            return False
        return wandb.login(prompt=False) and _is_reachable(session.settings.base_url)
    return False


def _is_reachable(url: str) -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy")):
        return True  # the proxy resolves names for us; `init` finds out
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=3).close()
    except OSError as error:
        print(f"W&B offline: {parts.hostname} cannot be reached ({error})", file=sys.stderr)
        return False
    return True
