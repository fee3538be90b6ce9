"""Cells of one kind in one process: compiled once, each with memory of its own, recorded side by side."""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo.config as dynamo
import torch._inductor.config as inductor
from torch import Tensor
from train_step import MQAR, SMOKE, cell_for, make_step, model_and_task

from arch_bench.runtime.cuda_graph import capture
from arch_bench.runtime.measure import Stopwatch, device_name, pick_device
from arch_bench.train.step import Scored, list_scored
from tasks.base import stream

N_BATCHES = 4
"""Batches on the device that the steps take in turn."""
MAX_CHUNK = 8
"""Replays that are launched at once, at most, on each stream; two such chunks are under way at any time."""
CHUNK_S = 0.01
"""A chunk is about as long, by itself: short in a window of seconds, long beside a launch."""


@dataclass
class Lane:
    """What is launched again and again, in order."""

    launch: Callable[[], object]
    stream: torch.cuda.Stream | None
    """None on a CPU, where a launch returns when it is done."""
    n_steps: int
    """Optimiser steps in a launch, over all cells in it."""

    def chunk(self, n: int) -> torch.cuda.Event | None:
        """Launch n times, and return what tells when they are done."""
        if self.stream is None:
            for _ in range(n):
                self.launch()
            return None
        with torch.cuda.stream(self.stream):
            for _ in range(n):
                self.launch()
            done = torch.cuda.Event(blocking=True)  # a waiting process leaves its core to others
            done.record()
        return done


class Cells:
    """Cells of one kind: the same model, data and compiled code, and tensors of its own for each.

    What a graph has recorded stays with the memory it was recorded on. So the one TrainStep is moved to new memory
    and recorded again, which takes a fraction of a second where compiling takes 5 to 30.
    """

    def __init__(self, overrides: list[str]) -> None:
        is_cuda = pick_device("auto").type == "cuda"
        how = ["step=compiled", "trainer.max_steps=100000"] if is_cuda else ["step=eager"]
        cell = cell_for([*overrides, *how])
        backbone, task = model_and_task(cell)
        self._step = step = make_step(cell, backbone)
        self._device, self._n = step.device, cell.trainer.batch_size
        batch = task.sample(N_BATCHES * self._n, stream(0, "train", 0, step.device), step.device)
        self._data = list_scored(batch, task.max_scored).map(lambda x: x.unflatten(0, (N_BATCHES, self._n)))
        step(self._batch())  # compiles, and makes the optimiser's state
        self._tensors = step.tensors()
        self._start = [tensor.detach().clone() for tensor in self._tensors]
        self._memories: list[list[Tensor]] = []
        self._graphs: dict[int, Lane] = {}
        self._lanes: list[Lane] = []
        self._streams = [torch.cuda.Stream() for _ in range(16)] if is_cuda else []
        self.about = {"kernel": backbone.kernel, "step": step.kind, "step_why": step.why, "settle_s": step.settle_s}
        self.about |= {"is_cuda": is_cuda, "device": device_name(step.device)}

    def pack(self, way: str, n: int) -> None:
        """Get n cells ready to run, from where they start: as `one_graph`, or else a graph and a stream each."""
        while len(self._memories) < n:
            self._memories.append([tensor.clone() for tensor in self._start])
        self._lanes = []  # lets the memory of an earlier graph go
        if self._device.type != "cuda":
            self._lanes = [Lane(lambda k=k: self._once(k), None, 1) for k in range(n)]  # type: ignore[misc]
        elif way == "one_graph":
            self._lanes = [Lane(capture(lambda: self._branches(n)), self._streams[0], n)]
        else:
            self._lanes = [self._graph(k) for k in range(n)]
        for memory in self._memories[:n]:
            for mine, start in zip(memory, self._start, strict=True):
                mine.copy_(start)
        Stopwatch(self._device).synchronise()

    def _graph(self, k: int) -> Lane:
        if k not in self._graphs:
            self._graphs[k] = Lane(capture(lambda: self._once(k), self._streams[k]), self._streams[k], 1)
        return self._graphs[k]

    def run(self, start: float, end: float) -> dict[str, Any]:
        """Train until `end`: steps per second of each lane between `start` and `end`, by the system's clock."""
        rates = pace(self._lanes, self._chunk(), start, end)
        n = sum(lane.n_steps for lane in self._lanes)
        losses = [self._mean_loss(memory) for memory in self._memories[:n]]
        if not all(math.isfinite(loss) for loss in losses):
            raise RuntimeError(f"the loss is not finite: {losses}")
        return {"rates": rates, "losses": losses}

    def _batch(self) -> Scored:
        """The batch of this step, chosen on the device by the step's own count."""
        place = (self._step.count % N_BATCHES).view(1)
        return self._data.map(lambda x: x.index_select(0, place).squeeze(0))

    def _once(self, k: int) -> None:
        """One step of cell k."""
        for tensor, memory in zip(self._tensors, self._memories[k], strict=True):
            tensor.data = memory
        self._step.once_without_graph(self._batch())

    def _branches(self, n: int) -> None:
        """One step of each of n cells, on n streams that begin and end together."""
        origin = torch.cuda.current_stream()
        for k, side in enumerate(self._streams[:n]):
            side.wait_stream(origin)
            with torch.cuda.stream(side):
                self._once(k)
        for side in self._streams[:n]:
            origin.wait_stream(side)

    def _chunk(self) -> int:
        lane = self._lanes[0]
        for _ in range(2):  # the first uploads the graph
            started = time.perf_counter()
            done = lane.chunk(1)
            if done is not None:
                done.synchronize()
        return max(1, min(MAX_CHUNK, round(CHUNK_S / (time.perf_counter() - started))))

    def _mean_loss(self, memory: list[Tensor]) -> float:
        own = {id(tensor): mine for tensor, mine in zip(self._tensors, memory, strict=True)}
        return (own[id(self._step.loss_sum)] / own[id(self._step.count)]).item()


