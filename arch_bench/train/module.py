"""The one LightningModule that every task and every backbone share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.runtime.precision import autocast
from arch_bench.train import generation
from arch_bench.train.step import Scored, TrainStep, predicted_number, scored_hidden
from tasks.base import IGNORE, Task

MAX_LOGITS = 2**27
"""Maximum logits that evaluation holds at once: 512 MiB in fp32."""


class Curve(NamedTuple):
    """A point of the training curve: a block's mean loss, with the rate and gradient norm of its last step."""

    step: int
    loss: float
    lr: float
    grad_norm: float


def bytes_per_token_of(task: Task) -> dict[str, float] | None:
    """Return bytes per token in `val` and in `test`, which may differ; None if the task has none."""
    found = {"val": task.for_split("validation").bytes_per_token, "test": task.for_split("test").bytes_per_token}
    return {split: mean for split, mean in found.items() if mean is not None} or None


class LitSequence(L.LightningModule):
    """LightningModule that trains a backbone on any task; validation and test report the same micro-averaged metrics.

    Lightning's "batch" is a block of several batches: `training_step` takes one optimiser step for each and never waits
    for the device. Steps are counted as Lightning counts them, so `global_step`, `max_steps`, checkpoints and logger
    axes mean optimiser steps. The figures of a block are logged while the next one is running.

    bytes_per_token: of `val` and `test`, to convert the loss to bits per byte.
    """

    def __init__(
        self,
        step: TrainStep,
        *,
        precision: str,
        trained_len: int,
        bytes_per_token: Mapping[str, float] | None,
        tolerance: float | None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone = step.backbone
        self.latest: Curve | None = None
        """The newest point that has arrived from the device."""
        self.tested: Task | None = None
        """The task being tested; it decides which answers are also generated and which positions are reported
        separately."""
        self._step = step
        self._precision = precision
        self._trained_len = trained_len
        self._bytes_per_token = bytes_per_token
        self._tolerance = tolerance
        self._awaited: _Awaited | None = None
        self._rng: dict[str, Any] | None = None

    @property
    def step_kind(self) -> str:
        """The way steps run: eager, compiled or graph."""
        return self._step.kind

    @property
    def settle_s(self) -> float:
        """Seconds spent compiling, autotuning and capturing."""
        return self._step.settle_s

    def training_step(self, block: Scored, index: int) -> None:
        n_steps = len(block.inputs)
        for i in range(n_steps):
            self._step(block.map(itemgetter(i)))
        self._count(n_steps)
        awaited, self._awaited = self._awaited, _Awaited(self._step.figures(n_steps), self.global_step)
        if awaited is not None:
            self._log_curve(awaited)

    def _count(self, n_steps: int) -> None:
        """Add to Lightning's step count the steps it did not see."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for tracker in (progress.total, progress.current):
            tracker.ready += n_steps
            tracker.completed += n_steps

    def _log_curve(self, awaited: _Awaited) -> None:
        self.latest = awaited.read()
        if self.logger is not None:  # not self.log, which would wait for the device at every block
            metrics = {f"train/{name}": value for name, value in self.latest._asdict().items() if name != "step"}
            self.logger.log_metrics(metrics, step=self.latest.step)

    def on_train_start(self) -> None:
        self._step.resume(self.global_step)
        if self._rng is not None:  # only now: loaders and checks before the first step have drawn from the generator
            _set_random_state(self._rng, self._step.device)
            self._rng = None

    def catch_up(self) -> None:
        """Log the newest block too; this waits for the device."""
        if self._awaited is not None:
            self._log_curve(self._awaited)
            self._awaited = None

    def on_train_end(self) -> None:
        self.catch_up()
        self._step.release()  # Lightning moves everything to the CPU at the end of a fit

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_states"] = self._step.team.gather(_random_state(self._step.device))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._rng = checkpoint["random_states"][self._step.team.rank]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._step.optimizer

    def validation_step(self, block: Scored, index: int) -> None:
        self._evaluate("val", block.map(_join))

    def on_validation_end(self) -> None:
        if self.logger is not None:  # not by self.log, which would count blocks on the logger's axis
            found = self.trainer.callback_metrics
            metrics = {name: value.item() for name, value in found.items() if name.startswith("val/")}
            self.logger.log_metrics(metrics, step=self.global_step)

    def test_step(self, block: Scored, index: int) -> None:
        batch = block.map(_join)
        self._evaluate("test", batch)
        if self.tested is not None and self.tested.n_prompt is not None and self.backbone.is_causal:
            with autocast(self._precision, self._step.device), self._step.team.whole(self.backbone):
                self._score("test/generated_", batch, generation.is_right(self.backbone, batch, self.tested.n_prompt))

    def _evaluate(self, split: str, batch: Scored) -> None:
        loss, is_right = self._losses(batch)
        n_scored = int((batch.targets != IGNORE).sum())
        mean_loss = loss.sum() / max(1, n_scored)
        self._log(f"{split}/{'loss_nats' if self._tolerance is None else 'mse'}", mean_loss, n_scored)
        if self._bytes_per_token is not None:
            self._log(f"{split}/bits_per_byte", mean_loss / math.log(2) / self._bytes_per_token[split], n_scored)
        self._score(f"{split}/", batch, is_right)
        if split == "test" and self.tested is not None:
            self._log_beyond(is_right, batch)
            for name, mask in self.tested.slices(batch.inputs).items():
                self._log_slice(name, loss, mask if batch.positions is None else mask.gather(1, batch.positions), batch)

    def _log_beyond(self, is_right: Tensor, batch: Scored) -> None:
        """Log the accuracy at positions beyond the training length, for sequences longer than that: a causal model has
        been trained on all earlier positions."""
        seq_len = batch.inputs.shape[1]
        if seq_len > self._trained_len:
            positions = torch.arange(seq_len, device=self.device) if batch.positions is None else batch.positions
            is_beyond = (positions >= self._trained_len) & (batch.targets != IGNORE)
            n_beyond = int(is_beyond.sum())
            self._log("test/token_accuracy_beyond", (is_right & is_beyond).sum() / max(1, n_beyond), n_beyond)

    def _log_slice(self, name: str, loss: Tensor, mask: Tensor, batch: Scored) -> None:
        mask = mask & (batch.targets != IGNORE)
        n_scored = int(mask.sum())
        mean_loss = (loss * mask).sum() / max(1, n_scored)
        self._log(f"test/loss_nats/{name}", mean_loss, n_scored)
        if self._bytes_per_token is not None:
            per_byte = mean_loss / math.log(2) / self._bytes_per_token["test"]
            n_bytes = self.tested.bytes_of(batch.targets[mask]) if self.tested is not None else None
            if n_bytes is not None:  # the slice's own bytes: its tokens may be longer than others
                n_scored = int(n_bytes.sum())
                per_byte = (loss * mask).sum() / math.log(2) / max(1, n_scored)
            self._log(f"test/bits_per_byte/{name}", per_byte, n_scored)

    def _score(self, prefix: str, batch: Scored, is_right: Tensor) -> None:
        is_scored = batch.targets != IGNORE
        n_scored = int(is_scored.sum())
        self._log(f"{prefix}token_accuracy", (is_right & is_scored).sum() / max(1, n_scored), n_scored)
        self._log(f"{prefix}sequence_accuracy", (is_right | ~is_scored).all(-1).float().mean(), len(is_right))

    def _log(self, name: str, value: Tensor, weight: int) -> None:
        """Log a mean over `weight` items, averaged over all batches and ranks. Loggers receive no curve over steps."""
        logger = None if name.startswith("test/") else False
        shared = self._step.team.size > 1
        self.log(name, value, on_step=False, on_epoch=True, batch_size=weight, logger=logger, sync_dist=shared)

    def _losses(self, batch: Scored) -> tuple[Tensor, Tensor]:
        """Return the loss (0 where there is no target) and whether the best guess is right: (batch, n_scored) each."""
        with autocast(self._precision, self._step.device):
            hidden = scored_hidden(self.backbone, batch).flatten(0, 1)
            if self._tolerance is not None:
                error = (predicted_number(self.backbone, hidden).view_as(batch.targets) - batch.targets).abs()
                return error.square() * (batch.targets != IGNORE), error <= self._tolerance
            n_at_once = max(1, MAX_LOGITS // self.backbone.head.out_features)
            losses, guesses = [], []
            for h, targets in zip(hidden.split(n_at_once), batch.targets.flatten().split(n_at_once), strict=True):
                logits = self.backbone.head(h).float()
                losses.append(F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none"))
                guesses.append(logits.argmax(-1))
        return torch.cat(losses).view_as(batch.targets), torch.cat(guesses).view_as(batch.targets) == batch.targets


def _join(x: Tensor) -> Tensor:
    """Flatten (steps, batch, ...) to (steps * batch, ...)."""
    return x.flatten(0, 1)


class _Awaited:
    """A point of the curve in transfer from the device. Reading it waits for its own step and for nothing later."""

    def __init__(self, figures: Tensor, step: int) -> None:
        is_cuda = figures.is_cuda
        self._step = step
        self._figures = torch.empty_like(figures, device="cpu", pin_memory=is_cuda).copy_(figures, non_blocking=True)
        self._arrival = torch.cuda.current_stream().record_event() if is_cuda else None

    def read(self) -> Curve:
        if self._arrival is not None:
            self._arrival.synchronize()
        return Curve(self._step, *self._figures.tolist())


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
