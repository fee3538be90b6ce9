"""The statistics of timing, on clocks that are made up."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from arch_bench.config.schema import ConfigError
from arch_bench.runtime import threads
from arch_bench.runtime.measure import (
    PeakMemory,
    Stopwatch,
    Timing,
    is_steady,
    percentile,
    pick_device,
    time_calls,
    warm_up,
)
from arch_bench.runtime.precision import pick_precision, set_tf32
from arch_bench.runtime.threads import usable_cores

CPU = torch.device("cpu")


class FakeClock:
    """Time passes only when a step takes it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_summary_is_median_and_spread() -> None:
    times = [float(t) for t in range(1, 12)]
    assert Timing([*times[::-1]]).summary("step") == {"step_ms": 6.0, "step_ms_p10": 2.0, "step_ms_p90": 10.0}


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (100, 4.0), (90, 3.7)])
def test_percentile_interpolates(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(expected)


def test_one_outlier_moves_no_median() -> None:
    assert Timing([1.0] * 19 + [1000.0]).summary("x")["x_ms"] == 1.0


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([1.0] * 5, True),
        ([1.0] * 4, False),
        ([9.0, 1.0, 1.0, 1.0, 1.02, 1.03], True),
        ([1.0, 1.0, 1.0, 1.0, 1.04], True),
        ([1.0, 1.0, 1.0, 1.0, 1.06], False),
    ],
)
def test_steady_is_five_times_within_5_percent(times: list[float], expected: bool) -> None:
    assert is_steady(times) is expected


def test_warm_up_goes_on_until_steady() -> None:
    clock = FakeClock()
    costs = iter([9.0, 5.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])

    def step() -> None:
        clock.now += next(costs)

    assert len(warm_up(step, Stopwatch(CPU), max_seconds=1e9, clock=clock)) == 8


def test_warm_up_gives_up_on_a_noisy_machine() -> None:
    clock, costs = FakeClock(), itertools.cycle([1.0, 2.0])

    def step() -> None:
        clock.now += next(costs)

    assert len(warm_up(step, Stopwatch(CPU), max_seconds=1e9, clock=clock)) == 60
    assert len(warm_up(step, Stopwatch(CPU), max_seconds=2.0, clock=clock)) == 3


def test_marks_on_the_cpu_are_clock_readings() -> None:
    clock = FakeClock()
    watch = Stopwatch(CPU, clock)
    start = watch.mark()
    clock.now += 0.25
    assert watch.between_ms(start, watch.mark()) == pytest.approx(250.0)


def test_every_call_has_its_own_time() -> None:
    clock, costs = FakeClock(), iter([9.0, 1.0, 2.0, 3.0])  # the first warms up

    def call() -> None:
        clock.now += next(costs)

    found = time_calls(call, Stopwatch(CPU, clock), 3, max_warm_up_s=0)
    assert found == pytest.approx([1000.0, 2000.0, 3000.0])


def test_peak_memory_sees_a_tensor() -> None:
    memory = PeakMemory(CPU, is_fresh=True)
    before = memory.read()
    assert before is not None
    block = torch.ones(400_000_000, dtype=torch.uint8)  # larger than anything the suite held before
    after = memory.read()
    assert after is not None
    assert after - before > 0.2 * block.numel()


def test_peak_memory_of_a_used_process_is_unknown_on_the_cpu() -> None:
    assert PeakMemory(CPU, is_fresh=False).read() is None


def test_devices_and_precisions() -> None:
    assert pick_device("cpu") == CPU
    assert pick_precision("auto", CPU) == "fp32"
    assert pick_precision("auto", torch.device("cuda")) == "bf16"
    assert pick_precision("bf16", CPU) == "bf16"
    assert pick_precision("tf32", torch.device("cuda")) == "tf32"
    with pytest.raises(ConfigError, match="precision=tf32: needs a CUDA device"):
        pick_precision("tf32", CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "tf32"])
def test_tf32_is_used_where_asked_for_and_nowhere_else(precision: str) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        set_tf32(precision)
        is_allowed = precision == "tf32"
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (is_allowed, is_allowed)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device=cuda: not on this machine; choose from: auto, cpu"):
            pick_device("cuda")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.max": "6400000 100000"}, None),
        ({}, None),
    ],
)
def test_a_container_s_quota_limits_the_threads(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores(tmp_path) == (cores or usable_cores(tmp_path / "no such folder"))


def ticks(path: Path, each: list[tuple[int, int]]) -> None:
    """Write the busy and the idle ticks of each core."""
    lines = [f"cpu{i} {busy} 0 0 {idle} 5 0 0 0 0 0" for i, (busy, idle) in enumerate(each)]
    path.write_text("\n".join(["cpu  1 2 3 4 5 6 7 8", *lines, "intr 5", ""]))


@pytest.mark.parametrize(
    ("bound", "after", "files", "expected"),
    [
        ({0, 1}, [(100, 0), (0, 100)], {}, 1.0),
        ({1}, [(100, 0), (0, 100)], {}, 0.0),
        ({0, 1}, [(0, 0), (0, 0)], {}, 0.0),
        ({0, 1, 2, 3}, [(100, 0), (0, 100), (0, 100), (0, 100)], {"cpu.max": "200000 100000"}, 0.0),
        ({0, 1, 2, 3}, [(100, 0), (100, 0), (100, 0), (0, 100)], {"cpu.max": "200000 100000"}, 1.0),
    ],
)
def test_others_count_on_the_cores_that_this_process_may_use(
    bound: set[int],
    after: list[tuple[int, int]],
    files: dict[str, str],
    expected: float,
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_bound", lambda: bound)
    monkeypatch.setattr(threads.time, "sleep", lambda _: ticks(tmp_path / "stat", after))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    ticks(tmp_path / "stat", [(0, 0)] * len(after))
    assert threads.busy_cores(tmp_path, tmp_path / "stat") == pytest.approx(expected)
    assert threads.busy_cores(tmp_path, tmp_path / "none") == 0


@pytest.mark.parametrize(("busy", "free"), [(0.0, 8), (0.2, 8), (0.3, 7), (1.0, 7), (6.9, 1), (30.0, 1)])
def test_a_training_takes_the_cores_that_are_free_and_a_timed_phase_all(
    busy: float, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    monkeypatch.setattr(threads, "busy_cores", lambda: busy)
    monkeypatch.setattr(threads, "_allotted", None)
    for name in ("OMP_NUM_THREADS", "ARCH_BENCH_THREADS"):
        monkeypatch.delenv(name, raising=False)
    threads.limit(is_timed=False)
    assert (asked[-1], threads.allotted()) == (free, 8)
    threads.limit(is_timed=True)
    assert asked[-1] == 8
    threads.limit(is_timed=False, is_cpu=False)
    assert asked[-1] == 8


def test_threads_are_what_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(threads, "_allotted", None)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    threads.limit()
    assert not asked
    monkeypatch.delenv("OMP_NUM_THREADS")
    threads.limit()
    assert asked == [min(torch.get_num_threads(), usable_cores())]
