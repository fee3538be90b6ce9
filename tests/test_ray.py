"""launcher=ray: shares of a cluster, and real clusters on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli import interrupted

from arch_bench import results
from arch_bench.cell import run
from arch_bench.cell.run import settle
from arch_bench.cell.shape import Shape, Usage, save
from arch_bench.config.schema import Cell, ConfigError, cell_of, compose
from arch_bench.launchers import base
from arch_bench.launchers import ray as ours
from arch_bench.launchers.base import Crowded, Done, Job
from arch_bench.launchers.joblib import Joblib
from arch_bench.launchers.ray import Ray, Share, check, seating
from arch_bench.launchers.submitit import Submitit
from arch_bench.results import Outcome, Row

NODES = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 16.0}]
TINY = [
    *("logger=none", "device=cpu", "seq_len=16", "d_model=16", "n_layers=1", "phases=[quality]", "eval_scales=[1]"),
    *("task.n_pairs=2", "task.vocab_size=32", "trainer.max_steps=2", "trainer.batch_size=4", "trainer.val_every=2"),
]


def job(folder: Path, *overrides: str) -> Job:
    cell = cell_of(compose([*TINY, f"results_dir={folder}", *overrides]))
    return Job(cell, f"seed {cell.seed}")


def launcher(**options: Any) -> Ray:
    return Ray(**{"address": None, "num_cpus": 1, "num_gpus": "auto"} | options)


@pytest.mark.parametrize(
    ("options", "overrides", "share"),
    [
        ({}, ["device=auto"], Share(1, 1)),
        ({}, ["device=cpu"], Share(1, 0)),
        ({"num_gpus": 0.25}, ["device=cuda"], Share(1, 0.25)),
        ({"num_gpus": 0.25}, ["device=cuda", "phases=[decode,quality]"], Share(1, 1)),
        ({"num_gpus": 0.25}, ["device=cuda", "trainer.strategy=ddp", "trainer.devices=2"], Share(1, 2)),
        ({"num_cpus": 0.5}, ["phases=[speed]"], Share(16, 0)),
        ({"num_cpus": 0.5}, ["trainer.strategy=ddp", "trainer.devices=2"], Share(2, 0)),
        ({"num_gpus": 0}, ["device=auto"], Share(1, 0)),
    ],
)
def test_a_timed_phase_shares_with_nobody(
    options: dict[str, Any], overrides: list[str], share: Share, tmp_path: Path
) -> None:
    assert launcher(**options).share(job(tmp_path, *overrides).cell, NODES) == share


def test_what_no_node_has_is_one_line() -> None:
    check([Share(8, 2), Share(16, 0)], NODES)
    asked = r"launcher.num_cpus=16, launcher.num_gpus=1: no node of the Ray cluster has as many; "
    with pytest.raises(ConfigError, match=f"{asked}there is 1 node with 8 CPUs and 2 GPUs, 1 node with 16 CPUs and 0"):
        check([Share(1, 0), Share(16, 1)], NODES)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"num_cpus": 0}, "num_cpus=0"), ({"num_gpus": -1}, "num_gpus=-1"), ({"num_gpus": 1.5}, "num_gpus=1.5")],
)
def test_impossible_shares_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        launcher(**options)


def test_what_ran_out_of_memory_beside_others_asks_for_a_whole_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(cell: Cell, shape: Shape, *_: Any) -> list[Row]:
        return save(cell, shape, [Outcome(seq_len=n, status="oom", reason="full") for n in shape.lengths], Usage())

    with seating(Share(2, 0.5))(settle(job(tmp_path).cell), Shape("quality", [16]), alone=False) as seat:
        assert seat.is_shared
        assert seat.setting.env["ARCH_BENCH_THREADS"] == "2"
    monkeypatch.setattr(run, "_measure", full)
    with pytest.raises(Crowded):
        base.attempt(job(tmp_path), print, seating(Share(2, 0.5)))
    assert not list(tmp_path.rglob("*.json")), "which is not true yet"
    assert {row.status for row in base.attempt(job(tmp_path), print, seating(Share(2, 1))).rows} == {"oom"}
    assert list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("package", ["joblib", "ray", "submitit"])
def test_an_engine_that_is_not_installed_is_one_line(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joblib = Joblib(pack=1, mps=False)
    launchers = {"joblib": joblib, "ray": launcher(), "submitit": object.__new__(Submitit)}
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"^launcher={package}: needs {package}; pip install 'arch-bench\[sweep\]'$"):
        next(iter(launchers[package].run([job(tmp_path)])))
    with pytest.raises(ConfigError, match=f"^isolate=false: launcher={package} "):
        next(iter(launchers[package].run([job(tmp_path, "isolate=false")])))
    assert list(launchers[package].run([])) == []


def test_a_job_that_was_lost_elsewhere_is_told_and_not_saved_under_a_device_that_nobody_knows(tmp_path: Path) -> None:
    lost = base.lost(job(tmp_path, "device=auto"), "gone", is_here=False)
    assert [(row.status, row.reason) for row in lost.rows] == [("crashed", "gone")]
    assert not list(tmp_path.rglob("*.json"))
    base.lost(job(tmp_path, "device=cuda", "eval_scales=[1,2]"), "gone", is_here=False)
    found = results.load([tmp_path])
    assert [(row.status, row.config["device"], row.config["precision"]) for row in found] == [
        ("crashed", "cuda", "bf16")
    ] * 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of one node with two CPUs and, so it says, a GPU."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    yield made.address
    made.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # Ray's own
def test_a_worker_that_dies_costs_its_cell_only(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = ours._attempt

    def die(job: Job, folder: str, share: Share) -> Done | None:  # local: it travels by value
        if job.cell.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return attempt(job, folder, share)

    monkeypatch.setattr(ours, "_attempt", die)
    jobs = [job(tmp_path, "device=auto", "backbone=lstm", f"seed={seed}") for seed in (0, 1, 2)]
    done = {one.job.cell.seed: one for one in launcher(address=cluster, num_gpus=0.25).run(jobs)}
    assert {seed: [row.status for row in one.rows] for seed, one in done.items()} == {
        0: ["ok"],
        1: ["crashed"],
        2: ["ok"],
    }
    assert "WorkerCrashedError" in done[1].rows[0].reason
    assert "seed 2" in done[2].lines
    assert {row.seed for row in results.load([tmp_path])} == {0, 2}, "whoever lost it does not know its device"
    (log, _) = sorted((tmp_path / "logs").iterdir())
    assert "training" in log.read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # Ray's own
def test_gpus_that_are_not_there_are_one_line(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"launcher.num_gpus=2: no node .*; there is 1 node with 2 CPUs and 1 GPUs"):
        next(launcher(address=cluster, num_gpus=2).run([job(tmp_path, "device=auto")]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # Ray's own
def test_an_address_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^launcher.address=nonsense: Invalid address format: nonsense$"):
        next(launcher(address="nonsense").run([job(tmp_path)]))


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_saves_and_stops_the_cluster(tmp_path: Path, signum: int, code: int) -> None:
    def has_trained() -> bool:
        return bool(list(tmp_path.rglob("*.ckpt")))

    overrides = ["phases=[quality]", "launcher=ray", "checkpoint_every_s=0.1"]
    found, stderr = interrupted(tmp_path, has_trained, *overrides, signum=signum)
    assert found == code, stderr
    assert "interrupted; finished rows are kept" in stderr
    assert "Traceback" not in stderr
    assert not results.load([tmp_path / "results"]), "nothing crashed"


def open_ports() -> set[str]:
    """Addresses, as the kernel writes them, that somebody listens on."""
    names = ("/proc/net/tcp", "/proc/net/tcp6")
    lines = [line.split() for name in names for line in Path(name).read_text().splitlines()[1:]]
    return {line[1] for line in lines if line[3] == "0A"}


@pytest.mark.slow
def test_a_cluster_of_our_own_listens_on_this_machine_only(tmp_path: Path) -> None:
    """In a process of its own, for Ray reads what says so as it is imported."""
    code = """if True:
        import sys, test_ray
        from pathlib import Path
        from arch_bench.launchers.base import Job
        from arch_bench.launchers.ray import Ray
        from cells import cell
        before = test_ray.open_ports()
        launcher = Ray(address=None, num_cpus=1, num_gpus=0)
        launcher.share = lambda *_: sys.exit(" ".join(["ports:", *(test_ray.open_ports() - before)]))
        list(launcher.run([Job(cell(Path(sys.argv[1]), isolate=True), "")]))
    """
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    _, *ports = next(line for line in done.stderr.splitlines() if line.startswith("ports:")).split()
    assert len(ports) > 2
    assert all(port.partition(":")[0].endswith("0100007F") for port in ports), ports
