"""The one LightningModule and the one DataModule that every task and every backbone share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from arch_bench.precision import autocast
from arch_bench.train_step import Scored, TrainStep, list_scored, scored_hidden
from tasks.base import IGNORE, Split, Task, stream

MAX_BLOCK = {"cuda": (64, 2**19), "cpu": (10, 2**16)}
"""Batches and tokens in a block, at most: on a GPU enough to hide the framework, elsewhere a point of the curve."""
MAX_LOGITS = 2**27
"""Logits that evaluation holds at once: 512 MiB in fp32."""


class Curve(NamedTuple):
    """A point of the training curve: the mean loss of a block, and where its last step stands."""

    step: int
    loss: float
    lr: float
    grad_norm: float


class LitSequence(L.LightningModule):
    """Trains a backbone on any task; validation and test report the same micro-averaged metrics.

    Lightning's "batch" is a block of several: `training_step` takes them one optimiser step each and never waits for
    the device. Steps are counted as Lightning counts them, so `global_step`, `max_steps`, checkpoints and the axes of
    a logger mean optimiser steps. What a block measured is logged when the next one is under way.
    """

    def __init__(self, step: TrainStep, *, precision: str, bytes_per_token: float | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone = step.backbone
        self.latest: Curve | None = None
        """The newest point that has arrived from the device."""
        self._step = step
        self._precision = precision
        self._bytes_per_token = bytes_per_token
        self._awaited: _Awaited | None = None
        self._rng: dict[str, Any] | None = None

    @property
    def step_kind(self) -> str:
        """How steps run: eager, compiled or graph."""
        return self._step.kind

    def training_step(self, block: Scored, index: int) -> None:
        n_steps = len(block.inputs)
        for i in range(n_steps):
            self._step(block.map(itemgetter(i)))
        self._count(n_steps)
        awaited, self._awaited = self._awaited, _Awaited(self._step.figures(n_steps), self.global_step)
        if awaited is not None:
            self._log_curve(awaited)

    def _count(self, n_steps: int) -> None:
        """Tell Lightning of steps that it did not see."""
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
        if self._rng is not None:  # only now: loaders and checks before the first step have drawn from it
            _set_random_state(self._rng, self.device)
            self._rng = None

    def on_train_end(self) -> None:
        if self._awaited is not None:
            self._log_curve(self._awaited)
            self._awaited = None
        self._step.release()  # Lightning moves everything to the CPU when a fit is over

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = _random_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._rng = checkpoint["random_state"]

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
        self._evaluate("test", block.map(_join))

    def _evaluate(self, split: str, batch: Scored) -> None:
        loss, is_right = self._losses(batch)
        is_scored = batch.targets != IGNORE
        n_scored = int(is_scored.sum())
        log = partial(
            self.log, on_step=False, on_epoch=True, batch_size=n_scored, logger=None if split == "test" else False
        )
        mean_loss = loss.sum() / n_scored
        log(f"{split}/loss_nats", mean_loss)
        log(f"{split}/token_accuracy", (is_right & is_scored).sum() / n_scored)
        if self._bytes_per_token is not None:
            log(f"{split}/bits_per_byte", mean_loss / math.log(2) / self._bytes_per_token)
        is_whole = (is_right | ~is_scored).all(-1)
        log(f"{split}/sequence_accuracy", is_whole.float().mean(), batch_size=len(batch.inputs))

    def _losses(self, batch: Scored) -> tuple[Tensor, Tensor]:
        """Loss in nats, 0 where there is no target, and whether the best guess is right: (batch, n_scored) each."""
        with autocast(self._precision, self.device):
            hidden = scored_hidden(self.backbone, batch).flatten(0, 1)
            n_at_once = max(1, MAX_LOGITS // self.backbone.head.out_features)
            losses, guesses = [], []
            for h, targets in zip(hidden.split(n_at_once), batch.targets.flatten().split(n_at_once), strict=True):
                logits = self.backbone.head(h).float()
                losses.append(F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none"))
                guesses.append(logits.argmax(-1))
        return torch.cat(losses).view_as(batch.targets), torch.cat(guesses).view_as(batch.targets) == batch.targets


def _join(x: Tensor) -> Tensor:
    """(steps, batch, ...) -> (steps * batch, ...)."""
    return x.flatten(0, 1)


class _Awaited:
    """A point of the curve on its way from the device. Reading it waits for its own step and for nothing later."""

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


def cut(n_steps: int, every: int, batch_tokens: int, device: torch.device) -> list[range]:
    """Cut training into blocks of about equal length that end at every multiple of `every` steps, and at the last.

    As long as MAX_BLOCK allows: what blocks depend on is the same for every backbone.
    """
    n_batches, n_tokens = MAX_BLOCK.get(device.type, MAX_BLOCK["cpu"])
    longest = max(1, min(n_batches, n_tokens // batch_tokens))
    blocks = []
    for start in range(0, n_steps, every):
        steps = range(start, min(start + every, n_steps))
        n_blocks = -(-len(steps) // longest)
        edges = [start + len(steps) * i // n_blocks for i in range(n_blocks + 1)]
        blocks += [range(*edge) for edge in pairwise(edges)]
    return blocks


class Blocks(Dataset[Scored]):
    """Batches of a split, made when asked for: the same for every backbone, and after any resume.

    Block i is (steps, batch, ...), drawn in one call from the stream of its first step.
    """

    def __init__(
        self, task: Task, split: Split, blocks: list[range], *, seed: int, batch_size: int, device: torch.device
    ) -> None:
        self._task = task.for_split(split)
        self._split = split
        self._blocks = blocks
        self._seed = seed
        self._batch_size = batch_size
        self._device = device

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, i: int) -> Scored:
        steps = self._blocks[i]
        rng = stream(self._seed, self._split, steps.start, self._device)
        batch = self._task.sample(len(steps) * self._batch_size, rng, self._device)
        scored = list_scored(batch, self._task.max_scored)
        return scored.map(lambda x: x.unflatten(0, (len(steps), self._batch_size)))


class _Remaining(Sampler[int]):
    """The blocks that training has not taken yet; as long as all of them, for Lightning counts those it took."""

    def __init__(self, blocks: list[range], data: L.LightningDataModule) -> None:
        self._blocks = blocks
        self._data = data

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[int]:
        n_done = self._data.trainer.global_step if self._data.trainer else 0
        return (i for i, steps in enumerate(self._blocks) if steps.start >= n_done)


class _Loader(DataLoader[Scored]):
    """Blocks are the batches. Resumes by itself: where it stands is where training stands."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class TaskData(L.LightningDataModule):
    """Train, validation and test streams of one task; every loader hands out blocks of batches.

    Blocks are made on the device when they are asked for; where the data do not fit there, a process of their own
    makes them in pinned memory, ahead of the steps.
    """

    def __init__(
        self, task: Task, *, seed: int, batch_size: int, n_steps: int, val_every: int, n_val: int, device: torch.device
    ) -> None:
        super().__init__()
        self._task = task
        self._seed = seed
        self._batch_size = batch_size
        self._n_val = n_val
        self._device = device
        self._val_every = min(val_every, n_steps)
        self.blocks = cut(n_steps, self._val_every, batch_size * task.seq_len, device)

    @property
    def val_check_interval(self) -> int:
        """Blocks between validations, which is what Lightning wants to know."""
        return sum(steps.stop <= self._val_every for steps in self.blocks)

    def train_dataloader(self) -> DataLoader[Scored]:
        return self._loader(self._task, "train", self.blocks, self._batch_size, _Remaining(self.blocks, self))

    def val_dataloader(self) -> DataLoader[Scored]:
        return self._loader(self._task, "validation", _singles(self._n_val), self._batch_size)

    def test_loader(self, seq_len: int, n_batches: int) -> DataLoader[Scored]:
        """The test split at a length, with as many tokens as `n_batches` hold at the training length.

        Raises ValueError when the task has no example of that length.
        """
        task = self._task.with_length(seq_len)
        n_examples = max(1, n_batches * self._batch_size * self._task.seq_len // seq_len)
        batch_size = max(1, min(n_examples, self._batch_size * self._task.seq_len // seq_len))
        return self._loader(task, "test", _singles(-(-n_examples // batch_size)), batch_size)

    def _loader(
        self, task: Task, split: Split, blocks: list[range], batch_size: int, order: Sampler[int] | None = None
    ) -> DataLoader[Scored]:
        source = task.for_split(split).source(self._device)
        data = Blocks(task, split, blocks, seed=self._seed, batch_size=batch_size, device=source)
        data[0]  # a split that is too short refuses here, not in the middle of a loop
        own = torch.Generator()  # an iterator draws a seed when it begins: not from the model's numbers
        if source == self._device:
            return _Loader(data, batch_size=None, sampler=order, generator=own)
        return _Loader(
            data,
            batch_size=None,
            sampler=order,
            generator=own,
            num_workers=1,
            prefetch_factor=4,
            pin_memory=True,
            multiprocessing_context="forkserver",
        )


def _singles(n_batches: int) -> list[range]:
    """Blocks of one batch each."""
    return [range(i, i + 1) for i in range(n_batches)]
