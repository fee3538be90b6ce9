"""A training that was interrupted goes on where it stopped, and its rows are those of one that was not."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from models import CORE

from arch_bench import results
from arch_bench.cell import run
from arch_bench.cell.shape import Shape
from arch_bench.config.schema import Cell, cell_of, compose
from arch_bench.results import Row, provenance
from arch_bench.runtime import workers
from arch_bench.train import checkpoint, fit
from arch_bench.train.team import Team

TINY = [
    *("logger=none", "device=cpu", "seq_len=16", "d_model=16", "n_layers=1", "phases=[quality]", "eval_scales=[1,2]"),
    *("task.n_pairs=2", "task.vocab_size=32", "optim.lr=1e-2", "backbone.dropout=0.1", "trainer.max_steps=60"),
    *("trainer.batch_size=4", "trainer.val_every=20", "trainer.n_val_batches=1", "trainer.n_test_batches=1"),
]
VARIES = {"train_s", "compile_s", "n_attempts"}
"""Times, and how many processes it took."""


def tiny(folder: Path, *overrides: str) -> Cell:
    return cell_of(compose([*TINY, "isolate=false", f"results_dir={folder}", *overrides]))


def measured(cell: Cell) -> list[Row]:
    return run.run_cell(cell, say=lambda row: None)


def saved(cell: Cell) -> Path:
    return checkpoint.path_of(run.settle(cell))


def contents(rows: list[Row]) -> list[dict[str, Any]]:
    """What a row says, without times, places, and the state of the checkout."""
    left_out = {"created_at", "config", "commit", "dirty", "wall_s", "process_bytes"}
    found = []
    for row in rows:
        fields = {name: value for name, value in vars(row).items() if name not in left_out}
        found.append(fields | {"metrics": {k: v for k, v in row.metrics.items() if k not in VARIES}})
    return found


class At(fit.Watch):
    """Does something once, after the block that ends at a step."""

    step, then = 0, staticmethod(lambda: None)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        if trainer.global_step == type(self).step:
            type(self).then()


def plan(monkeypatch: pytest.MonkeyPatch, step: int, then: Callable[[], None]) -> None:
    watch = type("Watch", (At,), {"step": step, "then": staticmethod(then)})
    watch.__qualname__ = "Watch"  # by which Lightning knows its state
    monkeypatch.setattr(fit, "Watch", watch)


def ask() -> None:
    signal.raise_signal(signal.SIGTERM)


def stop(cell: Cell, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in this process until it is asked to end in the block that ends at a step."""
    with monkeypatch.context() as patch:
        plan(patch, step, ask)
        with pytest.raises(SystemExit) as end:
            measured(cell)
    assert end.value.code == 143
    assert torch.load(saved(cell), weights_only=True)["global_step"] == step


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *(pytest.param("lstm", step) for step in (20, 30)),
        *(pytest.param(name, step, marks=pytest.mark.slow) for name in CORE if name != "lstm" for step in (20, 30)),
    ],
)
def test_rows_do_not_show_that_training_was_asked_to_end(
    name: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = f"backbone={name}"
    whole = measured(tiny(tmp_path / "whole", chosen))
    cell = tiny(tmp_path / "parts", chosen)
    stop(cell, step, monkeypatch)
    assert not results.load([tmp_path / "parts"])
    rows = measured(cell)
    assert contents(rows) == contents(whole)
    assert {row.status for row in rows} == {"ok"}
    assert {row.metrics["n_attempts"] for row in rows} == {2}
    assert {row.metrics["n_attempts"] for row in whole} == {1}
    assert not list((tmp_path / "parts" / "checkpoints").iterdir())


def end_by(signum: int, cell: Cell, shape: Shape, earlier: list[Row]) -> list[Row]:
    """Measure in a process that a signal meets in the block that ends at step 30."""
    with pytest.MonkeyPatch.context() as patch:
        plan(patch, 30, lambda: os.kill(os.getpid(), signum))
        return run.run_shape(cell, shape, earlier)


@pytest.mark.parametrize(
    ("name", "signum"),
    [
        pytest.param("lstm", signal.SIGKILL),
        pytest.param("lstm", signal.SIGTERM, marks=pytest.mark.slow),
        *(
            pytest.param(name, signum, marks=pytest.mark.slow)
            for name in CORE
            if name != "lstm"
            for signum in (signal.SIGTERM, signal.SIGKILL)
        ),
    ],
)
def test_rows_do_not_show_that_the_process_was_ended(
    name: str, signum: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [f"backbone={name}", "isolate=true", f"checkpoint_every_s={1e-6 if signum == signal.SIGKILL else 600}"]
    whole = measured(tiny(tmp_path / "whole", *chosen))
    cell = tiny(tmp_path / "parts", *chosen)
    with monkeypatch.context() as patch:
        patch.setattr(run, "run_shape", partial(end_by, signum))
        failed = measured(cell)
    assert {row.status for row in failed} == {"crashed"}
    assert f"ended by {signum.name}" in failed[0].reason
    reached = 20 if signum == signal.SIGKILL else 30
    assert torch.load(saved(cell), weights_only=True)["global_step"] == reached
    rows = measured(cell)
    assert contents(rows) == contents(whole)
    assert {row.metrics["n_attempts"] for row in rows} == {2}


def dawdle(cell: Cell, shape: Shape, earlier: list[Row]) -> list[Row]:
    """Measure in a process that does not get beyond step 30 before it is asked to end."""

    def wait() -> None:
        Path(cell.results_dir, "waits").touch()
        saver = signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr]
        while not saver._is_asked:
            time.sleep(0.01)

    with pytest.MonkeyPatch.context() as patch:
        plan(patch, 30, wait)
        return run.run_shape(cell, shape, earlier)


def test_after_a_time_limit_the_next_try_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = tiny(tmp_path, "backbone=lstm", "isolate=true")

    def lose_patience(*_: Any) -> None:
        end = time.monotonic() + 60
        while not (tmp_path / "waits").exists() and time.monotonic() < end:
            time.sleep(0.01)
        raise workers.TimedOut("too long")

    with monkeypatch.context() as patch:
        patch.setattr(run, "run_shape", dawdle)
        patch.setattr(workers, "_receive", lose_patience)
        assert {row.status for row in measured(cell)} == {"timeout"}
    assert torch.load(saved(cell), weights_only=True)["global_step"] == 30, "asked to end, it has saved"
    rows = measured(tiny(tmp_path, "backbone=lstm"))
    assert {(row.status, row.metrics["n_attempts"]) for row in rows} == {("ok", 2)}


def test_when_it_was_solved_is_known_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    easy = ["task=copy_memory", "task.n_data=1", "task.n_symbols=2", "backbone=lstm", "trainer.max_steps=140"]
    shared = [override for override in TINY if not override.startswith(("task.", "trainer.max_steps"))]

    def cell(name: str) -> Cell:
        return cell_of(compose([*shared, *easy, "isolate=false", f"results_dir={tmp_path / name}"]))

    whole = measured(cell("whole"))
    assert whole[0].metrics["steps_to_99"] <= 100  # type: ignore[operator]
    stop(cell("parts"), 130, monkeypatch)
    assert contents(measured(cell("parts"))) == contents(whole)


def test_a_loss_that_is_no_number_is_not_saved(tmp_path: Path) -> None:
    wild = ["optim.lr=1e30", "optim.clip_norm=0", "backbone=lstm"]
    whole = measured(tiny(tmp_path / "whole", *wild, "checkpoint_every_s=null"))
    rows = measured(tiny(tmp_path / "parts", *wild, "checkpoint_every_s=1e-6"))
    assert contents(rows) == contents(whole)
    assert {row.status for row in rows} == {"diverged"}
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A cell whose training was interrupted."""
    cell = run.settle(tiny(tmp_path, "backbone=lstm"))
    stop(cell, 30, monkeypatch)
    return cell


@pytest.mark.parametrize("fate", [Path.unlink, lambda path: path.write_bytes(b"torn")], ids=["removed", "replaced"])
def test_what_another_sweep_does_to_the_file_disturbs_nobody(
    fate: Callable[[Path], None], stopped: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has finished the same training, or saves another state of it, while this one goes on from what it found."""
    find = checkpoint.Checkpoint.find

    def found(self: checkpoint.Checkpoint, *args: Any) -> Path | None:
        path = find(self, *args)
        fate(saved(stopped))
        return path

    whole = measured(stopped.model_copy(update={"results_dir": str(tmp_path / "whole")}))
    monkeypatch.setattr(checkpoint.Checkpoint, "find", found)
    rows = measured(stopped)
    assert contents(rows) == contents(whole)
    assert {row.metrics["n_attempts"] for row in rows} == {2}


def test_ranks_that_found_different_states_start_afresh(stopped: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    class Torn(Team):
        def together(self, name: str) -> str:
            return f"{name}+another"

    assert finder(stopped).find(Torn()) is None
    assert "was replaced while it was read: training starts afresh" in capsys.readouterr().err


def test_a_checkpoint_beside_its_rows_is_removed(stopped: Cell) -> None:
    kept = saved(stopped).read_bytes()
    first = measured(stopped)
    saved(stopped).write_bytes(kept)
    assert measured(stopped) == first
    assert not saved(stopped).exists()


def finder(cell: Cell, **data: str) -> checkpoint.Checkpoint:
    return checkpoint.Checkpoint(cell, torch.device("cpu"), dict(data))


def test_a_file_that_is_damaged_or_no_checkpoint_is_named_and_left(
    stopped: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(stopped)
    good = path.read_bytes()
    assert finder(stopped).find() == path
    for bad in (b"", b"text", b"PK\x03\x04", pickle.dumps([1]), *(good[: len(good) * i // 4] for i in (1, 2, 3))):
        path.write_bytes(bad)
        assert finder(stopped).find() is None
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line
        assert "is damaged: its content and its checksum differ: training starts afresh" in line
    for foreign in ([1], {}, {"arch_bench": {}}):
        checkpoint.WholeFiles().save_checkpoint(foreign, path)  # type: ignore[arg-type]
        assert finder(stopped).find() is None
    assert capsys.readouterr().err.count("cannot be read") == 3
    assert {row.status for row in measured(stopped)} == {"ok"}, "training starts afresh"


def test_no_flipped_bit_goes_on(stopped: Cell, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torch.load takes what it finds: the checksums of its archive are written, and never read."""
    path = saved(stopped)
    good = path.read_bytes()
    places = [*range(0, len(good), len(good) // 40), len(good) - 1]
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        assert finder(stopped).find() is None
    assert capsys.readouterr().err.count(f"{path} is damaged") == len(places)
    rows = measured(stopped)
    assert contents(rows) == contents(measured(stopped.model_copy(update={"results_dir": str(tmp_path / "whole")})))
    assert {row.metrics["n_attempts"] for row in rows} == {1}


def test_what_another_code_device_or_corpus_has_made_is_named_and_left(
    stopped: Cell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finder(stopped, corpus="other").find() is None
    assert "of another data" in capsys.readouterr().err
    monkeypatch.setattr(provenance, "code", lambda: "other")
    assert finder(stopped).find() is None
    monkeypatch.setattr(checkpoint, "device_name", lambda _: "other")
    assert finder(stopped).find() is None
    assert "is of another code and another device: training starts afresh" in capsys.readouterr().err


def test_none_is_written_or_read_when_nobody_wants_it(stopped: Cell, tmp_path: Path) -> None:
    unwanted = stopped.model_copy(update={"checkpoint_every_s": None})
    assert results.cell_key(unwanted.model_dump()) == results.cell_key(stopped.model_dump())
    assert finder(unwanted).find() is None
    rows = measured(unwanted.model_copy(update={"results_dir": str(tmp_path / "other")}))
    assert {row.metrics["n_attempts"] for row in rows} == {1}
    assert not (tmp_path / "other" / "checkpoints").exists()


def test_a_full_disk_costs_the_checkpoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", refuse)
    rows = measured(tiny(tmp_path, "backbone=lstm", "checkpoint_every_s=1e-6"))
    assert {row.status for row in rows} == {"ok"}
    assert f"no checkpoint: {saved(tiny(tmp_path, 'backbone=lstm'))}: PytorchStream" in capsys.readouterr().err
    assert not list((tmp_path / "checkpoints").iterdir())


def test_what_killed_writers_left_is_swept_a_day_later(tmp_path: Path) -> None:
    old, new = (tmp_path / "checkpoints" / f"{name}.tmp" for name in ("old", "new"))
    old.parent.mkdir()
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    measured(tiny(tmp_path, "backbone=lstm"))
    assert [path.name for path in old.parent.iterdir()] == ["new.tmp"]


def command(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """`arch-bench` in a group of its own, training for some seconds."""
    dials = [*TINY, "backbone=lstm", "trainer.max_steps=3000", "trainer.val_every=500", f"results_dir={folder}", *more]
    args = [sys.executable, "-m", "arch_bench", *dials]
    return subprocess.Popen(args, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("whole")
    assert command(folder).wait(timeout=300) == 0
    return results.load([folder])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda command: command.terminate(), 143),
        (lambda command: os.killpg(command.pid, signal.SIGTERM), 143),
        (lambda command: os.killpg(command.pid, signal.SIGINT), 130),
        (lambda command: command.kill(), -9),
        (lambda command: os.killpg(command.pid, signal.SIGKILL), -9),
    ],
    ids=["terminate", "terminate the group", "ctrl-c", "kill", "kill the group"],
)
def test_the_same_command_goes_on(
    end: Callable[[subprocess.Popen[bytes]], None], code: int, undisturbed: list[Row], tmp_path: Path
) -> None:
    first = command(tmp_path, "checkpoint_every_s=0.1")
    limit = time.monotonic() + 300
    while not list(tmp_path.rglob("*.ckpt")) and time.monotonic() < limit:
        time.sleep(0.01)
    end(first)
    assert first.wait(timeout=60) == code
    assert command(tmp_path).wait(timeout=300) == 0
    rows = results.load([tmp_path])
    assert contents(rows) == contents(undisturbed)
    assert {row.metrics["n_attempts"] for row in rows} == {2}
