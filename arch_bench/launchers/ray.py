"""Run cells as tasks of a Ray cluster, each with a share of its CPUs and GPUs; each cell measures in processes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from arch_bench.cell.run import TIMED, Seat, Seating, log_path
from arch_bench.cell.shape import Shape
from arch_bench.config.schema import Cell, ConfigError
from arch_bench.launchers.base import Crowded, Done, Job, Launcher, attempt_silently, check_isolated, engine, lost
from arch_bench.runtime import scratch
from arch_bench.runtime.workers import GRACE_S, Setting

GLANCE_S = 0.2
"""Seconds between polls for results: Ray's own blocking wait might swallow a signal."""
STORE_BYTES = 100 * 2**20
"""Shared memory of a cluster that we start: cells and rows are small."""
_OWN: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
_ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Variable that disables clusters of several machines.

Ray then listens on the loopback interface only: access to one of its ports is enough to run arbitrary code.
"""
LONGEST = 40
"""Maximum length in bytes of a folder's path, so that Ray's socket paths below it fit."""
Node = dict[str, float]
"""Resources of a node in the cluster: CPU, GPU and others."""


class Share(NamedTuple):
    """Share of a node that a cell takes."""

    cpus: float
    gpus: float

    @property
    def is_shared(self) -> bool:
        """True if other cells use the same GPU."""
        return 0 < self.gpus < 1


class Ray(Launcher):
    """Launcher that runs every cell as a task, as many at once as the cluster has room for; Ray retries none.

    Args:
        address: address of a running cluster (auto, or host:port); null: start one on this machine and stop it after.
        num_cpus: CPUs per cell, which is also its number of threads (at least one).
        num_gpus: GPUs, or a fraction of one, per cell that can use a GPU; auto: 1 if the cluster has any.

    Raises ConfigError for a share that no node of the cluster has, for a cluster that does not answer, and for cells
    that are not isolated.
    """

    def __init__(self, *, address: str | None, num_cpus: float, num_gpus: float | Literal["auto"]) -> None:
        if num_cpus <= 0:
            raise ValueError(f"num_cpus={num_cpus:g}: needs more than 0")
        if num_gpus != "auto" and (num_gpus < 0 or (num_gpus > 1 and num_gpus % 1)):
            raise ValueError(f"num_gpus={num_gpus:g}: needs auto, a part of one GPU, or a whole number of them")
        self._address, self._num_cpus, self._num_gpus = address, num_cpus, num_gpus

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        if not jobs:
            return
        check_isolated("ray", jobs)
        if self._address is None:
            os.environ[_ONE_MACHINE] = "0"  # Ray reads it on import
        with self._cluster(engine("ray", "ray")) as ray:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            shares = [self.share(job.cell, nodes) for job in jobs]
            check(shares, nodes)
            self._tell(jobs, shares, nodes)
            yield from _Tasks(ray, is_here=self._address is None).run(jobs, shares)

    @contextmanager
    def _cluster(self, ray: Any) -> Iterator[Any]:
        own = _OWN | _short_folder() if self._address is None else {}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a benchmark sends no usage reports
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a task without GPUs sees none
        handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            ray.init(address=self._address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"launcher.address={self._address}: {_first_line(error)}") from None
        finally:
            for signum, handler in handlers.items():  # Ray's handlers would end this process before tasks can save
                signal.signal(signum, handler)
        try:
            yield ray
        finally:
            ray.shutdown()

    def share(self, cell: Cell, nodes: list[Node]) -> Share:
        """Return a cell's share: a whole GPU or the largest node for a timed phase, whose times others would spoil."""
        n_devices, is_timed, gpus = cell.trainer.devices, _is_timed(cell), self._gpus(cell, nodes)
        if gpus:
            is_whole = is_timed or n_devices > 1
            return Share(self._num_cpus, max(gpus, n_devices) if is_whole else gpus)
        largest = max(node.get("CPU", 0) for node in nodes)
        return Share(max(self._num_cpus, largest if is_timed else n_devices if n_devices > 1 else 0), 0)

    def _gpus(self, cell: Cell, nodes: list[Node]) -> float:
        if cell.device not in ("auto", "cuda"):
            return 0
        if self._num_gpus == "auto":
            return float(any(node.get("GPU") for node in nodes))
        return self._num_gpus

    def _tell(self, jobs: Sequence[Job], shares: list[Share], nodes: list[Node]) -> None:
        print(f"Ray: {_described(nodes)}; what cells print is in logs/", flush=True)
        asked = self._num_cpus, 1 if self._num_gpus == "auto" else self._num_gpus
        timed = [share for job, share in zip(jobs, shares, strict=True) if _is_timed(job.cell)]
        n_raised = sum(share.cpus > asked[0] or share.gpus > asked[1] for share in timed)
        if n_raised:
            cells = (
                "1 cell has a timed phase and takes"
                if n_raised == 1
                else f"{n_raised} cells have a timed phase and take"
            )
            print(f"{cells} a whole GPU, or a whole node without one: others would spoil the times", flush=True)


