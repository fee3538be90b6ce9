"""How many CPU threads a phase has, and how busy the machine is with other work when it starts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from arch_bench.results import Metrics

SAMPLE_S = 0.2
"""For how long the work of others is watched. A load average would still hold the phase before this one."""
TOLERANCE = 0.25
"""Share of a core that others may use without counting as busy."""


def usable_cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """CPU cores that this process may keep busy: those it is bound to, within the quota of its container.

    PyTorch starts a thread for every core it sees; where a quota allows fewer, they wait for one another.
    """
    return min(len(_bound()), _quota(groups) or len(_bound()))


def _bound() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quota(groups: Path) -> int | None:
    """Whole cores of a control group's CPU quota (version 2, then version 1); None where there is no limit."""
    files = (groups / "cpu.max",), (groups / "cpu/cpu.cfs_quota_us", groups / "cpu/cpu.cfs_period_us")
    for names in files:
        if all(name.is_file() for name in names):
            limit, period = " ".join(name.read_text() for name in names).split()
            return None if limit in {"max", "-1"} else max(1, int(limit) // int(period))
    return None


def busy_cores(groups: Path = Path("/sys/fs/cgroup"), statistics: Path = Path("/proc/stat")) -> float:
    """Return how many of the usable cores others keep busy now; 0 where the system does not say.

    Others on the same cores count, and with a quota also those in the same container.
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
    """Clock ticks of each core that this process is bound to: busy ones, and all."""
    names = {f"cpu{number}" for number in _bound()}
    try:
        lines = [line.split() for line in statistics.read_text().splitlines()]
        times = [[int(each) for each in line[1:9]] for line in lines if line and line[0] in names]
        return [sum(each) - each[3] - each[4] for each in times], [sum(each) for each in times]  # idle, waiting
    except (OSError, ValueError, IndexError):
        return [], []


def _spent(groups: Path) -> float:
    """Seconds of CPU that the control group has used."""
    try:
        lines = dict(line.split() for line in (groups / "cpu.stat").read_text().splitlines())
        return int(lines["usage_usec"]) / 1e6
    except (OSError, ValueError, KeyError):
        return 0.0


def limit(*, is_timed: bool = True, is_cpu: bool = True) -> None:
    """Give PyTorch no more threads than there are cores to run them, unless OMP_NUM_THREADS says how many.

    A training on a CPU takes the cores that are free as it starts: beside another busy process two threads for two
    cores wait for each other at every operation, and need ten times as long as one. A timed phase has the same threads
    in every row of a study. ARCH_BENCH_THREADS is what a launcher allots to each of several processes, their compilers
    included.
    """
    global _allotted  # noqa: PLW0603 (as PyTorch's own number is)
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
    """Return the threads of this process on an idle machine, which name the device of its rows."""
    return _allotted or torch.get_num_threads()


def load(*, is_timed: bool) -> Metrics:
    """Return what a row says of the machine as its phase starts."""
    found: Metrics = {"threads": torch.get_num_threads()}
    if is_timed:
        found |= {"load_average": round(os.getloadavg()[0], 2), "busy_cores": round(busy_cores(), 2)}
    return found
