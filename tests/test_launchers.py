"""Where cells run: one after the other, or several at once; what is wrong with one of them ends no other."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from cells import cell
from torch.cuda import is_available

from arch_bench import results
from arch_bench.backbone import Backbone
from arch_bench.cell import run
from arch_bench.cell.shape import Shape, Usage, save
from arch_bench.config.schema import Cell, ConfigError
from arch_bench.launchers import joblib
from arch_bench.launchers.base import Done, Job, attempt_silently, run_all
from arch_bench.launchers.basic import Basic
from arch_bench.launchers.joblib import MANY, Joblib, per_device
from arch_bench.results import Outcome, Row


def done(launcher: Basic | Joblib, *cells: Cell) -> list[Done]:
    return list(launcher.run([Job(one, f"cell {i}") for i, one in enumerate(cells)]))


def broken(one: Cell) -> Cell:
    """A budget of parameters makes this process build the backbone, whose class raises what it should not."""
    node = {"_target_": "test_launchers.Broken", "d_model": 16}
    return one.model_copy(update={"backbone": node, "match": one.match.model_copy(update={"params": 10**6})})


class Broken(Backbone):
    def __init__(self, *, d_model: int, vocab_size: int) -> None:
        raise KeyError("width")


def answer(one: Cell, shape: Shape, _: list[Row]) -> list[Row]:
    if one.seed == 1:
        raise KeyError("seed")
    return run.run_shape(one, shape, [])


def test_the_basic_one_keeps_the_order_and_tells_as_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = done(Basic(), *(cell(tmp_path, seed=i) for i in (2, 0)))
    assert [each.rows[0].seed for each in found] == [2, 0]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["cell", "quality", "cell", "quality"]


def test_a_mistake_or_a_bug_before_the_first_row_ends_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = cell(tmp_path, isolate=True)
    monkeypatch.setattr(run.workers, "call", lambda function, *args, **_: function(*args))
    monkeypatch.setattr("hydra.utils.get_class", _class_of)
    mistaken, buggy, good = done(Basic(), one.model_copy(update={"precision": "tf32"}), broken(one), one)
    assert mistaken.mistake is not None
    assert mistaken.mistake.startswith("precision=tf32: needs a CUDA device")
    assert buggy.bug is not None
    assert buggy.bug.startswith("KeyError: 'width' (")
    (log,) = (tmp_path / "logs").iterdir()
    assert str(log) in buggy.bug
    assert "Traceback" in log.read_text()
    assert [row.status for row in good.rows] == ["ok"]
    with pytest.raises(KeyError, match="width"):
        done(Basic(), broken(cell(tmp_path)))


def _class_of(name: str) -> Any:
    from hydra._internal.utils import _locate

    return Broken if name == "test_launchers.Broken" else _locate(name)


def test_a_bug_in_a_phase_is_a_row_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_shape", answer)
    first, second = done(Basic(), *(cell(tmp_path, isolate=True, seed=i) for i in (1, 0)))
    (row,) = first.rows
    assert (row.status, results.read(next((tmp_path / "rows").glob(f"{row.key}*")))) == ("crashed", row)
    (log,) = (tmp_path / "logs").iterdir()
    assert row.reason == f"KeyError: 'seed' ({log})"
    assert "in answer" in log.read_text()
    assert [row.status for row in second.rows] == ["ok"]


def fault(one: Cell, shape: Shape, _: list[Row]) -> list[Row]:
    if one.seed == 1:
        faulthandler._sigsegv()  # type: ignore[attr-defined]
    return save(one, shape, [Outcome(seq_len=16, status="unsupported", reason="no")], Usage())


def test_a_crash_of_native_code_is_a_row_with_its_log_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_shape", fault)
    first, second = done(Basic(), *(cell(tmp_path, isolate=True, seed=i) for i in (1, 0)))
    (log,) = (tmp_path / "logs").iterdir()
    assert [row.reason for row in first.rows] == [f"the process was ended by SIGSEGV ({log})"]
    assert "Segmentation fault" in log.read_text()
    assert "in fault" in log.read_text()
    assert [row.status for row in second.rows] == ["unsupported"]


class AtOnce:
    """In place of several processes: all jobs at the same time, so that none finds a row of another on disk."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        self.rounds.append([job.label for job in jobs])
        together = Barrier(len(jobs), timeout=10)

        def seated(cell: Cell, shape: Shape, *, alone: bool) -> AbstractContextManager[run.Seat]:
            together.wait()
            return nullcontext(run.Seat())

        with ThreadPoolExecutor(len(jobs)) as pool:
            yield from pool.map(lambda job: attempt_silently(job, seated), jobs)


