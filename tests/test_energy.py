"""Joules, by a counter and a clock that are made up."""

from __future__ import annotations

import pytest
import torch

from arch_bench.cost import energy
from arch_bench.runtime.measure import Stopwatch

CPU = torch.device("cpu")


def test_nothing_counts_on_a_cpu() -> None:
    assert energy.joules_per_call(lambda: pytest.fail("ran for nothing"), Stopwatch(CPU), CPU) is None


@pytest.mark.parametrize(("seconds", "n_calls"), [(0.3, 7), (5.0, 1)])
def test_joules_are_those_of_one_call_over_a_second(
    seconds: float, n_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls = [0.0], []

    def run() -> None:
        calls.append(1)
        now[0] += seconds

    monkeypatch.setattr(energy.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(energy, "_counter", lambda device: lambda: 1000 + 700 * now[0])  # 700 W
    assert energy.joules_per_call(run, Stopwatch(CPU), CPU) == pytest.approx(700 * seconds)
    assert len(calls) == n_calls
