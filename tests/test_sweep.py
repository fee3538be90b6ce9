"""The cells of one command: planned, run round after round, reported; and what its exit code says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cells import TINY

from arch_bench import cli, report, results
from arch_bench.cell import claim, run
from arch_bench.cell.shape import Shape, Usage, save
from arch_bench.config.schema import Cell, compose
from arch_bench.results import Outcome, Row, files
from arch_bench.runtime import workers
from arch_bench.sweep import sweep
from arch_bench.sweep.plan import NO_ESTIMATE
from arch_bench.sweep.sweep import Sweep

FAIR = ["protocol=fair", "protocol.n_rates=3", "protocol.max_extensions=1", "protocol.match=false", "optim.lr=1e-2"]


def command(folder: Path, *overrides: str, seeds: tuple[int, ...] = (0, 1), n_cells: int = 2) -> Sweep:
    """What Hydra makes of a sweep over seeds."""
    found = Sweep()
    for seed in seeds:
        cfg = compose([*TINY, f"results_dir={folder}", f"seed={seed}", *overrides])
        if n_cells > 1:
            found.begin()
        found.add(cfg)
    return found


class Machine:
    """In place of a phase; notes what it measured. Fate: of a cell, the status of its rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fate: Any = lambda cell: "ok") -> None:
        self._fate = fate
        self.measured: list[tuple[str, int, float]] = []
        monkeypatch.setattr(run, "run_shape", self)

    def __call__(self, cell: Cell, shape: Shape, _: list[Row]) -> list[Row]:
        self.measured.append((shape.kind, cell.seed, cell.optim.lr))
        status = self._fate(cell)
        metrics: Any = {"val_loss_nats": 1 / cell.optim.lr, "steps": 2, "train_s": 0.1, "token_accuracy": 0.5}
        outcome = Outcome(
            seq_len=16,
            status=status,
            reason="" if status == "ok" else f"why it {status}",
            metrics=metrics if status == "ok" else {},
        )
        return save(cell, shape, [outcome], Usage(60.0, 2**20))


def test_a_sweep_does_what_is_missing_and_says_so_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch)
    command(tmp_path, seeds=(0,)).run()
    (tmp_path / "rows" / "foreign.json").write_text("{}")
    capsys.readouterr()
    command(tmp_path, seeds=(0, 1, 2)).run()
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "3 cells, 1 done, 2 to run, about 2 min of computing"
    assert [line.split("]")[0] for line in printed.out.splitlines() if line[0] == "["] == ["[1/3", "[2/3", "[3/3"]
    assert f"skipped {tmp_path}/rows/foreign.json: not a row of arch-bench" in printed.err
    assert [seed for _, seed, _ in machine.measured] == [0, 1, 2]
    command(tmp_path, seeds=(2, 1, 0)).run()
    assert len(machine.measured) == 3


def test_sweeps_of_the_same_cells_share_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claim, "GLANCE_S", 0.01)
    are_both_busy = threading.Barrier(2)

    def fate(_: Cell) -> str:
        are_both_busy.wait(60)
        return "ok"

    machine = Machine(monkeypatch, fate)
    both = [command(tmp_path, seeds=(0, 1, 2, 3)) for _ in range(2)]
    with ThreadPoolExecutor() as threads:
        list(threads.map(Sweep.run, both))
    assert sorted(seed for _, seed, _ in machine.measured) == [0, 1, 2, 3], "neither has run alone, nor one cell twice"
    printed = capsys.readouterr().out
    assert "left to another sweep, which runs it" in printed
    print(printed)
    assert not list(tmp_path.glob("claims/*"))


def test_a_dry_run_prints_the_plan_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch)
    for overrides in (["dry_run=true"], ["dry_run=true", *FAIR]):
        planned = command(tmp_path, *overrides)
        planned.run()
        planned.finish()
    assert capsys.readouterr().out.splitlines() == [
        f"2 cells, 0 done, 2 to run{NO_ESTIMATE}",
        f"learning rates, by validation: 3 cells, 0 done, 3 to run; then 2 more{NO_ESTIMATE}",
    ]
    assert not machine.measured
    assert not list(tmp_path.iterdir())


def test_a_fair_sweep_is_interrupted_anywhere_and_chooses_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    machine = Machine(monkeypatch)
    command(whole, *FAIR).run()
    n_shapes = len(machine.measured)
    assert [lr for _, _, lr in machine.measured] == [0.00316, 0.01, 0.0316, 0.1, 0.1, 0.1]
    for n_before in range(n_shapes):
        left = iter(range(n_before and 1))

        def fate(_: Cell, left: Any = left) -> str:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return "ok"

        machine = Machine(monkeypatch, fate)
        with pytest.raises(KeyboardInterrupt):
            command(parts, *FAIR).run()
    machine = Machine(monkeypatch)
    command(parts, *FAIR).run()
    assert len(machine.measured) == 1, "one more each time"
    assert [path.name for path in sorted(parts.glob("rows/*"))] == [path.name for path in sorted(whole.glob("rows/*"))]
    chosen = {row.chosen for row in results.load([parts]) if row.kind == "quality"}
    assert chosen == {row.chosen for row in results.load([whole]) if row.kind == "quality"}
    assert len(chosen) == 1


