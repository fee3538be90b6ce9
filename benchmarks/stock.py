"""The loops that people write, with the model of the harness: what its training step is compared with."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from arch_bench.backbone import Backbone
from arch_bench.config.schema import Cell
from tasks.base import Task, stream

N_WORKERS = 4


class StockModule(L.LightningModule):
    """Automatic optimisation, logits at every position, PyTorch's AdamW, a schedule by Lightning, the loss logged."""

    def __init__(self, backbone: Backbone, cell: Cell) -> None:
        super().__init__()
        self.backbone = backbone
        self._optim = cell.optim
        self._max_steps = cell.trainer.max_steps

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        inputs, targets = batch
        logits = self.backbone.head(self.backbone(inputs))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self._optim.lr, weight_decay=self._optim.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def lightning_steps_per_s(cell: Cell, task: Task, backbone: Backbone, folder: str) -> float:
    """A Trainer as its documentation shows it: bf16, clipping, a progress bar, a CSV log, batches from workers."""
    pace = Pace(first=cell.trainer.max_steps // 4)
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        precision="bf16-mixed",
        max_steps=cell.trainer.max_steps,
        gradient_clip_val=cell.optim.clip_norm,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[pace],
        default_root_dir=folder,
    )
    trainer.fit(StockModule(backbone, cell), _loader(cell, task))
    return pace.steps_per_s


def _loader(cell: Cell, task: Task) -> DataLoader[Any]:
    """Ready-made examples: not even the time to make them counts."""
    cpu = torch.device("cpu")
    n_examples = cell.trainer.batch_size * min(cell.trainer.max_steps, 64)
    examples = TensorDataset(*task.sample(n_examples, stream(cell.seed, "train", 0, cpu), cpu))
    return DataLoader(
        examples,
        cell.trainer.batch_size,
        shuffle=True,
        num_workers=N_WORKERS,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )


def plain_steps_per_s(cell: Cell, task: Task, backbone: Backbone) -> float:
    """The loop without a framework: bf16, logits at every position, batches ready on the device, nothing logged."""
    device = backbone.embedding.weight.device
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=cell.optim.lr)
    batches = [task.sample(cell.trainer.batch_size, stream(cell.seed, "train", i, device), device) for i in range(4)]
    marks = []
    for i in range(cell.trainer.max_steps + 1):
        if i in {cell.trainer.max_steps // 4, cell.trainer.max_steps}:
            _synchronise()
            marks.append(time.perf_counter())
        inputs, targets = batches[i % 4]
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(backbone.head(backbone(inputs)).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), cell.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (cell.trainer.max_steps - cell.trainer.max_steps // 4) / (marks[1] - marks[0])


class Pace(Callback):
    """Steps per second from about step `first` to the last, waiting for the device at these two points only."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._start: tuple[int, float] | None = None
        self.steps_per_s = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._start is None and trainer.global_step >= self._first:
            _synchronise()
            self._start = trainer.global_step, time.perf_counter()
        elif self._start is not None and trainer.global_step >= trainer.max_steps:
            _synchronise()
            self.steps_per_s = (trainer.global_step - self._start[0]) / (time.perf_counter() - self._start[1])


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