def pace(lanes: Sequence[Lane], chunk: int, start: float, end: float) -> list[float]:
    """Steps per second of each lane, launched in turns from now until `end`, by the chunks that were seen done from
    `start` on.

    Raises RuntimeError when a lane was done with fewer than 3 chunks in that time.
    """
    times: list[list[float]] = [[] for _ in lanes]
    under_way: deque[tuple[int, torch.cuda.Event | None]] = deque()
    while time.monotonic() < end:
        for i, lane in enumerate(lanes):
            under_way.append((i, lane.chunk(chunk)))
            if len(under_way) > 2 * len(lanes) or lane.stream is None:
                first, done = under_way.popleft()
                if done is not None:
                    done.synchronize()
                times[first].append(time.monotonic())
    if lanes[0].stream is not None:
        torch.cuda.synchronize()
    counted = [[t for t in of_one if start <= t <= end] for of_one in times]
    return [rate(of_one) * chunk * lane.n_steps for lane, of_one in zip(lanes, counted, strict=True)]


def rate(times: list[float]) -> float:
    """How many a second, from the first to the last. Raises RuntimeError for fewer than 3."""
    if len(times) < 3:
        raise RuntimeError(f"{len(times)} chunks of steps in the window: too few; choose a longer --window-s")
    return (len(times) - 1) / (times[-1] - times[0])


class Bench:
    """What a worker answers: cells of each kind, made once."""

    def __init__(self, compile_threads: int) -> None:
        torch.set_num_threads(1)
        inductor.compile_threads = compile_threads
        dynamo.recompile_limit, dynamo.fail_on_recompile_limit_hit = 64, True  # rather than quietly run uncompiled
        self._kinds: dict[str, Cells] = {}

    def touch(self) -> str:
        """Make a context on the device."""
        return str(torch.zeros(1, device=pick_device("auto")).device)

    def prepare(self, kind: str, overrides: list[str], is_smoke: bool) -> dict[str, Any]:
        """Compile; record one cell, so that everything is loaded."""
        small = [*SMOKE, *(x for x in overrides if x.startswith("backbone=")), "d_model=16", "trainer.batch_size=4"]
        cells = self._kinds[kind] = Cells(small if is_smoke else [*MQAR, *overrides])
        cells.pack("streams", 1)
        gc.freeze()  # a capture may collect garbage: what is here is none
        return cells.about

    def pack(self, kind: str, way: str, n: int) -> None:
        self._kinds[kind].pack(way, n)

    def run(self, kind: str, start: float, end: float) -> dict[str, Any]:
        return self._kinds[kind].run(start, end)