def test_a_training_that_fails_keeps_its_backbone_from_a_choice_until_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch, lambda cell: "timeout" if cell.optim.lr == 0.0316 else "ok")
    first = command(tmp_path, *FAIR)
    first.run()
    assert [*first.failures.values()] == ["scan timeout: why it timeout"]
    assert {row.kind for row in results.load([tmp_path])} == {"scan"}
    assert "no rate is chosen" in capsys.readouterr().err
    machine = Machine(monkeypatch)
    command(tmp_path, *FAIR).run()
    assert "learning rates, by validation: 3 cells, 2 done, 1 failed before, 1 to run" in capsys.readouterr().out
    assert [lr for _, _, lr in machine.measured] == [0.0316, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("rerun", ["rerun=true", "++rerun=True"])
def test_failures_are_summed_up_with_the_command_that_reruns_them(
    rerun: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["arch-bench", "-m", rerun, "task.n_pairs=1, 2"])
    Machine(monkeypatch, lambda cell: ["ok", "crashed", "oom"][cell.seed])
    found = command(tmp_path, seeds=(0, 1, 2))
    found.run()
    found.finish()
    assert capsys.readouterr().out.rstrip().splitlines()[-3:] == [
        "1 cell failed:",
        "  [2/3] transformer on mqar, seq_len 16, seed 1: quality crashed: why it crashed",
        "to run them again, and nothing that is done: arch-bench -m 'task.n_pairs=1, 2'",
    ]


def test_mistakes_are_repeated_after_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch)
    found = command(tmp_path)
    for seed in (0, 1):
        found.add(compose([*TINY, f"results_dir={tmp_path}", "precision=tf32", f"seed={seed}"]))
    found.run()
    found.finish()
    printed = capsys.readouterr()
    told = "precision=tf32: needs a CUDA device, not cpu; choose from: auto, fp32, bf16"
    assert printed.out.rstrip().splitlines()[-2:] == ["mistakes, to be put right:", f"  {told}"]
    assert printed.err == f"arch-bench: {told}\n"


