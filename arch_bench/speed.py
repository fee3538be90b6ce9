"""Phase `speed`: what one optimiser step costs at each sequence length, in time and in memory."""

from __future__ import annotations

import itertools
import time
from typing import Any, NamedTuple

import torch

from arch_bench.config import Cell, build
from arch_bench.measure import Mark, PeakMemory, Stopwatch, Timing, pick_device, warm_up
from arch_bench.ops.kernel import Unsupported
from arch_bench.precision import pick_precision
from arch_bench.results import Outcome
from arch_bench.train_step import TrainStep, list_scored, pick_step
from tasks.base import IGNORE, Task, stream

N_BATCHES = 4
"""Batches that are rotated, so that no step finds its input in a cache."""


def measure(cell: Cell, seq_len: int) -> Outcome:
    """Time forward, forward + backward and the full step of one training step at `seq_len`.

    The batch holds `speed.tokens_per_step` tokens of the task (at least one example). Forward and forward + backward
    come from marks inside full steps. Raises Unsupported when the task has no example of that length.
    """
    device = pick_device(cell.device)
    memory = PeakMemory(device, is_fresh=cell.isolate)
    watch = Stopwatch(device)
    step = TrainingStep(cell, seq_len, watch, device)
    started = time.perf_counter()
    n_warmup = warm_up(step, watch, cell.speed.max_seconds)
    warmup_s = time.perf_counter() - started
    metrics = _timed(step, watch, cell)
    metrics |= {
        "peak_mem_bytes": step.peak_memory(memory),
        "n_params": step.backbone.n_params(),
        "batch_size": step.batch_size,
        "tokens_per_step": step.batch_size * seq_len,
        "n_scored": step.n_scored,
        "n_warmup": n_warmup,
        "warmup_s": warmup_s,
        "compile_s": step.step.settle_s,
        "step": step.step.kind,
        "step_why": step.step.why,
        "loss_kernel": step.step.loss_kernel,
    }
    return Outcome(seq_len=seq_len, kernel=step.backbone.kernel, metrics=metrics)


def _timed(step: TrainingStep, watch: Stopwatch, cell: Cell) -> dict[str, Any]:
    """Full steps, one after the other: the device is not waited for before the last."""
    steps: list[Step] = []
    watch.synchronise()
    started = time.perf_counter()
    while not _is_enough(len(steps), started, cell):
        steps.append(step())
    watch.synchronise()
    wall_s = time.perf_counter() - started
    metrics: dict[str, Any] = Timing([watch.between_ms(s.start, s.end) for s in steps]).summary("train_step")
    tokens = step.batch_size * step.seq_len * len(steps)
    parts = _parts_of_replays(step, watch, cell) if step.step.kind == "graph" else [_parts(s, watch) for s in steps]
    forward, both = zip(*parts, strict=True)
    metrics |= Timing(forward).summary("forward") | Timing(both).summary("forward_backward")
    return metrics | {"tokens_per_s": tokens / wall_s, "n_timed": len(steps)}


def _parts_of_replays(step: TrainingStep, watch: Stopwatch, cell: Cell) -> list[tuple[float, float]]:
    """As many steps again, each read before the next sets the marks inside the graph anew."""
    parts: list[tuple[float, float]] = []
    started = time.perf_counter()
    while not _is_enough(len(parts), started, cell):
        one = step()
        watch.synchronise()
        parts.append(_parts(one, watch))
    return parts


def _parts(step: Step, watch: Stopwatch) -> tuple[float, float]:
    """Milliseconds of forward, and of forward and backward together."""
    return watch.between_ms(step.start, step.forward), watch.between_ms(step.start, step.backward)


def _is_enough(n_done: int, started: float, cell: Cell) -> bool:
    return n_done == cell.speed.n_steps or (n_done >= 3 and time.perf_counter() - started > cell.speed.max_seconds)


class TrainingStep:
    """One full optimiser step on ready-made batches, with marks after each part."""

    def __init__(self, cell: Cell, seq_len: int, watch: Stopwatch, device: torch.device) -> None:
        task: Task = build(cell, "task")
        try:
            task = task.with_length(seq_len).for_split("train")
            task.sample(1, stream(cell.seed, "train", 0, device), device)
        except ValueError as error:
            raise Unsupported(str(error)) from error
        torch.manual_seed(cell.seed)
        with device:
            self.backbone = build(cell, "backbone", vocab_size=task.vocab_size, max_len=seq_len)
        self.seq_len = seq_len
        self.batch_size = max(1, cell.speed.tokens_per_step // seq_len)
        self._parts: list[Mark] = []
        self.step = TrainStep(
            self.backbone,
            cell.optim,
            max_steps=cell.trainer.max_steps,
            kind=pick_step(cell.step, device),
            precision=pick_precision(cell.precision, device),
            loss_kernel=cell.loss_kernel,
            after_part=self._mark_part,
        )
        rngs = [stream(cell.seed, "train", i, device) for i in range(N_BATCHES)]
        batches = [list_scored(task.sample(self.batch_size, rng, device), task.max_scored) for rng in rngs]
        self.n_scored = int((batches[0].targets != IGNORE).sum())
        self._batches = itertools.cycle(batches)
        self._watch = watch

    def __call__(self) -> Step:
        start = self._watch.mark()
        self.step(next(self._batches))
        forward, backward = self._parts
        return Step(start, forward, backward, self._watch.mark())

    def peak_memory(self, memory: PeakMemory) -> int | None:
        """Bytes at the peak of one step, all that lives then included. To be asked last: it gives up the graph."""
        self.step.release()
        memory.restart()
        self.step.once_without_graph(next(self._batches))
        return memory.read()

    def _mark_part(self) -> None:
        self._parts = [*self._parts[-1:], self._watch.mark()]


class Step(NamedTuple):
    """When a step began, when its parts ended, and when it ended."""

    start: Mark
    forward: Mark
    backward: Mark
    end: Mark
