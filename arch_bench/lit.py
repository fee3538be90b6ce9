"""The one LightningModule and the one DataModule that every task and every backbone share."""

from __future__ import annotations

import math
from functools import partial

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from arch_bench.backbone import Backbone
from arch_bench.config import Optim
from arch_bench.train_step import make_optimizer, masked_loss, rate_factor, scored_logits
from tasks.base import IGNORE, Batch, Split, Task, stream

LOG_EVERY = 10
"""Steps between points of a training curve."""


class LitSequence(L.LightningModule):
    """Trains a backbone on any task; validation and test report the same micro-averaged metrics."""

    def __init__(
        self, backbone: Backbone, optim: Optim, *, max_steps: int, bytes_per_token: float | None, compiled: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._optim = optim
        self._max_steps = max_steps
        self._bytes_per_token = bytes_per_token
        self._forward = torch.compile(backbone) if compiled else backbone

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss = masked_loss(self._forward, self.backbone.head, batch, self._optim.label_smoothing)
        if (index + 1) % LOG_EVERY == 0:  # the steps at which Lightning hands the values on
            self.log("train/loss", loss)
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, index: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: Batch) -> None:
        logits, targets = scored_logits(self.backbone, self.backbone.head, batch)
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        is_right = logits.argmax(-1) == targets
        log = partial(self.log, on_step=False, on_epoch=True, batch_size=len(targets))
        log(f"{split}/loss_nats", loss)
        log(f"{split}/token_accuracy", is_right.float().mean())
        if self._bytes_per_token is not None:
            log(f"{split}/bits_per_byte", loss / math.log(2) / self._bytes_per_token)
        self.log(f"{split}/sequence_accuracy", _share_of_right_sequences(batch, is_right), batch_size=len(batch.inputs))

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: object, **__: object) -> None:
        # Lightning refuses to clip for a fused optimiser under autocast; bf16 has no scaler that this could upset.
        if self._optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), self._optim.clip_norm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = make_optimizer(self.backbone, self._optim)
        factor = partial(rate_factor, max_steps=self._max_steps, optim=self._optim)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _share_of_right_sequences(batch: Batch, is_right: Tensor) -> Tensor:
    """Share of examples with every scored position right. is_right: (n_scored,) in row-major order."""
    rows = (batch.targets != IGNORE).nonzero()[:, 0]
    n_wrong = torch.zeros(len(batch.targets), device=is_right.device).index_add_(0, rows, (~is_right).float())
    return (n_wrong == 0).float().mean()


class Steps(Dataset[Batch]):
    """Batch number `step` of a split, made when asked for: the same for every backbone, and after any resume."""

    def __init__(self, task: Task, split: Split, *, seed: int, batch_size: int, n_steps: int, device: torch.device):
        self._task = task.for_split(split)
        self._split = split
        self._seed = seed
        self._batch_size = batch_size
        self._n_steps = n_steps
        self._device = device

    def __len__(self) -> int:
        return self._n_steps

    def __getitem__(self, step: int) -> Batch:
        rng = stream(self._seed, self._split, step, self._device)
        return self._task.sample(self._batch_size, rng, self._device)


class TaskData(L.LightningDataModule):
    """Train, validation and test streams of one task; every loader hands out whole batches, made on the device."""

    def __init__(self, task: Task, *, seed: int, batch_size: int, n_train: int, n_val: int, device: torch.device):
        super().__init__()
        self._task = task
        self._seed = seed
        self._batch_size = batch_size
        self._n_train = n_train
        self._n_val = n_val
        self._device = device

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._task, "train", self._n_train, self._batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._task, "validation", self._n_val, self._batch_size)

    def test_loader(self, seq_len: int, n_batches: int) -> DataLoader[Batch]:
        """The test split at a length, with as many tokens as `n_batches` hold at the training length.

        Raises ValueError when the task has no example of that length.
        """
        task = self._task.with_length(seq_len)
        n_examples = max(1, n_batches * self._batch_size * self._task.seq_len // seq_len)
        batch_size = max(1, min(n_examples, self._batch_size * self._task.seq_len // seq_len))
        return self._loader(task, "test", -(-n_examples // batch_size), batch_size)

    def _loader(self, task: Task, split: Split, n_steps: int, batch_size: int) -> DataLoader[Batch]:
        steps = Steps(task, split, seed=self._seed, batch_size=batch_size, n_steps=n_steps, device=self._device)
        steps[0]  # a split that is too short refuses here, not in the middle of a loop
        return DataLoader(steps, batch_size=None)
