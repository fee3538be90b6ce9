"""Phase `quality`: train with Lightning, then evaluate the test split once at each length."""

from __future__ import annotations

import math
import sys
import threading
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from tqdm import tqdm

from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell
from arch_bench.ops.kernel import Unsupported
from arch_bench.results import Curve, Metrics, Outcome
from arch_bench.runtime.measure import pick_device
from arch_bench.runtime.outcome import Diverged, guarded
from arch_bench.runtime.precision import autocast, pick_precision
from arch_bench.runtime.seed import narrow
from arch_bench.train.checkpoint import Checkpoint
from arch_bench.train.data import TaskData
from arch_bench.train.module import LitSequence, bytes_per_token_of
from arch_bench.train.pruning import Pruning
from arch_bench.train.step import TrainStep, pick_step
from arch_bench.train.team import SOLO, Team
from arch_bench.train.trainer import make_trainer
from tasks.base import Task

SOLVED = 0.99
"""Token accuracy at which a synthetic task counts as solved."""


class _Trained(NamedTuple):
    """A model after its training."""

    lit: LitSequence
    task: Task
    data: TaskData
    saver: Checkpoint
    kernel: str
    metrics: Metrics
    curve: Curve


def measure(cell: Cell, lengths: list[int], logger: Logger | None, team: Team = SOLO) -> list[Outcome]:
    """Train at `seq_len`, guided by validation, and test at each of `lengths`; every rank of a team returns the same.

    Raises Diverged when the loss stops being finite, and Unsupported when the backbone cannot be built here or is an
    encoder on a task whose inputs contain the answers.
    """
    lit, task, data, saver, kernel, trained, curve = _train(cell, logger, team)
    tester = make_trainer(
        team,
        pick_device(cell.device),
        [saver],
        None,
        max_steps=cell.trainer.max_steps,
        inference_mode=False,  # inference mode would add a cast to each decoded token
    )

    def test(seq_len: int) -> list[Outcome]:
        longer = _longer(task, seq_len)
        with team.telling():
            metrics = _test(tester, lit, data, longer, cell.trainer.n_test_batches)
        return [
            Outcome(
                seq_len=seq_len,
                kernel=kernel,
                metrics=metrics | trained | _guessed(longer),
                data=task.provenance(),
                curve=curve if seq_len == cell.seq_len else {},
            )
        ]

    return [outcome for n in lengths for outcome in guarded(lambda n=n: test(n), [n], kernel)]  # type: ignore[misc]


def scan(cell: Cell, team: Team = SOLO) -> Outcome:
    """Train and validate, without reading the test split. Raises as `measure`."""
    _, task, _, _, kernel, trained, curve = _train(cell, None, team)
    found = trained | _guessed(task)
    return Outcome(seq_len=cell.seq_len, kernel=kernel, metrics=found, data=task.provenance(), curve=curve)


def _train(cell: Cell, logger: Logger | None, team: Team) -> _Trained:
    device = pick_device(cell.device)
    task: Task = build(cell, "task")
    step = _step(cell, task, device, team)
    precision = pick_precision(cell.precision, device)
    lit = LitSequence(
        step,
        precision=precision,
        trained_len=task.seq_len,
        bytes_per_token=bytes_per_token_of(task),
        tolerance=task.tolerance,
    )
    data = _data(cell, task, device, team)
    watch, saver = Watch(cell.trainer.stop_at), Checkpoint(cell, device, task.provenance())
    shown: list[Callback] = [] if team.rank else [Bar()]
    if cell.trial is not None:
        shown.append(Pruning(cell, cell.trial, team))
    trainer = make_trainer(
        team,
        device,
        [watch, saver, *shown],
        logger,
        max_steps=cell.trainer.max_steps,
        files=saver.files,
        val_check_interval=data.val_check_interval,
    )
    if logger is not None:
        logger.log_hyperparams({"n_params": step.backbone.n_params(), "kernel": step.backbone.kernel})
    trainer.fit(lit, datamodule=data, ckpt_path=saver.find(team))
    if watch.last_validation != trainer.global_step:
        trainer.validate(lit, datamodule=data, verbose=False)
    if watch.loss is None:
        raise Diverged(f"validation loss at step {watch.last_validation} is not finite")
    metrics = _training_metrics(cell, trainer.global_step, watch, task) | {"train_s": saver.train_s}
    metrics |= {"n_params": step.backbone.n_params(), "step": step.kind, "step_why": step.why}
    metrics |= {"loss_kernel": step.loss_kernel, "compile_s": saver.compile_s(lit), "n_attempts": saver.n_attempts}
    metrics |= {"n_devices": team.size, "strategy": team.strategy}
    return _Trained(lit, task, data, saver, team.together(step.backbone.kernel), metrics, watch.curve(loss_name(task)))


