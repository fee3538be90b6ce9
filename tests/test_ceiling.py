"""Rates of a device against work that is known."""

from __future__ import annotations

import pytest
import torch

from arch_bench.cost import ceiling
from arch_bench.cost.ceiling import ceilings
from arch_bench.runtime.measure import Stopwatch

CPU = torch.device("cpu")


class Ticks(Stopwatch):
    """Every mark is 2 s after the one before."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.now = 0.0

    def mark(self) -> float:
        self.now += 2.0
        return self.now


def test_rates_are_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ceiling.MATRIX_SIZE, "cpu", 100)
    monkeypatch.setitem(ceiling.COPY_BYTES, "cpu", 5000)
    assert ceiling.matmul_tflops(Ticks(), CPU, "fp32") == pytest.approx(2 * 100**3 / 2.0 / 1e12)
    assert ceiling.copy_gb_per_s(Ticks(), CPU) == pytest.approx(2 * 5000 / 2.0 / 1e9)


def test_a_peak_is_only_named_for_a_device_and_a_precision_that_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ceiling.MATRIX_SIZE, "cpu", 16)
    monkeypatch.setitem(ceiling.COPY_BYTES, "cpu", 16)
    assert set(ceilings(CPU, "fp32")) == {"matmul_tflops", "copy_gb_per_s"}
    monkeypatch.setattr(ceiling, "device_name", lambda device: "NVIDIA H200")
    assert ceilings(CPU, "bf16")["peak_tflops"] == 989.4
    assert "peak_tflops" not in ceilings(CPU, "fp32")
