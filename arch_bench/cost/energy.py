"""Energy that a device has used, where it counts it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from arch_bench.runtime.measure import Stopwatch

WINDOW_S = 1.0
"""The counter moves every 0.02 to 0.1 s: over a second it is right to a few percent."""


def joules_per_call(run: Callable[[], object], watch: Stopwatch, device: torch.device) -> float | None:
    """Of the whole device, idle power included, over at least WINDOW_S; None where nothing counts it.

    NVML's `nvmlDeviceGetTotalEnergyConsumption`, on NVIDIA GPUs since Volta, by `pip install nvidia-ml-py`.
    """
    counter = _counter(device)
    if counter is None:
        return None
    watch.synchronise()
    joules, started, n = counter(), time.perf_counter(), 0
    while n == 0 or time.perf_counter() - started < WINDOW_S:
        for _ in range(n + 1):  # twice as many in all: waiting after each would add idle time to short calls
            run()
        n += n + 1
        watch.synchronise()
    return (counter() - joules) / n


def _counter(device: torch.device) -> Callable[[], float] | None:
    """Joules since the driver was loaded."""
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
