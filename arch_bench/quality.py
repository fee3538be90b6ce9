"""Phase `quality`: train with Lightning, then read the test split once at each length."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
import warnings
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from tqdm import tqdm

from arch_bench.config import Cell, build
from arch_bench.data import TaskData
from arch_bench.guard import Diverged, guarded
from arch_bench.lit import LitSequence
from arch_bench.measure import pick_device
from arch_bench.ops.kernel import Unsupported
from arch_bench.precision import autocast, pick_precision
from arch_bench.results import Metrics, Outcome
from arch_bench.strategy import ShardedStrategy, TeamStrategy
from arch_bench.team import SOLO, Team
from arch_bench.train_step import TrainStep, pick_step
from tasks.base import Task

SOLVED = 0.99
"""Token accuracy at which a synthetic task counts as solved."""


def measure(cell: Cell, lengths: list[int], logger: Logger | None, team: Team = SOLO) -> list[Outcome]:
    """Train at `seq_len`, steered by validation, and test at each of `lengths`; every rank of a team finds the same.

    Raises Diverged when the loss stops being finite, Unsupported when the backbone cannot be built here, or is an
    encoder on a task that shows it the answers.
    """
    device = pick_device(cell.device)
    task: Task = build(cell, "task")
    torch.manual_seed(cell.seed)
    precision = pick_precision(cell.precision, device)
    with device, autocast(precision, device):
        backbone = build(cell, "backbone", vocab_size=task.vocab_size)
    if task.shows_answers and not backbone.is_causal:
        raise Unsupported(f"task={cell.task_name} shows its answers one position later, and an encoder would read them")
    step = TrainStep(
        backbone,
        cell.optim,
        max_steps=cell.trainer.max_steps,
        kind=pick_step(cell.step, device, team.strategy),
        precision=precision,
        loss_kernel=cell.loss_kernel,
        team=team,
    )
    lit = LitSequence(step, precision=precision, bytes_per_token=task.bytes_per_token, tolerance=task.tolerance)
    data = _data(cell, task, device, team)
    watch = Watch(cell.trainer.stop_at)
    shown: list[Callback] = [] if team.rank else [Bar()]
    pace = {"val_check_interval": data.val_check_interval}
    trainer = make_trainer(cell, device, [watch, *shown], logger, **_ways(team, device) | pace)
    if logger is not None:
        logger.log_hyperparams({"n_params": backbone.n_params(), "kernel": backbone.kernel})
    started = time.perf_counter()
    trainer.fit(lit, datamodule=data)
    if watch.last_validation != trainer.global_step:
        trainer.validate(lit, datamodule=data, verbose=False)
    trained = _training_metrics(trainer, watch, task, cell.trainer.batch_size, time.perf_counter() - started)
    trained |= {"n_params": backbone.n_params(), "step": step.kind, "step_why": step.why}
    trained |= {"loss_kernel": step.loss_kernel, "compile_s": step.settle_s}
    trained |= {"n_devices": team.size, "strategy": team.strategy}
    kernel = team.together(backbone.kernel)

    slow = {"inference_mode": False}  # in which each decoded token costs a cast more
    tester = make_trainer(cell, device, [], None, **_ways(team, device) | slow)

    def test(seq_len: int) -> list[Outcome]:
        with team.telling():
            metrics = _test(tester, lit, data, _longer(task, seq_len), cell.trainer.n_test_batches)
        return [Outcome(seq_len=seq_len, kernel=kernel, metrics=metrics | trained, data=task.provenance())]

    return [outcome for n in lengths for outcome in guarded(lambda n=n: test(n), [n], kernel)]  # type: ignore[misc]


def _data(cell: Cell, task: Task, device: torch.device, team: Team) -> TaskData:
    fixed = cell.trainer
    return TaskData(
        task,
        seed=cell.seed,
        batch_size=fixed.batch_size,
        n_steps=fixed.max_steps,
        val_every=fixed.val_every,
        n_val=fixed.n_val_batches,
        device=device,
        place=team.place,
    )


def _ways(team: Team, device: torch.device) -> dict[str, Any]:
    """Options of a Trainer that is one of a team."""
    if team.strategy == "single":
        return {}
    place = torch.device(device.type, team.rank if device.type == "cuda" else 0)
    devices = [team.rank] if device.type == "cuda" else 1
    no_traces = {"inference_mode": False}  # parameters that were gathered in it could not be trained
    own_parts = {"use_distributed_sampler": False}
    kind = ShardedStrategy if team.is_sharded else TeamStrategy
    return {"strategy": kind(team, place), "devices": devices} | own_parts | no_traces


def make_trainer(
    cell: Cell, device: torch.device, callbacks: list[Callback], logger: Logger | None, **options: Any
) -> L.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning 2.6 on torch 2.13
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches are made on the device, in one call
    warnings.filterwarnings("ignore", ".*GPU available but not used.*")  # device=cpu is the user's choice
    one: dict[str, Any] = {"accelerator": "gpu" if device.type == "cuda" else device.type, "devices": 1}
    return L.Trainer(
        max_steps=cell.trainer.max_steps,
        max_epochs=1,
        log_every_n_steps=1,  # its "step" is a block of steps
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=callbacks,
        logger=logger or False,
        **one | options,
    )


def _training_metrics(trainer: L.Trainer, watch: Watch, task: Task, batch_size: int, train_s: float) -> Metrics:
    steps = watch.steps_to_solve
    return {
        "steps": trainer.global_step,
        "steps_to_99": steps,
        "examples_to_99": None if steps is None else steps * batch_size,
        "val_token_accuracy": watch.token_accuracy,
        "train_s": train_s,
        **{f"baseline_{name}": score for name, score in task.baselines().items()},
    }


def _longer(task: Task, seq_len: int) -> Task:
    try:
        return task.with_length(seq_len)
    except ValueError as error:
        raise Unsupported(str(error)) from error


def _test(tester: L.Trainer, lit: LitSequence, data: TaskData, task: Task, n_batches: int) -> Metrics:
    """The scores of a task, and those of its parts under `<metric>/<part>`."""
    metrics = _scores(tester, lit, data, task, n_batches)
    parts = task.parts()
    for name, part in parts.items():
        found = _scores(tester, lit, data, part, -(-n_batches // len(parts)))
        metrics |= {f"{metric}/{name}": value for metric, value in found.items()}
    return metrics


def _scores(tester: L.Trainer, lit: LitSequence, data: TaskData, task: Task, n_batches: int) -> Metrics:
    lit.tested = task
    try:
        loader = data.test_loader(task, n_batches)
    except ValueError as error:
        raise Unsupported(str(error)) from error
    (found,) = tester.test(lit, dataloaders=loader, verbose=False)
    loss = found["test/loss_nats" if task.tolerance is None else "test/mse"]
    if not math.isfinite(loss):
        raise Diverged(f"test loss {loss} at {task.seq_len} tokens")
    return {name.removeprefix("test/"): value for name, value in found.items() if not math.isnan(value)}  # of nothing


class Watch(Callback):
    """Notices when training has solved the task, and when it has diverged."""

    def __init__(self, stop_at: float | None) -> None:
        self.steps_to_solve: int | None = None
        self.token_accuracy: float | None = None
        self.last_validation = 0
        """The step at which `token_accuracy` was measured."""
        self._stop_at = stop_at

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: LitSequence, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        latest = pl_module.latest
        if latest is not None and not math.isfinite(latest.loss):
            raise Diverged(f"loss {latest.loss} by step {latest.step}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last_validation = trainer.global_step
        accuracy = self.token_accuracy = trainer.callback_metrics["val/token_accuracy"].item()
        if accuracy >= SOLVED and self.steps_to_solve is None:
            self.steps_to_solve = trainer.global_step
        if self._stop_at is not None and accuracy >= self._stop_at:
            trainer.should_stop = True


class Bar(Callback):
    """One line of progress, gone when training ends. Where nobody watches (a log file) it speaks every 20 s."""

    def on_train_start(self, trainer: L.Trainer, pl_module: LitSequence) -> None:  # type: ignore[override]
        tqdm.set_lock(threading.RLock())  # its own lock is a semaphore of the system, which a killed process leaks
        pace = 0.5 if sys.stderr.isatty() else 20.0
        desc = "    training" if pl_module.step_kind == "eager" else "    compiling"
        self._bar = tqdm(total=trainer.max_steps, desc=desc, unit="step", leave=False, mininterval=pace)
        self._shown: dict[str, str] = {}

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: LitSequence, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._bar.set_description("    training", refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)
        if pl_module.latest is not None:
            self._show(loss=pl_module.latest.loss)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(val_accuracy=trainer.callback_metrics["val/token_accuracy"])

    def _show(self, **figures: Any) -> None:
        self._shown |= {name: f"{figure:.3f}" for name, figure in figures.items()}
        self._bar.set_postfix(self._shown, refresh=False)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and hasattr(self, "_bar"):
            self._bar.close()
