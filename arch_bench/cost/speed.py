"""Phase `speed`: cost of one optimiser step at each sequence length, in time and memory."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from arch_bench.backbone import TRAIN_PER_FORWARD
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell
from arch_bench.cost import check
from arch_bench.cost.ceiling import ceilings
from arch_bench.cost.energy import joules_per_call
from arch_bench.ops.kernel import Unsupported
from arch_bench.results import Metrics, Outcome
from arch_bench.runtime.measure import (
    Clock,
    Mark,
    PeakMemory,
    Stopwatch,
    Timing,
    forget_workspaces,
    pick_device,
    warm_up,
)
from arch_bench.runtime.precision import autocast, pick_precision
from arch_bench.runtime.seed import narrow
from arch_bench.train.step import TrainStep, list_scored, pick_step
from arch_bench.train.team import SOLO, Team
from tasks.base import IGNORE, Task, stream

N_BATCHES = 4
"""Number of batches in rotation, so that no step finds its input in a cache."""
SLOW_S = 0.1
"""Step time in seconds above which waiting for the device after each step has no visible cost."""


def measure(cell: Cell, seq_len: int, team: Team = SOLO) -> Outcome:
    """Time forward, forward + backward and the full step of one training step at `seq_len`.

    The batch holds `speed.tokens_per_step` tokens of the task (at least one example), or one example with
    `speed.batching=single`. Forward and forward + backward come from marks inside full steps. A model whose kernel is
    off its reference is not timed. All ranks of a team measure: rates cover all devices, and memory is that of the
    device that needs most. Raises Unsupported for a wrong kernel, when the task has no example of that length, and when
    the ranks cannot share the batch.
    """
    device = pick_device(cell.device)
    memory = PeakMemory(device, is_fresh=cell.isolate)
    watch = Stopwatch(device)
    step = TrainingStep(cell, seq_len, watch, device, team)
    step()  # the first step compiles: its seconds are `compile_s`
    watch.synchronise()
    warm_times = warm_up(step, watch, cell.speed.max_seconds, team.clock)
    metrics = _timed(step, watch, cell, is_slow=warm_times[-1] > SLOW_S)
    metrics |= {"n_warmup": len(warm_times), "warmup_s": sum(warm_times)} | step.facts()
    metrics |= _energy(step, watch, device)
    metrics |= _largest(step.memory(memory), team)
    metrics |= _utilisation(metrics, step, ceilings(device, step.precision))
    return Outcome(seq_len=seq_len, kernel=team.together(step.backbone.kernel), metrics=metrics)


def _largest(found: Metrics, team: Team) -> Metrics:
    return {name: value if value is None else int(team.largest(float(value))) for name, value in found.items()}


def _energy(step: TrainingStep, watch: Stopwatch, device: torch.device) -> Metrics:
    if step.team.size > 1:  # each device counts its own
        return {}
    joules = joules_per_call(step, watch, device)
    return {} if joules is None else {"joules_per_token": joules / step.n_tokens}


def _utilisation(metrics: Metrics, step: TrainingStep, ceiling: dict[str, float]) -> Metrics:
    """Compare model FLOPs (of the matrix products that the mathematics requires) with the device's limits.

    `matmul_share` is relative to the rate measured in this process, `mfu` to the data sheet's dense peak, if known. If
    a mixer does not count all of its FLOPs, only the device's limits are returned; if it computes in fp32 whatever the
    precision is (an LSTM), there are no shares.
    """
    if not step.backbone.counts_all_flops:
        return {**ceiling}
    per_token = TRAIN_PER_FORWARD * step.backbone.flops_per_token(step.seq_len, step.n_scored / step.batch_size)
    tflops = per_token * step.n_tokens / float(metrics["train_step_ms"] or 0) / 1e9
    elementwise = TRAIN_PER_FORWARD * step.backbone.elementwise_flops_per_token(step.seq_len)  # of scans: not in tflops
    found: Metrics = {"flops_per_token": per_token, "elementwise_flops_per_token": elementwise, "tflops": tflops}
    found |= ceiling
    each = tflops / step.team.size
    if step.backbone.keeps_precision and step.precision != "fp32":
        return found  # the limits are measured in another precision than the model's products
    found["matmul_share"] = each / ceiling["matmul_tflops"]
    return found | ({"mfu": each / ceiling["peak_tflops"]} if "peak_tflops" in ceiling else {})


def _timed(step: TrainingStep, watch: Stopwatch, cell: Cell, *, is_slow: bool) -> Metrics:
    """Time full steps in sequence, waiting for the device only after the last, unless waiting is free."""
    steps: list[Step] = []
    parts: list[tuple[float, float]] = []
    watch.synchronise()
    clock = step.team.clock
    started = clock()
    while not _is_enough(len(steps), started, cell, clock):
        steps.append(step())
        if is_slow:
            watch.synchronise()
            parts.append(_parts(steps[-1].parts, watch))
    watch.synchronise()
    wall_s = clock() - started
    metrics: Metrics = dict(Timing([watch.between_ms(s.start, s.end) for s in steps]).summary("train_step"))
    if not is_slow:
        is_replay = step.step.kind == "graph"
        parts = _parts_of_replays(step, watch, cell) if is_replay else [_parts(s.parts, watch) for s in steps]
    forward, both = zip(*parts, strict=True)
    metrics |= Timing(forward).summary("forward") | Timing(both).summary("forward_backward")
    return metrics | {"tokens_per_s": step.n_tokens * len(steps) / wall_s, "n_timed": len(steps)}


def _parts_of_replays(step: TrainingStep, watch: Stopwatch, cell: Cell) -> list[tuple[float, float]]:
    """Time as many steps again, reading each before the next one overwrites the marks inside the graph."""
    parts: list[tuple[float, float]] = []
    started = step.team.clock()
    while not _is_enough(len(parts), started, cell, step.team.clock):
        one = step()
        watch.synchronise()
        parts.append(_parts(one.parts, watch))
    return parts


def _parts(parts: Parts, watch: Stopwatch) -> tuple[float, float]:
    """Return the milliseconds of forward, and of forward + backward."""
    return watch.between_ms(parts.start, parts.forward), watch.between_ms(parts.start, parts.backward)


def _is_enough(n_done: int, started: float, cell: Cell, clock: Clock) -> bool:
    return n_done == cell.speed.n_steps or (n_done >= 3 and clock() - started > cell.speed.max_seconds)


class TrainingStep:
    """Full optimiser step on prepared batches, with marks after each part."""

    def __init__(self, cell: Cell, seq_len: int, watch: Stopwatch, device: torch.device, team: Team = SOLO) -> None:
        task: Task = build(cell, "task")
        try:
            task = task.with_length(seq_len).for_split("train")
            task.sample(1, stream(cell.seed, "train", 0, device), device)
        except ValueError as error:
            raise Unsupported(str(error)) from error
        torch.manual_seed(narrow(cell.seed))
        self.precision = precision = pick_precision(cell.precision, device)
        with device, autocast(precision, device):
            self.backbone = build(cell, "backbone", vocab_size=task.vocab_size, max_len=seq_len)
        self.gate = check.check(cell, self.backbone, precision, vocab_size=task.vocab_size, max_len=seq_len)
        self.seq_len = seq_len
        self.batching = cell.speed.batching
        self.batch_size = 1 if self.batching == "single" else max(1, cell.speed.tokens_per_step // seq_len)
        self.team = team
        if self.batch_size % team.size:
            raise Unsupported(f"{team.size} devices cannot share a batch of {self.batch_size} at {seq_len} tokens")
        self._parts: list[Mark] = []
        self.step = TrainStep(
            self.backbone,
            cell.optim,
            max_steps=cell.trainer.max_steps,
            kind=pick_step(cell.step, device, team.strategy),
            precision=precision,
            loss_kernel=cell.loss_kernel,
            at_part=self._mark_part,
            team=team,
        )
        rngs = [stream(cell.seed, "train", i, device) for i in range(N_BATCHES)]
        batches = [list_scored(task.sample(self.batch_size, rng, device), task.max_scored) for rng in rngs]
        self.n_scored = int((batches[0].targets != IGNORE).sum())
        mine = [batch.map(lambda x: team.place.part(x, 0)) for batch in batches]
        self._batches, self._inputs = itertools.cycle(mine), [x for batch in mine for x in batch if x is not None]
        self._watch = watch

    def __call__(self) -> Step:
        start = self._watch.mark()
        self.step(next(self._batches))
        return Step(start, Parts(*self._parts), self._watch.mark())

    @property
    def n_tokens(self) -> int:
        """Tokens of a step over all devices."""
        return self.batch_size * self.seq_len

    def facts(self) -> Metrics:
        """Return the settings that ran: model size, batch, step, devices and gate."""
        return {
            "n_params": self.backbone.n_params(),
            "batching": self.batching,
            "batch_size": self.batch_size,
            "tokens_per_step": self.n_tokens,
            "n_scored": self.n_scored,
            "compile_s": self.step.settle_s,
            "step": self.step.kind,
            "step_why": self.step.why,
            "loss_kernel": self.step.loss_kernel,
            "n_devices": self.team.size,
            "strategy": self.team.strategy,
            **self.gate,
        }

    def memory(self, memory: PeakMemory) -> Metrics:
        """Measure the peak bytes of one step. Call it last: it releases the graph.

        `peak_mem_bytes` counts everything alive at the peak. `activation_bytes` excludes memory that lives between
        steps (parameters, optimiser, batches, a workspace of cuBLAS) but includes gradients. `reserved_bytes` is the
        memory that CUDA's allocator has taken from the device.
        """
        self.step.release()
        self.step.optimizer.zero_grad(set_to_none=True)  # an eager step leaves gradients alive
        if forget_workspaces(self.step.device):
            self._step_without_graph()
        between_steps = memory.restart([*self.step.tensors(), *self._inputs])
        self._step_without_graph()
        peak = memory.read()
        if peak is None or between_steps is None:
            return {"peak_mem_bytes": peak}
        found: Metrics = {"peak_mem_bytes": peak, "activation_bytes": peak - between_steps}
        return found | ({"reserved_bytes": memory.read_reserved()} if self.step.device.type == "cuda" else {})

    def _mark_part(self) -> None:
        self._parts = [*self._parts[-2:], self._watch.mark()]

    def _step_without_graph(self) -> None:
        self.step.once_without_graph(next(self._batches))
        self.step.optimizer.zero_grad(set_to_none=True)


class Parts(NamedTuple):
    """Marks at the start and end of the forward pass and the end of the backward pass, inside the graph if any."""

    start: Mark
    forward: Mark
    backward: Mark


class Step(NamedTuple):
    """Marks at the start and end of a step, with its launch time included."""

    start: Mark
    parts: Parts
    end: Mark
