"""Phase `speed`: what one optimiser step costs at each sequence length, in time and in memory."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

from arch_bench.config import Cell, build
from arch_bench.measure import Mark, PeakMemory, Stopwatch, Timing, autocast, pick_device, pick_precision, warm_up
from arch_bench.ops.kernel import Unsupported
from arch_bench.results import Outcome
from arch_bench.train_step import make_optimizer, masked_loss
from tasks.base import IGNORE, Task, stream

N_BATCHES = 4
"""Batches that are rotated, so that no step finds its input in a cache."""


def measure(cell: Cell, seq_len: int) -> Outcome:
    """Time forward, forward + backward and the full step of one training step at `seq_len`.

    The batch holds `speed.tokens_per_step` tokens of the task (at least one example). The three times come from marks
    inside the same steps. Raises Unsupported when the task has no example of that length.
    """
    device = pick_device(cell.device)
    memory = PeakMemory(device, is_fresh=cell.isolate)
    step = TrainingStep(cell, seq_len, device)
    watch = Stopwatch(device)
    started = time.perf_counter()
    n_warmup = warm_up(lambda: step(watch), watch, cell.speed.max_seconds)
    warmup_s = time.perf_counter() - started
    metrics = _timed(step, watch, cell)
    memory.restart()
    step(watch)
    metrics |= {
        "peak_mem_bytes": memory.read(),
        "n_params": step.backbone.n_params(),
        "batch_size": step.batch_size,
        "tokens_per_step": step.batch_size * seq_len,
        "n_scored": step.n_scored,
        "n_warmup": n_warmup,
        "warmup_s": warmup_s,
        "step": step.kind,
    }
    return Outcome(seq_len=seq_len, kernel=step.backbone.kernel, metrics=metrics)


def _timed(step: TrainingStep, watch: Stopwatch, cell: Cell) -> dict[str, Any]:
    marks: list[tuple[Mark, ...]] = []
    watch.synchronise()
    started = time.perf_counter()
    while len(marks) < cell.speed.n_steps:
        marks.append(step(watch))
        if len(marks) >= 3 and time.perf_counter() - started > cell.speed.max_seconds:
            break
    watch.synchronise()
    wall_s = time.perf_counter() - started
    metrics: dict[str, Any] = {}
    for i, name in enumerate(("forward", "forward_backward", "train_step"), start=1):
        metrics |= Timing([watch.between_ms(m[0], m[i]) for m in marks]).summary(name)
    tokens = step.batch_size * step.seq_len * len(marks)
    return metrics | {"tokens_per_s": tokens / wall_s, "n_timed": len(marks)}


class TrainingStep:
    """One full optimiser step on ready-made batches, with marks after each part."""

    def __init__(self, cell: Cell, seq_len: int, device: torch.device) -> None:
        task: Task = build(cell, "task")
        try:
            task = task.with_length(seq_len)
            task.for_split("train").sample(1, stream(cell.seed, "train", 0, device), device)
        except ValueError as error:
            raise Unsupported(str(error)) from error
        torch.manual_seed(cell.seed)
        with device:
            self.backbone = build(cell, "backbone", vocab_size=task.vocab_size, max_len=seq_len)
        self.seq_len = seq_len
        self.batch_size = max(1, cell.speed.tokens_per_step // seq_len)
        self.kind = "compiled" if cell.step == "compiled" else "eager"
        self._forward = torch.compile(self.backbone) if self.kind == "compiled" else self.backbone
        self._device = device
        self._precision = pick_precision(cell.precision, device)
        self._label_smoothing = cell.optim.label_smoothing
        self._clip_norm = cell.optim.clip_norm
        self._optimizer = make_optimizer(self.backbone, cell.optim)
        rngs = [stream(cell.seed, "train", i, device) for i in range(N_BATCHES)]
        batches = [task.for_split("train").sample(self.batch_size, rng, device) for rng in rngs]
        self.n_scored = int((batches[0].targets != IGNORE).sum())
        self._batches = itertools.cycle(batches)

    def __call__(self, watch: Stopwatch) -> tuple[Mark, ...]:
        """Returns four marks: start, after forward, after backward, after the update."""
        batch = next(self._batches)
        start = watch.mark()
        with autocast(self._precision, self._device):
            loss = masked_loss(self._forward, self.backbone.head, batch, self._label_smoothing)
        forward = watch.mark()
        loss.backward()
        backward = watch.mark()
        if self._clip_norm:
            torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return start, forward, backward, watch.mark()
