"""Upper limits of a device: measured in the same process as the model, and from its data sheet."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from arch_bench.runtime.measure import Stopwatch, device_name, time_calls
from arch_bench.runtime.precision import autocast

MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of the matrix product: on an H200, a larger product is not faster."""
COPY_BYTES = {"cuda": 2**31, "cpu": 2**26}
"""Bytes of the copy, far more than any cache holds."""
DENSE_BF16_TFLOPS = {
    "NVIDIA H200": 989.4,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
}
"""Peak rates from NVIDIA's data sheets, without sparsity, by the driver's device name."""


def ceilings(device: torch.device, precision: str) -> dict[str, float]:
    """Measure `matmul_tflops` and `copy_gb_per_s` (bytes read and written), and add `peak_tflops` if it is known."""
    watch = Stopwatch(device)
    found = {"matmul_tflops": matmul_tflops(watch, device, precision), "copy_gb_per_s": copy_gb_per_s(watch, device)}
    peak = DENSE_BF16_TFLOPS.get(device_name(device)) if precision == "bf16" else None
    return found | ({"peak_tflops": peak} if peak else {})


def matmul_tflops(watch: Stopwatch, device: torch.device, precision: str) -> float:
    """Measure the rate of a square product of random matrices (zeros would be a tenth faster)."""
    n = MATRIX_SIZE.get(device.type, MATRIX_SIZE["cpu"])
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, n, n, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(0))
    with autocast(precision, device):
        return 2 * n**3 / _median_ms(lambda: a @ b, watch) / 1e9


def copy_gb_per_s(watch: Stopwatch, device: torch.device) -> float:
    """Measure the rate of copying one buffer to another, in 10^9 bytes read and written per second."""
    n = COPY_BYTES.get(device.type, COPY_BYTES["cpu"])
    if device.type == "cuda":  # running out of memory here would lose the earlier times
        n = min(n, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.ones(n, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * n / _median_ms(lambda: target.copy_(source), watch) / 1e6


def _median_ms(run: Callable[[], object], watch: Stopwatch) -> float:
    return statistics.median(time_calls(run, watch, n=10, max_warm_up_s=0.1))
