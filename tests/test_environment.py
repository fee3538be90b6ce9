"""No variable of the environment steers a training: neither Lightning's own, nor those of batch systems."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.fabric.plugins import environments
from lightning.fabric.utilities import rank_zero
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger

from arch_bench.cell import run
from arch_bench.config.schema import Cell, cell_of, compose
from arch_bench.results import Metrics
from arch_bench.runtime import environment, server, workers
from arch_bench.train import fit
from arch_bench.train.team import SOLO
from arch_bench.train.trainer import make_trainer

CPU = torch.device("cpu")
ARGUMENTS = sorted(inspect.signature(L.Trainer).parameters)
CLUSTERS = [each for each in vars(environments).values() if inspect.isclass(each)]
DETECTED = [environments.TorchElasticEnvironment, environments.SLURMEnvironment, environments.LSFEnvironment]
SOURCES = [inspect.getsource(inspect.getmodule(each)) for each in CLUSTERS] + [inspect.getsource(rank_zero)]  # type: ignore[arg-type]
READ = sorted(set(re.findall(r'"([A-Z]+(?:_[A-Z]+)*)"', "\n".join(SOURCES))) - {"XLA"})
"""Every variable that Lightning's cluster environments read."""
TINY = [
    *("logger=none", "device=cpu", "seq_len=16", "d_model=16", "n_layers=1", "phases=[quality]", "eval_scales=[1]"),
    *("task.n_pairs=2", "task.vocab_size=32", "backbone=lstm", "trainer.max_steps=4", "trainer.batch_size=2"),
    *("trainer.val_every=2", "trainer.n_val_batches=1", "trainer.n_test_batches=4", "isolate=false"),
]


def tiny(folder: Path, *overrides: str) -> Cell:
    return cell_of(compose([*TINY, f"results_dir={folder}", *overrides]))


def measured(cell: Cell) -> Metrics:
    (row,) = run.run_cell(cell, say=lambda row: None)
    assert row.status == "ok", row.reason
    return {name: value for name, value in row.metrics.items() if not name.endswith("_s")}


def bare(**options: Any) -> L.Trainer:
    return make_trainer(SOLO, CPU, [], None, max_steps=3, **options)


def test_lightning_reads_what_is_believed() -> None:
    assert {"RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK", "WORLD_SIZE"} <= set(READ)
    assert {"fast_dev_run", "limit_train_batches", "overfit_batches", "max_time"} <= set(ARGUMENTS)


def test_every_argument_of_a_trainer_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not would be read from the environment."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(L, "Trainer", lambda **arguments: given.update(arguments) or bare_trainer)
    bare_trainer = type("Bare", (), {})()
    bare()
    assert set(given) == set(ARGUMENTS)


@pytest.mark.parametrize("value", ["1", "0", "nonsense"])
def test_no_argument_of_a_trainer_comes_from_the_environment(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for argument in ARGUMENTS:
        monkeypatch.setenv(f"PL_TRAINER_{argument.upper()}", value)
    trainer = bare()
    assert (trainer.max_steps, trainer.max_epochs, trainer.limit_train_batches, trainer.fast_dev_run) == (3, 1, 1.0, 0)
    assert (trainer.callbacks, trainer.loggers, trainer.overfit_batches) == ([], [], 0.0)


@pytest.mark.parametrize("value", ["1", "", "abc"])
def test_every_variable_of_a_batch_system_is_ignored(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = measured(tiny(tmp_path / "plain"))
    for name in READ:
        monkeypatch.setenv(name, value)
    for argument in ARGUMENTS:
        monkeypatch.setenv(f"PL_TRAINER_{argument.upper()}", "1")
    monkeypatch.setenv("PL_SEED_WORKERS", value)
    assert measured(tiny(tmp_path / "there")) == want
    assert {name for name in READ if os.environ.get(name) == value} == set(READ), "they are the user's again"


def test_a_rank_of_the_environment_costs_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 3)  # as when Lightning was imported with RANK=3
    logger = CSVLogger(tmp_path)
    fit.measure(tiny(tmp_path), [16], logger)
    assert "train/loss" in Path(logger.log_dir, "metrics.csv").read_text()


def test_nothing_is_detected_where_a_phase_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in READ:
        monkeypatch.setenv(name, "1")
    with environment.hidden():
        assert rank_zero._get_rank() is None
        found = [each.__name__ for each in DETECTED if each.detect()]  # type: ignore[attr-defined]
    assert found == []


def test_the_server_of_processes_starts_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(server.forkserver, "ensure_running", lambda: seen.append(dict(os.environ)))
    monkeypatch.setenv("RANK", "abc")
    server.start()
    assert [each.get("RANK") for each in seen] == [None]


@pytest.mark.slow
def test_a_fresh_process_imports_lightning_whatever_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning reads its rank as a number when it is imported, in the server that processes are forked from."""
    server.forkserver._forkserver._stop()
    monkeypatch.setenv("RANK", "abc")
    monkeypatch.setenv("SLURM_PROCID", "")
    try:
        assert workers.call(_rank, time_limit_s=60) == (0, None)
    finally:
        server.forkserver._forkserver._stop()


def _rank() -> tuple[int, str | None]:
    return rank_zero_only.rank, os.environ.get("RANK")


def test_no_checkpoint_of_a_batch_system_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hpc_ckpt_1.ckpt").write_bytes(b"of somebody else")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    trainer = bare()
    assert trainer._checkpoint_connector._hpc_resume_path is None
    assert measured(tiny(tmp_path / "r"))["steps"] == 4


def test_no_callback_of_an_installed_package_joins_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.trainer.connectors import callback_connector

    monkeypatch.setattr(callback_connector, "_load_external_callbacks", lambda group: [L.Callback()])
    ours = L.Callback()
    assert make_trainer(SOLO, CPU, [ours], None, max_steps=3).callbacks == [ours]


def test_what_is_set_on_purpose_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*READ, "WANDB_RUN_ID"):
        monkeypatch.setenv(name, "1")
    assert environment.notice(tracks=False) == "", "batch systems set theirs without being asked"
    assert environment.notice(tracks=True).startswith("WANDB_RUN_ID: is ignored")
    monkeypatch.setenv("PL_TRAINER_FAST_DEV_RUN", "1")
    assert environment.notice(tracks=False).startswith("PL_TRAINER_FAST_DEV_RUN: is ignored")
    assert "PL_TRAINER_FAST_DEV_RUN, WANDB_RUN_ID: are ignored" in environment.notice(tracks=True)