def _step(cell: Cell, task: Task, device: torch.device, team: Team) -> TrainStep:
    torch.manual_seed(narrow(cell.seed))
    precision = pick_precision(cell.precision, device)
    with device, autocast(precision, device):
        backbone = build(cell, "backbone", vocab_size=task.vocab_size)
    if task.shows_answers and not backbone.is_causal:
        raise Unsupported(f"task={cell.task_name} shows its answers one position later, and an encoder would read them")
    return TrainStep(
        backbone,
        cell.optim,
        max_steps=cell.trainer.max_steps,
        kind=pick_step(cell.step, device, team.strategy),
        precision=precision,
        loss_kernel=cell.loss_kernel,
        team=team,
    )


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


def _training_metrics(cell: Cell, steps: int, watch: Watch, task: Task) -> Metrics:
    """Return the budget a training used, and its validation scores."""
    batch_size, solved = cell.trainer.batch_size, watch.steps_to_solve
    return {
        "steps": steps,
        "examples": steps * batch_size,
        "tokens": steps * batch_size * cell.seq_len,
        "steps_to_99": solved,
        "examples_to_99": None if solved is None else solved * batch_size,
        "val_token_accuracy": watch.token_accuracy,
        f"val_{loss_name(task)}": watch.loss,
    }


def _guessed(task: Task) -> Metrics:
    """Return the scores of guessing at the task's length."""
    return {f"baseline_{name}": score for name, score in task.baselines().items()}


def loss_name(task: Task) -> str:
    """Return the name of a task's loss."""
    return "loss_nats" if task.tolerance is None else "mse"


def _longer(task: Task, seq_len: int) -> Task:
    try:
        return task.with_length(seq_len)
    except ValueError as error:
        raise Unsupported(str(error)) from error


def _test(tester: L.Trainer, lit: LitSequence, data: TaskData, task: Task, n_batches: int) -> Metrics:
    """Return the scores of a task, and those of its parts under `<metric>/<part>`."""
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
    loss = found[f"test/{loss_name(task)}"]
    if not math.isfinite(loss):
        raise Diverged(f"test loss {loss} at {task.seq_len} tokens")
    return {name.removeprefix("test/"): value for name, value in found.items() if not math.isnan(value)}  # none scored


class Watch(Callback):
    """Callback that detects when training has solved the task, and raises Diverged when the loss is not finite."""

    def __init__(self, stop_at: float | None) -> None:
        self.steps_to_solve: int | None = None
        self.token_accuracy: float | None = None
        self.loss: float | None = None
        """The latest validation loss; None also if it was not finite."""
        self.last_validation = 0
        """The step of the latest validation."""
        self.found: list[tuple[int, float | None, float]] = []
        """(step, loss, token accuracy) of every validation."""
        self._stop_at = stop_at

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: LitSequence, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        latest = pl_module.latest
        if latest is not None and not math.isfinite(latest.loss):
            raise Diverged(f"loss {latest.loss} by step {latest.step}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last_validation = trainer.global_step
        found = trainer.callback_metrics
        accuracy = self.token_accuracy = found["val/token_accuracy"].item()
        loss = found["val/loss_nats" if "val/loss_nats" in found else "val/mse"].item()
        self.loss = loss if math.isfinite(loss) else None
        if not self.found or self.found[-1][0] < trainer.global_step:  # else the last validation was repeated
            self.found.append((trainer.global_step, self.loss, accuracy))
        if accuracy >= SOLVED and self.steps_to_solve is None:
            self.steps_to_solve = trainer.global_step
        if self._stop_at is not None and accuracy >= self._stop_at:
            trainer.should_stop = True

    def curve(self, loss_name: str) -> Curve:
        """Return the validation learning curve in columns, rounded to six digits, more than a figure shows."""
        return {
            "step": [step for step, _, _ in self.found],
            f"val_{loss_name}": [None if loss is None else float(f"{loss:.6g}") for _, loss, _ in self.found],
            "val_token_accuracy": [float(f"{accuracy:.6g}") for _, _, accuracy in self.found],
        }

    def state_dict(self) -> dict[str, Any]:
        names = ("steps_to_solve", "token_accuracy", "loss", "last_validation", "found")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


class Bar(Callback):
    """One line of progress, removed when training ends. If stderr is not a terminal, it updates every 20 s."""

    def on_train_start(self, trainer: L.Trainer, pl_module: LitSequence) -> None:  # type: ignore[override]
        tqdm.set_lock(threading.RLock())  # tqdm's default lock is a system semaphore, which a killed process leaks
        pace = 0.5 if sys.stderr.isatty() else 20.0
        desc = "    training" if pl_module.step_kind == "eager" else "    compiling"
        done, total = trainer.global_step, trainer.max_steps
        self._bar = tqdm(desc=desc, initial=done, total=total, unit="step", leave=False, mininterval=pace)
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

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # Lightning does not call teardown after an exception
