"""Run several cells at once on all devices of this machine, in joblib threads; each cell measures in processes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from arch_bench.config.schema import ConfigError
from arch_bench.launchers import mps
from arch_bench.launchers.base import Done, Job, Launcher, attempt_silently, check_isolated, engine
from arch_bench.launchers.seats import Device, Seats
from arch_bench.results import load
from arch_bench.runtime import workers

MANY = 8
"""Maximum number of cells on one GPU with pack=auto.

With MPS, 8 small cells on an H200 made 1.15 times the steps of one and 16 made fewer; without MPS the number hardly
mattered (results/published/packing).
"""


class Joblib(Launcher):
    """Launcher that runs up to `pack` cells on each device at once; a timed phase has its device to itself.

    Args:
        pack: cells on one device; auto: one for every two CPU cores in a device's share, and at most MANY on a GPU.
        mps: True to share GPUs between processes through NVIDIA's MPS; auto: if MPS can be started.

    Raises ValueError for a `pack` below 1, and ConfigError for mps=true where MPS cannot be started and for cells that
    are not isolated or need several GPUs.
    """

    def __init__(self, *, pack: int | Literal["auto"], mps: bool | Literal["auto"]) -> None:
        if pack != "auto" and pack < 1:
            raise ValueError(f"pack={pack}: needs at least 1")
        self._pack, self._mps = pack, mps

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        if not jobs:
            return
        check_isolated("joblib", jobs)
        joblib = engine("joblib", "joblib")
        devices = workers.call(devices_of, jobs[0].cell.device, time_limit_s=120)
        is_gpu = "CUDA_VISIBLE_DEVICES" in devices[0].env
        most = max(job.cell.trainer.devices for job in jobs)
        if is_gpu and most > 1:
            raise ConfigError(f"trainer.devices={most}: launcher=joblib gives a cell one GPU; launcher=basic gives all")
        pack = per_device(len(devices), is_gpu=is_gpu, pack=self._pack)
        n_seats = min(pack, math.ceil(len(jobs) / len(devices)))  # few cells get more memory each
        n_jobs = min(len(jobs), n_seats * len(devices))
        n_sharing = n_jobs if is_gpu else pack  # rows record CPU threads: keep them equal for the last cells
        with self._service(is_gpu=is_gpu) as env:
            seats = Seats([_allotted(device, env, n_sharing, len(devices)) for device in devices], n_seats)
            seats.learn(load(sorted({Path(job.cell.results_dir) for job in jobs})))
            how = " by MPS" if env else ""
            print(f"{n_jobs} at a time, {n_seats} on a device{how}; what they print is in logs/", flush=True)
            parallel = joblib.Parallel(n_jobs, backend="threading", batch_size=1, return_as="generator_unordered")
            try:
                for done in parallel(joblib.delayed(attempt_silently)(job, seats) for job in jobs):
                    seats.learn(done.rows)
                    yield done
            except BaseException:
                workers.interrupt()
                raise

    @contextmanager
    def _service(self, *, is_gpu: bool) -> Iterator[Mapping[str, str]]:
        """Run MPS for the block and yield the variables that processes need; yield none where they take turns."""
        with ExitStack() as stack:
            env: Mapping[str, str] = {}
            try:
                env = stack.enter_context(mps.service()) if is_gpu and self._mps else {}
            except mps.Unavailable as error:
                if self._mps is True:
                    raise ConfigError(f"launcher.mps=true: {error}") from None
            yield env


def devices_of(name: str) -> list[Device]:
    """List the devices of that kind with their memory. Call it in its own process: querying a GPU takes memory."""
    import torch

    from arch_bench.runtime.measure import pick_device

    if pick_device(name).type != "cuda":
        return [Device({}, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if visible != [""] else [str(i) for i in range(torch.cuda.device_count())]
    free = [torch.cuda.mem_get_info(i)[0] for i in range(len(names))]
    return [Device({"CUDA_VISIBLE_DEVICES": name}, n_bytes) for name, n_bytes in zip(names, free, strict=True)]


def per_device(n_devices: int, *, is_gpu: bool, pack: int | Literal["auto"]) -> int:
    """Return the number of cells that run at the same time on each device."""
    from arch_bench.runtime.threads import usable_cores

    if pack != "auto":
        return pack
    by_cores = max(1, usable_cores() // (2 * n_devices))
    return min(MANY, by_cores) if is_gpu else by_cores


def _allotted(device: Device, env: Mapping[str, str], n_sharing: int, n_devices: int) -> Device:
    """Return the device with its share of the CPU threads: more threads than cores are severalfold slower."""
    own = device.env | dict(env)
    return Device(own | _threads(n_sharing), device.capacity, timed_env=own | _threads(n_devices))


def _threads(n: int) -> dict[str, str]:
    """Return the thread variable for one of n processes; a single process keeps the default of every launcher."""
    from arch_bench.runtime.threads import usable_cores

    return {} if n == 1 else {"ARCH_BENCH_THREADS": str(max(1, usable_cores() // n))}
