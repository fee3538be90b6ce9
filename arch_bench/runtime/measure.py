"""Measurement of time and memory.

Time: the first step, which compiles and captures, is counted separately. Warm-up then runs until the last five steps
agree within 5 % (5 to 60 steps), followed by at least 3 and by default 20 steps, over rotated random inputs made
before. On CUDA a step is bracketed by events and the stream is synchronised once, at the end (after each step if one
takes over 0.1 s); elsewhere a wall clock is used. Figures are medians with the 10th and 90th percentile; `tokens_per_s`
uses the wall clock of the same window, host time included.

Memory of a training step: a separate pass, without a graph. On CUDA it is the allocator's peak. On the CPU (fresh
process only) it is the bytes that live between steps plus the growth of resident memory in one step; if that peak
cannot be reset (macOS), the growth since before the model.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from arch_bench.config.schema import ConfigError
from arch_bench.runtime import threads

Clock = Callable[[], float]
"""A function that returns seconds, from any origin."""
Mark = torch.cuda.Event | float
"""A point on a device's stream, or a clock reading."""


def pick_device(name: str) -> torch.device:
    """Resolve `auto`: CUDA if available, else the CPU. Raises ConfigError for a missing device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        present = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise ConfigError(f"device={name}: not on this machine; choose from: auto, {present}")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return the name of the hardware in rows."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {threads.allotted()} threads" if device.type == "cpu" else device.type


CONTEXT_BYTES = 700 * 2**20
"""GPU memory of a process besides its allocator: context, kernels, library workspaces."""


def process_bytes(device: torch.device) -> int:
    """Return the peak bytes this process has held on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + CONTEXT_BYTES
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@dataclass(frozen=True)
class Timing:
    """Repeated times of one operation, in milliseconds."""

    times_ms: Sequence[float]

    def summary(self, name: str) -> dict[str, float]:
        """Return `{name}_ms` (median), `{name}_ms_p10` and `{name}_ms_p90`."""
        p10, p90 = percentile(self.times_ms, 10), percentile(self.times_ms, 90)
        return {
            f"{name}_ms": statistics.median(self.times_ms),
            f"{name}_ms_p10": p10,
            f"{name}_ms_p90": p90,
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile by linear interpolation between order statistics."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def is_steady(times: Sequence[float]) -> bool:
    """Return True if the last five times agree within 5 % of their median."""
    last = times[-5:]
    return len(last) == 5 and max(last) - min(last) <= 0.05 * statistics.median(last)


class Stopwatch:
    """A stopwatch that marks points in time on a device's stream without waiting for it."""

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self._device = device
        self._clock = clock

    def mark(self) -> Mark:
        """Return a mark: an event on CUDA, else the clock's reading after the device has finished its work.

        While a graph is being captured, the event becomes part of it, and every replay sets it anew.
        """
        if self._device.type != "cuda":
            self.synchronise()
            return self._clock()
        event = torch.cuda.Event(enable_timing=True, external=torch.cuda.is_current_stream_capturing())
        event.record()
        return event

    def synchronise(self) -> None:
        """Wait until the device has finished its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()

    @staticmethod
    def between_ms(start: Mark, end: Mark) -> float:
        """Return the milliseconds between two marks; on CUDA only after `synchronise`."""
        if isinstance(start, torch.cuda.Event):
            assert isinstance(end, torch.cuda.Event)
            return start.elapsed_time(end)
        assert isinstance(end, float)
        return (end - start) * 1e3


def warm_up(
    step: Callable[[], object], watch: Stopwatch, max_seconds: float, clock: Clock = time.perf_counter
) -> list[float]:
    """Run until steady, at most 60 steps or `max_seconds`, and return the seconds of each.

    Runs at least 3 steps, unless a step alone takes longer than `max_seconds`.
    """
    times: list[float] = []
    started = clock()
    while len(times) < 60 and not is_steady(times):
        before = clock()
        step()
        watch.synchronise()
        times.append(clock() - before)
        if (len(times) >= 3 and clock() - started > max_seconds) or times[-1] > max_seconds:
            break
    return times


def time_calls(run: Callable[[], object], watch: Stopwatch, n: int, max_warm_up_s: float) -> list[float]:
    """Return the milliseconds of each of `n` calls after a warm-up, synchronising once, after the last."""
    warm_up(run, watch, max_warm_up_s)
    marks = [watch.mark()]
    for _ in range(n):
        run()
        marks.append(watch.mark())
    watch.synchronise()
    return [watch.between_ms(*pair) for pair in itertools.pairwise(marks)]


class PeakMemory:
    """Peak bytes since construction or `restart`: allocated on CUDA, resident growth of a fresh process on the CPU."""

    def __init__(self, device: torch.device, *, is_fresh: bool) -> None:
        self._device = device
        self._is_told = is_fresh and device.type == "cpu"
        self._living, self._baseline = 0, _peak_resident_bytes()
        self.restart()

    def restart(self, living: Iterable[Tensor] = ()) -> int | None:
        """Reset the peak if possible, and return the bytes that live now.

        living: the live tensors, needed on a CPU because it has no allocator count.
        """
        if self._device.type != "cuda":
            if not (self._is_told and _forget_peak_resident()):
                return None
            self._living, self._baseline = sum(x.nbytes for x in living), _peak_resident_bytes()
            return self._living
        gc.collect()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_allocated(self._device)

    def read(self) -> int | None:
        """Return the bytes; None if unmeasurable: on MPS, and on the CPU in a process that is not fresh."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return torch.cuda.max_memory_allocated(self._device)
        return self._living + _peak_resident_bytes() - self._baseline if self._is_told else None

    def read_reserved(self) -> int:
        """Return the peak bytes that CUDA's allocator has reserved on the device."""
        return torch.cuda.max_memory_reserved(self._device)


def forget_workspaces(device: torch.device) -> bool:
    """Free cuBLAS's workspaces, one for each stream it has run on, warm-ups and captures included: 32 MiB each on
    Hopper.

    Returns True if there may be workspaces to free: the next product allocates one anew.
    """
    if device.type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
    return device.type == "cuda"


def _forget_peak_resident() -> bool:
    """Return free memory to the system and reset the peak; reused free memory would not show up as growth."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):  # no GNU C library, no Linux
        return False
    return True


def _peak_resident_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