def test_cells_of_one_claim_take_turns_and_the_others_run_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = Outcome(seq_len=16, status="unsupported")
    monkeypatch.setattr(run, "run_shape", lambda one, shape, _: save(one, shape, [outcome], Usage()))
    plain = cell(tmp_path, phases=["speed"])
    other = plain.model_copy(update={"speed": plain.speed.model_copy(update={"tokens_per_step": 512})})
    twin = plain.model_copy(update={"phases": ["decode"], "device": "auto" if not is_available() else "cpu"})
    jobs = [
        Job(each.model_copy(update={"seed": i}), f"{i}{n}") for each, n in ((plain, "a"), (other, "b")) for i in (0, 1)
    ]
    launcher = AtOnce()
    found = list(run_all(launcher, [*jobs, Job(twin.model_copy(update={"seed": 0}), "0c")]))
    assert launcher.rounds == [["0a", "1a"], ["0b", "1b"], ["0c"]]
    assert [each.taken for each in found] == [None] * 5
    assert len(results.load([tmp_path])) == 5
    assert "waiting" not in capsys.readouterr().out


def test_how_many_share_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arch_bench.runtime.threads.usable_cores", lambda: 24)
    assert per_device(1, is_gpu=False, pack="auto") == 12
    assert per_device(1, is_gpu=True, pack="auto") == MANY
    assert per_device(4, is_gpu=True, pack="auto") == 3
    assert per_device(16, is_gpu=True, pack="auto") == 1
    assert per_device(16, is_gpu=True, pack=5) == 5


@pytest.mark.parametrize(
    ("names", "n_jobs", "of_training", "of_timed"),
    [([], 1, "6", None), ([], 9, "6", None), (["0"], 1, None, None), (["0"], 9, "6", None), (["0", "1"], 9, "3", "12")],
    ids=str,
)
def test_threads_of_cpu_cells_do_not_depend_on_how_many_are_left(  # noqa: PLR0917
    names: list[str],
    n_jobs: int,
    of_training: str | None,
    of_timed: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For they are part of the device's name there, and what devices of two names take is not compared."""
    devices = [joblib.Device({"CUDA_VISIBLE_DEVICES": name}, 2**30) for name in names] or [joblib.Device({}, 2**30)]
    found = set()

    def attempt(job: Job, seats: joblib.Seats) -> Done:
        for kind in ("quality", "speed"):
            with seats(job.cell, Shape(kind, [16]), alone=kind == "speed") as seat:
                found.add((kind, seat.setting.env.get("ARCH_BENCH_THREADS")))
                assert seat.setting.env.get("CUDA_VISIBLE_DEVICES", "none") in (names or ["none"])
        return Done(job, [])

    monkeypatch.setattr("arch_bench.runtime.threads.usable_cores", lambda: 24)
    monkeypatch.setattr(joblib.workers, "call", lambda *_, **__: devices)
    monkeypatch.setattr(joblib, "attempt_silently", attempt)
    done(Joblib(pack=4, mps=False), *(cell(tmp_path, isolate=True, seed=i) for i in range(n_jobs)))
    assert found == {("quality", of_training), ("speed", of_timed)}


def test_joblib_refuses_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="pack=0: needs at least 1"):
        Joblib(pack=0, mps="auto")
    with pytest.raises(ConfigError, match="isolate=false: launcher=joblib runs every phase in a process"):
        done(Joblib(pack=2, mps="auto"), cell(tmp_path))
    gpu = joblib.Device({"CUDA_VISIBLE_DEVICES": "0"}, 2**30)
    monkeypatch.setattr(joblib.workers, "call", lambda *_, **__: [gpu])
    one = cell(tmp_path, isolate=True)
    wide = one.model_copy(update={"trainer": one.trainer.model_copy(update={"strategy": "ddp", "devices": 2})})
    with pytest.raises(ConfigError, match=r"trainer\.devices=2: launcher=joblib gives a cell one GPU"):
        done(Joblib(pack=2, mps=False), wide)
    assert done(Joblib(pack=2, mps="auto")) == []


@pytest.mark.slow
def test_joblib_runs_several_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = cell(tmp_path, isolate=True, phases=["decode", "quality"])
    cells = [one.model_copy(update={"seed": i}) for i in range(3)]
    found = done(Joblib(pack=2, mps="auto"), cells[0], cells[1].model_copy(update={"precision": "tf32"}), cells[2])
    assert {each.job.label for each in found} == {"cell 0", "cell 1", "cell 2"}
    for each in found:
        kinds = [] if each.job.label == "cell 1" else ["decode", "quality"]
        assert [row.kind for row in each.rows] == kinds
        assert {row.status for row in each.rows} <= {"ok"}
        assert each.lines[0] == each.job.label
        assert len(each.lines) == 1 + len(kinds)
    assert "2 at a time, 2 on a device; what they print is in logs/" in capsys.readouterr().out
    assert len(list((tmp_path / "logs").iterdir())) == 4
    assert sorted(results.load([tmp_path]), key=str) == sorted((row for each in found for row in each.rows), key=str)
