"""The benchmark of packing, without a GPU: what it accepts, what it prints, and how it goes on after a failure."""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("packing")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("packed")


class FakeWorker:
    """Answers at once; `breaks` says which question about which kind fails."""

    breaks: tuple[str, str] = ("", "")
    is_cuda = True

    def __init__(self, environment: dict[str, str], compile_threads: int) -> None:
        self.questions: list[tuple[Any, ...]] = []
        self._n = 0

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, method: str, *args: Any) -> None:
        self.questions.append((method, *args))

    def answer(self, until: float) -> Any:
        method, *args = self.questions.pop()
        if (method, args[0] if args else "") == self.breaks:
            raise importlib.import_module("worker").Failed("RuntimeError: so it is")
        if method == "pack":
            self._n = args[-1]
        about = {"kernel": "sdpa", "step": "graph", "step_why": None, "is_cuda": self.is_cuda}
        return {"prepare": about, "run": {"rates": [100.0] * self._n, "losses": [1.0] * self._n}}.get(method)

    def release(self) -> None: ...

    def end(self) -> None:
        assert not self.questions, "an answer was left behind"


def records(packing: Any, monkeypatch: pytest.MonkeyPatch, worker: type[FakeWorker], *args: str) -> list[Any]:
    monkeypatch.setattr(packing, "Worker", worker)
    return list(packing.Packing(packing.parser().parse_args(list(args))).points())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--ways", "threads"], "threads: choose from: processes, mps, streams, one_graph"),
        (["--kinds", "lstm"], "lstm: choose from: transformer_d64, mamba_d64, transformer_d128"),
        (["--counts", "1,17"], "1,17: choose numbers from 1 to 16"),
        (["--counts", "1,-2"], "1,-2: choose numbers from 1 to 16"),
        (["--window-s", "0"], "0: give a number of seconds above 0"),
        (["--seconds-limit", "soon"], "soon: give a number of seconds above 0"),
    ],
)
def test_what_it_does_not_know_is_named(
    packing: Any, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        packing.parser().parse_args(args)
    assert said in capsys.readouterr().err


def test_every_point_of_the_grid_is_measured(packing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = records(packing, monkeypatch, FakeWorker, "--counts", "4,1", "--ways", "processes,streams")
    assert [(r["way"], r["kind"], r["n"]) for r in found] == [
        (way, kind, n) for way in ("processes", "streams") for kind in ("transformer_d64", "mamba_d64") for n in (1, 4)
    ]
    assert [r["steps_per_s"] for r in found] == [100.0, 400.0] * 4


def test_a_kind_that_fails_costs_no_other(packing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = type("Broken", (FakeWorker,), {"breaks": ("prepare", "mamba_d64")})
    found = records(packing, monkeypatch, worker, "--counts", "2", "--ways", "processes,streams")
    assert [(r["kind"], r["status"]) for r in found] == [("transformer_d64", "ok"), ("mamba_d64", "failed")] * 2
    assert found[1]["why"] == "RuntimeError: so it is"


def test_a_point_that_fails_is_named(packing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = type("Broken", (FakeWorker,), {"breaks": ("run", "transformer_d64")})
    found = records(packing, monkeypatch, worker, "--counts", "2", "--ways", "processes")
    assert [r["status"] for r in found] == ["failed", "ok"]
    assert found[0]["why"] == "2 of 2 workers: RuntimeError: so it is"


def test_a_device_that_takes_no_client_makes_a_way_unavailable(packing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = type("Broken", (FakeWorker,), {"breaks": ("touch", "")})
    found = records(packing, monkeypatch, worker, "--counts", "2", "--ways", "processes,streams")
    assert [r["status"] for r in found] == ["unavailable"] * 2 + ["ok"] * 2


def test_without_mps_or_cuda_a_way_says_so(packing: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found, _) = records(packing, monkeypatch, FakeWorker, "--counts", "1", "--ways", "mps")
    assert (found["status"], found["why"]) == ("unavailable", "no nvidia-cuda-mps-control on PATH that may be run")
    worker = type("OnCpu", (FakeWorker,), {"is_cuda": False})
    found = records(packing, monkeypatch, worker, "--counts", "1")
    assert [r["status"] for r in found] == ["ok"] * 2 + ["unavailable"] * 6
    assert found[-1]["why"] == "needs CUDA"


def test_only_the_clients_of_mps_are_told_where_it_is(packing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, str]] = []

    class Told(FakeWorker):
        def __init__(self, environment: dict[str, str], compile_threads: int) -> None:
            super().__init__(environment, compile_threads)
            told.append(environment)

    monkeypatch.setattr(packing.mps, "service", lambda: contextlib.nullcontext({"PIPE": "here"}))
    found = records(packing, monkeypatch, Told, "--kinds", "mamba_d64", "--counts", "2", "--ways", "processes,mps")
    assert [r["steps_per_s"] for r in found] == [200.0, 200.0]
    assert told == [packing.QUEUES, {}, {}, {"PIPE": "here"}, {"PIPE": "here"}]


def test_points_past_the_limit_are_named(packing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = records(packing, monkeypatch, FakeWorker, "--seconds-limit", "1e-9", "--counts", "1,2")
    assert {(r["status"], r["why"]) for r in found} == {("skipped", "past --seconds-limit")}
    assert len(found) == 16


def test_the_tables(packing: Any) -> None:
    about = {"status": "ok", "slowest": 90.0, "fastest": 110.0, "loss_min": 1.0, "loss_max": 1.25, "kernel": "sdpa"}
    about |= {"step": "eager", "step_why": "graph: a|b"}
    points = [
        {"kind": "small", "way": "processes", "n": 1, "steps_per_s": 1000.0} | about,
        {"kind": "small", "way": "processes", "n": 2, "steps_per_s": 1500.0} | about,
        {"kind": "small", "way": "mps", "n": 2, "status": "unavailable", "why": "no daemon"},
    ]
    alone = packing.alone(points, "small")
    assert packing.row(points[1], alone) == (
        "| small | processes | 2 | 1,500.0 | 1.50x | 90.0 | 110.0 | 1.000 to 1.250 | sdpa, eager (graph: a/b) |"
    )
    assert packing.row(points[2], alone) == "| small | mps | 2 | | | | | | unavailable: no daemon |"
    n_columns = {line.count("|") for line in [*packing.HEADER.splitlines(), *(packing.row(p, alone) for p in points)]}
    assert n_columns == {10}
    assert packing.summary(points).splitlines()[2:] == [
        "| small | processes | 1,000.0 | 1,500.0 |",
        "| small | mps |  |  |",
    ]


def test_a_rate_is_taken_between_the_first_and_the_last(packed: Any) -> None:
    assert packed.rate([10.0, 10.5, 11.0]) == pytest.approx(2.0)
    with pytest.raises(RuntimeError, match="2 chunks of steps in the window: too few"):
        packed.rate([10.0, 10.5])


def check_cells(packed: Any, way: str) -> None:
    """Each trains apart from the others and alike, as one by itself."""
    cells = packed.Cells([*packed.SMOKE, "d_model=16", "trainer.batch_size=4", "precision=fp32"])
    assert cells.about["step"] == ("compiled" if cells.about["is_cuda"] else "eager"), cells.about["step_why"]
    losses = []
    for n in (1, 3):
        cells.pack(way, n)
        for _ in range(5):
            for lane in cells._lanes:
                lane.chunk(1)
        if cells._device.type == "cuda":
            packed.torch.cuda.synchronize()
        losses += [cells._mean_loss(memory) for memory in cells._memories[:n]]
    assert losses == pytest.approx(losses[:1] * 4, rel=1e-4)
    assert len({memory[0].data_ptr() for memory in [*cells._memories, cells._start]}) == 4
    for memory in cells._memories:
        moved = [not packed.torch.equal(mine, start) for mine, start in zip(memory, cells._start, strict=True)]
        assert sum(moved) > len(moved) / 2


def test_cells_of_one_process_train_apart(packed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_cells(packed, "streams")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("way", ["streams", "one_graph"])
def test_cells_train_apart_on_one_gpu(packed: Any, way: str) -> None:
    check_cells(packed, way)


@pytest.mark.slow
def test_processes_train_side_by_side(tmp_path: Path) -> None:
    out = tmp_path / "points.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "packing.py"),
        "--smoke",
        "--kinds",
        "transformer_d64",
        "--window-s",
        "1",
    ]
    command += ["--counts", "1,2", "--ways", "processes", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    points = json.loads(out.read_text())["points"]
    assert [(point["n"], point["status"]) for point in points] == [(1, "ok"), (2, "ok")]
    assert all(point["slowest"] > 0 for point in points)
    assert done.stdout.count("| transformer_d64 | processes |") == 3


@pytest.mark.slow
def test_a_worker_says_what_went_wrong_and_how_it_ended(packing: Any) -> None:
    with packing.Worker({}, compile_threads=1) as worker:
        worker.ask("fly")
        with pytest.raises(packing.Failed, match="AttributeError"):
            worker.answer(packing.time.monotonic() + 120)
        worker._process.kill()
        worker._process.join()
        worker.ask("touch")
        with pytest.raises(packing.Failed, match="exit code -9"):
            worker.answer(packing.time.monotonic() + 10)
