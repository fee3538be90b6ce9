"""Energy of a device, measured by its own counter."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from arch_bench.runtime.measure import Stopwatch

WINDOW_S = 1.0
"""Minimum seconds to measure: the counter updates every 0.02 to 0.1 s, so a second is exact to a few percent."""


def joules_per_call(run: Callable[[], object], watch: Stopwatch, device: torch.device) -> float | None:
    """Measure joules per call of the whole device, with idle power, over at least WINDOW_S; None without a counter.

    Uses NVML's `nvmlDeviceGetTotalEnergyConsumption`, on NVIDIA GPUs since Volta, from `pip install nvidia-ml-py`.
    """
    counter = _counter(device)
    if counter is None:
        return None
    watch.synchronise()
    joules, started, n = counter(), time.perf_counter(), 0
    while n == 0 or time.perf_counter() - started < WINDOW_S:
        for _ in range(n + 1):  # double the count: waiting after each would add idle time to short calls
            run()
        n += n + 1
        watch.synchronise()
    return (counter() - joules) / n


def _counter(device: torch.device) -> Callable[[], float] | None:
    """Return a function that reads the joules since the driver was loaded; None without a counter."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    try:
        nvml: Any = __import__("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except ImportError:
        return None
    except nvml.NVMLError:  # older than Volta, or a virtual GPU
        return None
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
