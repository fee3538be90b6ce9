"""A disk that takes nothing more ends a sweep at once: what was measured is told, nothing is trained for nobody."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
from cells import cell
from test_sweep import Machine, command, exit_code

from arch_bench import results
from arch_bench.cell import claim, run
from arch_bench.launchers import joblib
from arch_bench.launchers.base import Job, run_all
from arch_bench.launchers.basic import Basic
from arch_bench.launchers.joblib import Joblib
from arch_bench.results import Row


def fill(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """From the second seed on."""
    save = results.save

    def refuse(row: Row, path: Path) -> None:
        if row.seed >= 1:
            raise OSError(number, os.strerror(number), f"{path.parent}/tmp123.tmp")
        save(row, path)

    monkeypatch.setattr(results, "save", refuse)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_the_sweep_ends_with_one_line_and_the_figures_it_could_not_save(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(monkeypatch, number)
    machine = Machine(monkeypatch)
    assert exit_code(monkeypatch, command(tmp_path, seeds=(0, 1, 2, 3))) == 1
    assert [seed for _, seed, _ in machine.measured] == [0, 1]
    (kept,) = results.load([tmp_path])
    printed = capsys.readouterr()
    lost = tmp_path / "rows" / results.file_name(kept.config | {"seed": 1}, "quality", 16)
    why = f"{lost}: {os.strerror(number)}"
    assert printed.err == f"arch-bench: {why}; the sweep ends here, for nothing more can be saved\n"
    assert printed.out.count("50.0% of tokens right") == 2
    assert f"seed 1: not saved: {why}\nto run them again" in printed.out


def test_nothing_is_trained_where_not_even_a_claim_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(claim, "SoftFileLease", refuse)
    machine = Machine(monkeypatch)
    assert exit_code(monkeypatch, command(tmp_path)) == 1
    assert not machine.measured
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_wrong_with_one_file_ends_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(monkeypatch, errno.EACCES)
    machine = Machine(monkeypatch)
    assert exit_code(monkeypatch, command(tmp_path, seeds=(1, 0))) is not None
    assert [seed for _, seed, _ in machine.measured] == [1, 0]


def test_it_is_heard_of_from_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(monkeypatch, errno.ENOSPC)
    monkeypatch.setattr(run.workers, "call", _as_from_another)
    Machine(monkeypatch)
    (done,) = run_all(Basic(), [Job(cell(tmp_path, isolate=True, seed=seed), f"seed {seed}") for seed in (1, 2)])
    assert done.full is not None
    assert done.full.endswith(f".json: {os.strerror(errno.ENOSPC)}")
    assert not list(tmp_path.rglob("*.log")), "it is no crash"


def _as_from_another(function: object, *args: object, **_: object) -> object:
    try:
        return function(*args)  # type: ignore[operator]
    except Exception as error:
        raise pickle.loads(pickle.dumps(error)) from None


def test_several_at_once_end_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(monkeypatch, errno.ENOSPC)
    interrupted: list[bool] = []
    monkeypatch.setattr(joblib.workers, "interrupt", lambda: interrupted.append(True))
    monkeypatch.setattr(run.workers, "call", _as_from_another)
    Machine(monkeypatch)
    jobs = [Job(cell(tmp_path, isolate=True, seed=seed), f"seed {seed}") for seed in range(6)]
    found = list(run_all(Joblib(pack=1, mps=False), jobs))
    assert [(done.job.label, done.full is None) for done in found] == [("seed 0", True), ("seed 1", False)]
    assert "50.0% of tokens right" in found[1].lines[-1]
    assert interrupted, "what runs beside it"
