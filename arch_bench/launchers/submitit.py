"""Run cells as SLURM jobs through submitit; inside a job, another launcher distributes its devices."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from arch_bench.cell.claim import LEASE_S
from arch_bench.config.schema import ConfigError
from arch_bench.launchers.base import Done, Job, Launcher, check_isolated, engine, lost, run_all
from arch_bench.runtime import workers

POLL_S = {"slurm": 5.0, "local": 0.5}
"""Seconds between polls for results."""
PATIENCE_S = 3600.0
"""Seconds to wait after SIGTERM for SLURM's kill: SLURM reruns a job that it kills, but not one that ends by itself."""
CLAIMED_S = 2 * LEASE_S
"""Seconds that a job waits for cells that others run: claims from its own earlier run have lapsed by then."""


class Submitit(Launcher):
    """Launcher that submits the cells as an array of jobs and yields their results as jobs end.

    A job that is preempted or nearly out of time saves, is queued again and then continues.

    Args:
        cluster: slurm; or local: processes on this machine, for a trial run.
        within: the launcher inside a job.
        cells_per_job: number of cells that share a job's devices and time.
        timeout_min: time limit of a job in minutes.
        signal_delay_s: seconds before the time limit at which a job saves and is queued again.
        max_timeouts: maximum number of such restarts; preemption is not counted.
        partition, account, gpus_per_node, cpus_per_task, mem_gb: as in SLURM; null: SLURM's default.
        array_parallelism: maximum number of jobs at the same time.
        setup: shell lines that run before a job.
        options: other options of sbatch, by name.

    Raises ConfigError without SLURM, for options that SLURM refuses, and for cells that are not isolated.
    """

    def __init__(
        self,
        *,
        cluster: Literal["slurm", "local"],
        within: Launcher,
        cells_per_job: int,
        timeout_min: int,
        signal_delay_s: int,
        max_timeouts: int,
        partition: str | None,
        account: str | None,
        gpus_per_node: int | None,
        cpus_per_task: int | None,
        mem_gb: int | None,
        array_parallelism: int,
        setup: list[str],
        options: dict[str, Any],
    ) -> None:
        for name, value in {"cells_per_job": cells_per_job, "array_parallelism": array_parallelism}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: needs at least 1")
        if not 0 < signal_delay_s < 60 * timeout_min:
            raise ValueError(
                f"signal_delay_s={signal_delay_s}: needs more than 0, and less than timeout_min={timeout_min}"
            )
        self._cluster, self._within, self._cells_per_job = cluster, within, cells_per_job
        self._max_timeouts = max_timeouts
        self._everywhere = {
            "signal_delay_s": signal_delay_s,
            "gpus_per_node": gpus_per_node,
            "setup": setup or None,
        }
        self._local = {"timeout_min": timeout_min}
        self._slurm = {
            "job_name": "arch-bench",
            "time": timeout_min,
            "partition": partition,
            "account": account,
            "cpus_per_task": cpus_per_task,
            "mem": None if mem_gb is None else f"{mem_gb}GB",
            "array_parallelism": array_parallelism,
            "additional_parameters": options or None,
        }

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        if not jobs:
            return
        check_isolated("submitit", jobs)
        submitit = engine("submitit", "submitit")
        folder = Path(jobs[0].cell.results_dir).absolute() / "submitit"
        n = self._cells_per_job
        batches = [Batch(jobs[i : i + n], self._within) for i in range(0, len(jobs), n)]
        tasks = self._submitted(submitit, folder, batches)
        waiting = dict(zip(tasks, batches, strict=True))
        try:
            for task in submitit.helpers.as_completed(tasks, poll_frequency=POLL_S[self._cluster]):
                yield from self._answer(task, waiting.pop(task))
        finally:
            self._cancel(list(waiting))

    def _submitted(self, submitit: Any, folder: Path, batches: list[Batch]) -> list[Any]:
        if self._cluster == "slurm" and not shutil.which("sbatch"):
            raise ConfigError(
                "launcher.cluster=slurm: no sbatch on this machine; run this where jobs are submitted, or choose local"
            )
        kind = submitit.SlurmExecutor if self._cluster == "slurm" else submitit.LocalExecutor
        own = self._slurm if self._cluster == "slurm" else self._local
        executor = kind(folder, max_num_timeout=self._max_timeouts)
        executor.update_parameters(
            **{key: value for key, value in (self._everywhere | own).items() if value is not None}
        )
        try:
            tasks = executor.submit_array(batches)
        except submitit.core.utils.FailedJobError as error:  # sbatch failed
            raise ConfigError(f"launcher=submitit: {_why(str(error))}") from None
        number = tasks[0].job_id.partition("_")[0]
        jobs = "1 job" if len(tasks) == 1 else f"{len(tasks)} jobs"
        print(f"submitted {jobs}, the first is {number}; their logs are in {folder}; Ctrl-C cancels them", flush=True)
        return list(tasks)

    def _answer(self, task: Any, batch: Batch) -> Iterator[Done]:
        error = task.exception()
        if error is None:
            yield from task.result()
            return
        reason = f"job {task.job_id} ({task.state}): {_why(str(error))} ({task.paths.stderr})"
        for job in batch.jobs:
            yield lost(job, reason, is_here=self._cluster == "local")

    def _cancel(self, tasks: list[Any]) -> None:
        for task in tasks:
            task.cancel(check=False)
        if tasks:
            print(f"cancelled {len(tasks)} job{'s' * (len(tasks) > 1)}", file=sys.stderr)


class Batch:
    """Cells of one job, run inside it. A job that is queued again continues with the remaining cells."""

    def __init__(self, jobs: Sequence[Job], within: Launcher) -> None:
        self.jobs = list(jobs)
        self._left, self._within = list(jobs), within
        self._done: list[Done] = []

    def __call__(self) -> list[Done]:
        os.environ.pop("SLURM_NTASKS", None)  # otherwise Lightning takes ranks, signals and requeueing from SLURM
        signal.signal(signal.SIGTERM, _make_way)
        for done in run_all(self._within, list(self._left), patience_s=CLAIMED_S):
            print(*done.lines, sep="\n", flush=True)
            self._done.append(done)
            self._left.remove(done.job)
        return self._done

    def checkpoint(self) -> Any:
        """Save and return the submission for another job; submitit calls this when its signal arrives."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the queue sends it next
        workers.end_all()
        return engine("submitit", "submitit").helpers.DelayedSubmission(self)


def _make_way(*_: Any) -> None:
    """Handle preemption or cancellation: save, then wait to be killed, or for submitit's own signal."""
    workers.end_all()
    if "SLURM_JOB_ID" in os.environ:
        time.sleep(PATIENCE_S)
    sys.exit(128 + signal.SIGTERM)


def _why(message: str) -> str:
    """Return the last line of a job's or sbatch's output, which submitit quotes between lines of dashes."""
    _, *quoted = re.split(r"\n-{10,}\n", message)
    lines = (quoted[0] if quoted else message).strip().splitlines()
    return lines[-1].strip() if lines else "no output"
