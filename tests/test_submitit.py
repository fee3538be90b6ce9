"""launcher=submitit: jobs by its local executor, and how they go on after an interruption."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint import contents

from arch_bench import results
from arch_bench.config.instantiate import made
from arch_bench.config.schema import ConfigError, cell_of, compose, sweeping_of
from arch_bench.launchers.base import Done, Job, Launcher
from arch_bench.launchers.joblib import Joblib
from arch_bench.launchers.submitit import Batch, _why
from arch_bench.runtime import workers

TINY = [
    *("logger=none", "device=cpu", "seq_len=16", "d_model=16", "n_layers=1", "phases=[quality]", "eval_scales=[1]"),
    *("task.n_pairs=2", "task.vocab_size=32", "trainer.batch_size=4", "backbone=lstm"),
]
SHORT = ["trainer.max_steps=2", "trainer.val_every=2"]


def job(folder: Path, *overrides: str) -> Job:
    cell = cell_of(compose([*TINY, f"results_dir={folder}", *overrides]))
    return Job(cell, f"seed {cell.seed}")


def launcher(*overrides: str) -> Any:
    """That of the YAML, on this machine."""
    local = ["launcher.cluster=local", "launcher.gpus_per_node=null", "launcher.within.mps=false"]
    return made("launcher", sweeping_of(compose(["launcher=submitit", *local, *overrides])).launcher, "")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("launcher.cells_per_job=0", "launcher.cells_per_job=0: needs at least 1"),
        ("launcher.array_parallelism=0", "launcher.array_parallelism=0: needs at least 1"),
        (
            "launcher.signal_delay_s=14400",
            "launcher.signal_delay_s=14400: needs more than 0, and less than timeout_min=240",
        ),
        ("launcher.mem_gb=much", "launcher.mem_gb=much: input should be a valid integer"),
    ],
)
def test_an_impossible_value_is_one_line(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}"):
        launcher(override)


def test_without_slurm_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^launcher.cluster=slurm: no sbatch on this machine"):
        next(launcher("launcher.cluster=slurm").run([job(tmp_path)]))


def test_what_slurm_does_not_take_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "sbatch": "echo 'sbatch: error: invalid partition specified: best' >&2; exit 1",
        "srun": "",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    slurm = launcher("launcher.cluster=slurm", "launcher.partition=best", "+launcher.options.qos=long")
    with pytest.raises(ConfigError, match=r"^launcher=submitit: sbatch: error: invalid partition specified: best$"):
        next(slurm.run([job(tmp_path / "results", f"seed={seed}") for seed in (0, 1)]))
    (script,) = (tmp_path / "results" / "submitit").glob(".submission_file_*.sh")
    lines = script.read_text().splitlines()
    asked = {"partition=best", "qos=long", "time=240", "signal=USR2@120", "array=0-1%2", "cpus-per-task=4"}
    assert {f"#SBATCH --{option}" for option in asked} <= set(lines)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("Job 1 has not produced any output (state: FAILED)", "Job 1 has not produced any output (state: FAILED)"),
        (f"no output\nError stream produced:\n{'-' * 40}\nloading\nerror: oom-kill\n", "error: oom-kill"),
        (f"failed\n{'-' * 22}\nTraceback\nValueError: no\n\n{'-' * 22}\nYou can check", "ValueError: no"),
        ("", "no output"),
    ],
)
def test_why_a_job_failed_is_its_last_line(message: str, why: str) -> None:
    assert _why(message) == why


class Two(Launcher):
    """Gives two jobs back, the last first, and is interrupted."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        for one in list(reversed(jobs))[:2]:
            yield Done(one, [], lines=(one.label,))
        raise workers.Interrupted


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a job sets for its process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    workers._is_interrupted.clear()


def test_a_job_that_is_queued_again_has_left_what_it_has_not_done(tmp_path: Path, signals: None) -> None:
    jobs = [job(tmp_path, f"seed={seed}") for seed in (0, 1, 2)]
    batch = Batch(jobs, Two())
    with pytest.raises(workers.Interrupted):
        batch()
    again = pickle.loads(pickle.dumps(batch.checkpoint().function))
    with pytest.raises(workers.Interrupted):
        again()
    assert [done.job.label for done in again._done] == ["seed 2", "seed 1", "seed 0"]
    assert again.jobs == jobs


@pytest.mark.slow
def test_cells_run_as_jobs_and_one_that_dies_costs_itself_only(tmp_path: Path) -> None:
    class Deadly(Joblib):  # local: it travels by value
        def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
            if jobs[0].cell.seed == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(jobs)

    chosen = launcher("launcher.cells_per_job=2")
    chosen._within = Deadly(pack=1, mps=False)
    jobs = [job(tmp_path, *SHORT, f"seed={seed}") for seed in (0, 1, 2)]
    done = {one.job.cell.seed: one for one in chosen.run(jobs)}
    assert {seed: [row.status for row in one.rows] for seed, one in done.items()} == {
        0: ["ok"],
        1: ["ok"],
        2: ["crashed"],
    }
    assert str(tmp_path / "submitit") in done[2].rows[0].reason
    assert {row.seed: row.status for row in results.load([tmp_path])} == {0: "ok", 1: "ok", 2: "crashed"}


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_rows_do_not_show_that_a_job_had_to_make_way(tmp_path: Path) -> None:
    """SLURM sends its signal to all processes of a job; submitit then has the job run again."""
    long = ["trainer.max_steps=200", "trainer.val_every=50", "checkpoint_every_s=0.1"]
    (whole,) = Joblib(pack=1, mps=False).run([job(tmp_path / "whole", *long)])
    chosen, parts = launcher(), job(tmp_path / "parts", *long)
    tasks: list[Any] = []
    submit = chosen._submitted

    def submitted(*args: Any) -> list[Any]:
        tasks.extend(submit(*args))
        end = time.monotonic() + 120
        while not list(tmp_path.glob("parts/checkpoints/*.ckpt")) and time.monotonic() < end:
            time.sleep(0.05)
        _controller, *others = family(tasks[0]._process.pid)
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)
        return tasks

    chosen._submitted = submitted
    (done,) = chosen.run([parts])
    assert contents(done.rows) == contents(whole.rows)
    assert [row.metrics["n_attempts"] for row in done.rows] == [2]
    log = tasks[0].paths.stdout.read_text()
    assert "Caught signal SIGUSR2" in log
    assert "Requeued" in log
