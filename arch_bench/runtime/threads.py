"""CPU threads of a phase, and the load from other work when it starts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from arch_bench.results import Metrics

SAMPLE_S = 0.2
"""Seconds for which other processes' work is observed. A load average would still include the previous phase."""
TOLERANCE = 0.25
"""Share of a core that others may use without counting as busy."""


def usable_cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of CPU cores this process may keep busy: its affinity, within its container's quota.

    PyTorch starts a thread for every visible core; if a quota allows fewer, the threads wait for one another.
    """
    return min(len(_bound()), _quota(groups) or len(_bound()))


def _bound() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quota(groups: Path) -> int | None:
    """Return the whole cores of a control group's CPU quota (version 2, then version 1); None without a limit."""
    files = (groups / "cpu.max",), (groups / "cpu/cpu.cfs_quota_us", groups / "cpu/cpu.cfs_period_us")
    for names in files:
        if all(name.is_file() for name in names):
            limit, period = " ".join(name.read_text() for name in names).split()
            return None if limit in {"max", "-1"} else max(1, int(limit) // int(period))
    return None


def busy_cores(groups: Path = Path("/sys/fs/cgroup"), statistics: Path = Path("/proc/stat")) -> float:
    """Return the number of usable cores that other processes keep busy now; 0 if the system does not report it.

    Other processes on the same cores count, and with a quota also those in the same container.
    """
    started, before, spent = time.monotonic(), _ticks(statistics), _spent(groups)
    time.sleep(SAMPLE_S)
    after = _ticks(statistics)
    busy, total = (sum(after[i]) - sum(before[i]) for i in (0, 1))
    on_cores = len(_bound()) * busy / total if total > 0 else 0.0
    if _quota(groups) is None:
        return on_cores
    in_quota = (_spent(groups) - spent) / (time.monotonic() - started)
    return max(in_quota, on_cores + usable_cores(groups) - len(_bound()))  # cores beyond the quota may well be busy


def _ticks(statistics: Path) -> tuple[list[int], list[int]]:
    """Return the clock ticks of each core in this process's affinity: busy ticks, and all ticks."""
    names = {f"cpu{number}" for number in _bound()}
    try:
        lines = [line.split() for line in statistics.read_text().splitlines()]
        times = [[int(each) for each in line[1:9]] for line in lines if line and line[0] in names]
        return [sum(each) - each[3] - each[4] for each in times], [sum(each) for each in times]  # idle, waiting
    except (OSError, ValueError, IndexError):
        return [], []


def _spent(groups: Path) -> float:
    """Return the CPU seconds that the control group has used."""
    try:
        lines = dict(line.split() for line in (groups / "cpu.stat").read_text().splitlines())
        return int(lines["usage_usec"]) / 1e6
    except (OSError, ValueError, KeyError):
        return 0.0


def limit(*, is_timed: bool = True, is_cpu: bool = True) -> None:
    """Limit PyTorch's threads to the available cores, unless OMP_NUM_THREADS sets their number.

    A training on a CPU takes the cores that are free when it starts: beside another busy process, two threads for two
    cores wait for each other at every operation and take ten times as long as one thread. A timed phase has the same
    threads in every row of a study. A launcher sets ARCH_BENCH_THREADS to the number of threads for each of several
    processes, their compilers included.
    """
    global _allotted  # noqa: PLW0603 (PyTorch's own number is global too)
    if allotted := os.environ.get("ARCH_BENCH_THREADS"):
        torch.set_num_threads(int(allotted))
        torch._inductor.config.compile_threads = int(allotted)
    elif "OMP_NUM_THREADS" not in os.environ:
        most = _allotted = _allotted or min(torch.get_num_threads(), usable_cores())
        torch.set_num_threads(most)
        if is_cpu and not is_timed and most > 1:
            torch.set_num_threads(max(1, int(most - busy_cores() + TOLERANCE)))


_allotted: int | None = None


def allotted() -> int:
    """Return the threads of this process on an idle machine, which are part of the device name in rows."""
    return _allotted or torch.get_num_threads()


def load(*, is_timed: bool) -> Metrics:
    """Return the machine's load metrics at the start of a phase."""
    found: Metrics = {"threads": torch.get_num_threads()}
    if is_timed:
        found |= {"load_average": round(os.getloadavg()[0], 2), "busy_cores": round(busy_cores(), 2)}
    return found