def test_a_sweep_over_names_reports_each_that_has_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch)
    command(tmp_path, "name=old").run()
    found = Sweep()
    found.begin()
    for name, precision in (("a", "auto"), ("b", "auto"), ("old", "tf32")):
        found.add(compose([*TINY, f"results_dir={tmp_path}", f"name={name}", f"precision={precision}"]))
    found.run()
    found.finish()
    assert {page.parent.name for page in tmp_path.glob("*/report.html")} == {"a", "b"}
    assert {row.experiment for row in results.load([tmp_path])} == {"a", "b", "old"}


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (["protocol=quick"], ["protocol=grid"], "protocol=grid ... protocol=quick"),
        (["protocol=fair"], ["protocol=fair_as_given"], "protocol=fair_as_given ... protocol=fair"),
        (["launcher=joblib"], ["launcher=basic"], "launcher=basic ... launcher=joblib"),
        (FAIR[:1], FAIR[:2], "protocol.n_rates=3 ... protocol.n_rates=7"),
        (["dry_run=true"], ["dry_run=false"], "dry_run=false ... dry_run=true"),
    ],
)
def test_one_command_has_one_protocol_and_launcher(
    first: list[str], second: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    found = Sweep()
    found.begin()
    for overrides in (first, first, second, second):
        found.add(compose([*TINY, f"results_dir={tmp_path}", *overrides]))
    assert exit_code(monkeypatch, found) == 2
    assert found.mistakes == [
        told.replace(" ... ", ": one command has one protocol, launcher and dry_run; it began with ")
    ]
    assert not machine.measured


SEARCH = ["protocol=optuna", "protocol.space={optim.lr:[1e-4,1e-1,log]}"]


@pytest.mark.parametrize(
    "mistaken",
    [[*SEARCH, "protocol.n_trials=0"], ["protocol=optuna", "protocol.space={optim.l:[1,2]}"], ["precision=tf32"]],
)
def test_where_nothing_can_run_old_rows_are_not_reported(
    mistaken: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch)
    command(tmp_path).run()
    capsys.readouterr()
    assert exit_code(monkeypatch, command(tmp_path, *mistaken)) == 2
    printed = capsys.readouterr()
    assert "scores" not in printed.out
    assert printed.err.startswith("arch-bench: ")
    assert not (tmp_path / "adhoc").exists()


def test_a_dry_run_tells_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code(monkeypatch, command(tmp_path, "task.n_pairs=5", "dry_run=true")) == 2
    assert exit_code(monkeypatch, command(tmp_path, "dry_run=true")) is None


def test_a_report_that_cannot_be_written_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch)
    found = command(tmp_path)
    found.run()
    (tmp_path / "adhoc").write_text("a file where a folder should be")
    found.finish()
    printed = capsys.readouterr()
    assert printed.err.startswith(f"arch-bench: no report: {tmp_path}/adhoc")
    assert "report:" not in printed.out


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a terminal; they end this process never."""
    monkeypatch.setattr(workers, "interrupt", lambda: None)  # of all calls that this process will ever make
    every = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda *_: None) for each in every]
    yield
    for signum, handler in zip(every, before, strict=True):
        signal.signal(signum, handler)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_in_order(
    signum: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch, lambda cell: signal.raise_signal(signum) if cell.seed else "ok")
    ended = command(tmp_path, seeds=(0, 1, 2))
    monkeypatch.setattr(ended, "finish", lambda: signal.raise_signal(signal.SIGHUP))  # a closing terminal sends several
    assert exit_code(monkeypatch, ended) == 128 + signum
    assert [seed for _, seed, _ in machine.measured] == [0, 1]
    assert capsys.readouterr().err.count("interrupted; finished rows are kept") == 1


@pytest.mark.usefixtures("signals")
def test_a_signal_while_a_report_is_made_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch, lambda cell: "crashed" if cell.seed else "ok")
    with monkeypatch.context() as patched:
        patched.setattr(report, "build", lambda *_: signal.raise_signal(signal.SIGINT))
        assert exit_code(monkeypatch, command(tmp_path)) == 130
    assert capsys.readouterr().err == (
        "arch-bench: interrupted while reporting; all rows are kept, the same command reports them\n"
    )
    assert len(results.load([tmp_path])) == 2


def test_a_reader_that_leaves_costs_neither_cells_nor_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    Machine(monkeypatch)
    with os.fdopen(writing, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        monkeypatch.setattr(sys, "stderr", unread)
        assert exit_code(monkeypatch, command(tmp_path)) is None
    assert len(results.load([tmp_path])) == 2
    assert (tmp_path / "adhoc" / "report.html").exists()


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["ok", "ok"], None),
        (["oom", "unsupported"], None),
        (["ok", "diverged"], None),
        (["crashed", "ok"], 1),
        (["ok", "timeout"], 1),
    ],
)
@pytest.mark.parametrize("n_cells", [1, 2])
def test_the_exit_code_is_0_when_all_is_final(
    statuses: list[str], code: int | None, n_cells: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch, lambda cell: statuses[cell.seed])
    assert exit_code(monkeypatch, command(tmp_path, n_cells=n_cells)) == code
    assert exit_code(monkeypatch, command(tmp_path, n_cells=n_cells, seeds=())) is None


def test_a_mistake_outweighs_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, lambda cell: "crashed")
    found = command(tmp_path)
    found.add(compose([*TINY, f"results_dir={tmp_path}", "precision=tf32"]))
    assert exit_code(monkeypatch, found) == 2
    assert (len(found.failures), len(found.mistakes)) == (2, 1)


def exit_code(monkeypatch: pytest.MonkeyPatch, found: Sweep) -> int | None:
    """Of the command, once Hydra has composed its cells."""
    monkeypatch.setattr(cli, "compose", lambda: None)
    monkeypatch.setattr(cli, "SWEEP", found)
    monkeypatch.setattr(sys, "argv", ["arch-bench"])
    before = [(each, signal.getsignal(each)) for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]
    try:
        cli.main()
    except SystemExit as end:
        return end.code  # type: ignore[return-value]
    finally:
        for signum, handler in before:
            signal.signal(signum, handler)
    return None


def test_what_killed_writers_left_among_the_rows_goes_a_day_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch)
    rows = tmp_path / "rows"
    rows.mkdir()
    for name in ("old.tmp", "new.tmp"):
        (rows / name).touch()
    (rows / "old.tmp").touch()
    monkeypatch.setattr(files, "_STALE_S", 0.0)
    command(tmp_path).run()
    assert not list(rows.glob("*.tmp"))
    monkeypatch.setattr(files, "_STALE_S", 86_400.0)
    (rows / "new.tmp").touch()
    command(tmp_path).run()
    assert [path.name for path in rows.glob("*.tmp")] == ["new.tmp"]


@pytest.mark.slow
def test_composing_many_is_announced_and_done_once(tmp_path: Path) -> None:
    seeds = f"seed=range({sweep.MANY + 1})"
    args = [sys.executable, "-m", "arch_bench", "-m", *TINY, seeds, "dry_run=true", f"results_dir={tmp_path}"]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"composing {sweep.MANY + 1} cells",
        f"{sweep.MANY + 1} cells, 0 done, {sweep.MANY + 1} to run{NO_ESTIMATE}",
    ]


def test_equal_cells_count_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep()
    sweep.begin()
    for same in ("optim.lr=1e-3", "optim.lr=0.001", "backbone.dropout=0", "seed=4"):
        sweep.add(compose([*TINY, same, "dry_run=true", f"results_dir={tmp_path}"]))
    sweep.run()
    assert capsys.readouterr().out == f"2 cells, 0 done, 2 to run{NO_ESTIMATE}\n"