def check(shares: list[Share], nodes: list[Node]) -> None:
    """Check that some node can give each share: Ray would wait silently for an impossible one. Raises ConfigError."""
    for share in sorted(set(shares)):
        if not any(share.cpus <= node.get("CPU", 0) and share.gpus <= node.get("GPU", 0) for node in nodes):
            asked = f"launcher.num_cpus={share.cpus:g}, launcher.num_gpus={share.gpus:g}"
            raise ConfigError(f"{asked}: no node of the Ray cluster has as many; there is {_described(nodes)}")


def _short_folder() -> dict[str, str]:
    """Return the option for a short socket folder, if the path of TMPDIR is too long for Ray's sockets."""
    folder = scratch.short(LONGEST)
    return {} if str(folder) == tempfile.gettempdir() else {"_temp_dir": str(folder / "ray")}


class _Tasks:
    """Tasks of some jobs. is_here: the cluster is this machine."""

    def __init__(self, ray: Any, *, is_here: bool) -> None:
        self._ray, self._is_here = ray, is_here
        self._function = ray.remote(max_retries=0)(_attempt)
        self._jobs: dict[Any, Job] = {}
        """Jobs of running tasks, by Ray's reference to the result."""

    def run(self, jobs: Sequence[Job], shares: list[Share]) -> Iterator[Done]:
        try:
            for job, share in zip(jobs, shares, strict=True):
                self._start(job, share)
            while self._jobs:
                ready, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=0)
                for task in ready:
                    yield from self._answer(task)
                if not ready:
                    time.sleep(GLANCE_S)
        finally:
            self._cancel()

    def _start(self, job: Job, share: Share) -> None:
        function = self._function.options(num_cpus=share.cpus, num_gpus=share.gpus)
        self._jobs[function.remote(job, str(Path.cwd()), share)] = job

    def _answer(self, task: Any) -> Iterator[Done]:
        job = self._jobs.pop(task)
        try:
            done = self._ray.get(task)
        except self._ray.exceptions.RayTaskError:
            raise  # a bug of the harness
        except self._ray.exceptions.RayError as error:
            yield lost(job, f"{type(error).__name__}: {_first_line(error)}", is_here=self._is_here)
            return
        if done is None:
            self._start(job, Share(1, 1))
        else:
            yield done

    def _cancel(self) -> None:
        """Cancel all running tasks and wait until they have saved."""
        for task in self._jobs:
            self._ray.cancel(task)
        if self._jobs:
            self._ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=GRACE_S + 5)


def _attempt(job: Job, folder: str, share: Share) -> Done | None:
    """Run a job in a Ray worker; return None if it needs a whole GPU."""
    os.chdir(folder)
    vars(sys.modules["__main__"]).pop("__file__", None)  # otherwise each process would run Ray's own script again
    try:
        return attempt_silently(job, seating(share))
    except Crowded:
        return None


def seating(share: Share) -> Seating:
    """Return a seating on the task's own share. It raises Crowded for a shape that must run alone on a shared GPU."""
    threads = str(max(1, int(share.cpus)))
    env = {"ARCH_BENCH_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads}

    @contextmanager
    def seat(cell: Cell, shape: Shape, *, alone: bool) -> Iterator[Seat]:
        if alone and share.is_shared:
            raise Crowded
        yield Seat(Setting(env=env, log=log_path(cell, shape)), is_shared=share.is_shared)

    return seat


def _is_timed(cell: Cell) -> bool:
    return any(kind in TIMED for kind in cell.phases)


def _described(nodes: list[Node]) -> str:
    of_each = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes]
    counts = {text: of_each.count(text) for text in of_each}
    return ", ".join(f"{n} node{'s' * (n > 1)} with {text}" for text, n in counts.items())


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
