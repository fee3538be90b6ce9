"""Weights & Biases without an account or a network, read back with its own tool."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arch_bench import results, tracking
from arch_bench.cell import run
from arch_bench.cell.run import final
from arch_bench.cell.shape import Shape, Usage, run_shape, to_row
from arch_bench.config.schema import Cell, ConfigError, Logger, cell_of, compose
from arch_bench.results import Outcome, Row
from arch_bench.runtime import environment, workers
from arch_bench.train import fit
from arch_bench.train.optimizer import rate_factor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what W&B's own imports warn of

TINY = [
    "isolate=false",
    "name=tracked",
    "seq_len=16",
    "d_model=16",
    "n_layers=1",
    "task.n_pairs=2",
    "task.vocab_size=64",
    "eval_scales=[1,2]",
    "trainer.max_steps=20",
    "trainer.batch_size=4",
    "trainer.val_every=10",
    "decode.lengths=[16,64]",
    "decode.n_tokens=2",
    "phases=[decode,quality]",
]


def tiny(folder: Path, *overrides: str) -> Cell:
    return cell_of(compose([*TINY, f"results_dir={folder}", *overrides]))


def measured(cell: Cell) -> list[Row]:
    return run.run_cell(cell, say=lambda row: None)


def runs(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/*run-*/*.wandb"))


def records(log: Path) -> list[dict[str, Any]]:
    """The transaction log of one run, by `wandb leet`."""
    tool = shutil.which("wandb", path=str(Path(sys.executable).parent)) or "wandb"
    command = [tool, "leet", "inspect", "--json", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in found if record["type"] == "history"]


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {k: v for r in found if r["type"] == "summary" for k, v in r["summary"].get("update", {}).items()}


def exit_codes(found: list[dict[str, Any]]) -> list[int]:
    return [record["exit"].get("exit_code", 0) for record in found if record["type"] == "exit"]


def test_kernels_side_by_side_do_not_meet_in_one_metric() -> None:
    rows = [SimpleNamespace(kind="kernels", kernel=name, metrics={"forward_ms": 1.0}) for name in ("flex", "blocks")]
    assert set(tracking._points(iter(rows))) == {  # type: ignore[arg-type]
        "bench/kernels/flex/forward_ms",
        "bench/kernels/blocks/forward_ms",
    }


def test_an_offline_run_holds_curves_config_rows_and_its_x_axis(tmp_path: Path) -> None:
    rows = measured(tiny(tmp_path))
    (log,) = runs(tmp_path)
    found = records(log)
    opened = next(record["run"] for record in found if record["type"] == "run")
    assert opened["run_group"] == "tracked"
    assert set(opened["tags"]) == {"transformer", "mqar"}
    assert opened["config"]["update"]["d_model"] == 16
    points = history(found)
    rates = {p["trainer/global_step"]: p["train/lr"] for p in points if "train/lr" in p}
    expected = 1e-3 * rate_factor(torch.tensor(9), 20, tiny(tmp_path).optim).item()
    assert rates[10] == pytest.approx(expected), "the rate of the tenth step"
    assert {p["trainer/global_step"] for p in points if "train/loss" in p and "train/grad_norm" in p} == {10, 20}
    assert not any("test/token_accuracy" in point for point in points), "a length cannot be told on that axis"
    assert {point["trainer/global_step"] for point in points if "val/token_accuracy" in point} == {10, 20}
    drawn = {p["seq_len"]: p["bench/quality/token_accuracy"] for p in points if "bench/quality/token_accuracy" in p}
    assert drawn == {row.seq_len: row.metrics["token_accuracy"] for row in rows if row.kind == "quality"}
    assert {p["seq_len"] for p in points if "bench/decode/ms_per_token" in p} == {16, 64}
    steps = {
        m["glob_name"]: m["step_metric"]
        for m in (r["metric"] for r in found if r["type"] == "metric")
        if "glob_name" in m
    }
    assert steps == {"train/*": "trainer/global_step", "val/*": "trainer/global_step", "bench/*": "seq_len"}
    (table,) = (point for point in points if "rows.nrows" in point)
    assert table["rows.nrows"] == len(rows) == 4
    shown = summary(found)
    assert shown["n_params"] == rows[0].metrics["n_params"]
    assert shown["state_bytes"] == rows[1].metrics["state_bytes"]
    assert (shown["kernel"], shown["status"], shown["reason"]) == ("sdpa", "ok", "")
    short, long = (row.metrics["token_accuracy"] for row in rows if row.kind == "quality")
    assert (shown["bench/quality/token_accuracy"], shown["bench/quality/32/token_accuracy"]) == (short, long)
    assert "seq_len" not in shown, "the last one says nothing"
    assert exit_codes(found) == [0]


def opened(log: Path) -> dict[str, Any]:
    """What a run is called, as its log says."""
    return next(record["run"] for record in records(log) if record["type"] == "run")


OTHERS = [*(name for name in environment.W_AND_B if "*" not in name), "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"]


def test_what_an_agent_or_a_shell_says_of_one_run_is_said_of_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    wandb.teardown()  # it reads its environment once
    cells = [tiny(tmp_path, f"seed={seed}", "phases=[decode]", "decode.lengths=[16]") for seed in (0, 1)]
    with monkeypatch.context() as patch:
        for name in OTHERS:
            patch.setenv(name, "a:b")  # much of which W&B refuses
        patch.setenv("SM_TRAINING_ENV", "{}")
        patch.setenv("TRAINING_JOB_NAME", "sagemaker")
        patch.setenv("WANDB_TAGS", f"mine,,{'long' * 20}, mine")
        patch.setenv("WANDB_NOTES", "as asked for")
        for cell in cells:
            measured(cell)
        assert os.environ["WANDB_RUN_ID"] == "a:b"
    wandb.teardown()
    found = [opened(log) for log in runs(tmp_path)]
    assert len({made["run_id"] for made in found}) == 2
    for made, cell in zip(sorted(found, key=lambda made: made["display_name"]), cells, strict=True):
        assert made["run_id"].startswith(results.cell_key(final(cell)[0].model_dump()))
        assert (made["run_group"], made["display_name"]) == ("tracked", f"transformer mqar 16 seed {cell.seed}")
        assert (made["project"], made["notes"]) == ("arch-bench", "as asked for")
        assert made["tags"] == ["transformer", "mqar", "mine", ("long" * 20)[:64]]
        assert "sweep_id" not in made


def test_every_setting_that_names_a_run_is_ours_or_is_honoured() -> None:
    """Read off W&B's own list, so that a new one is noticed."""
    import wandb

    naming = ("run_", "resume", "fork", "sweep", "launch", "entity", "project", "reinit", "config_", "job_name")
    special = {"run_name": "name", "run_notes": "notes", "run_tags": "tags", "run_job_type": "job_type"}
    fields = [special.get(name, name) for name in wandb.Settings.model_fields if name.startswith(naming)]
    honoured = {"WANDB_NOTES", "WANDB_JOB_TYPE", *tracking._SAID, "WANDB_RESUMED"}  # the last is for reading
    assert {f"WANDB_{name.upper()}" for name in fields} <= {*environment.W_AND_B, *honoured}


@pytest.mark.parametrize("name", ["a", "a b", "a/b", "a\\b", "a#b", "a?b", "a%b", "a:b", "x" * 128, "x" * 129])
def test_a_project_that_w_and_b_refuses_is_refused_before_anything_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    try:
        wandb.Settings(project=name)
    except wandb.UsageError:
        is_refused = True
    else:
        is_refused = False
    with pytest.raises(ConfigError, match=r"logger\.project=") if is_refused else nullcontext():
        assert cell_of(compose([f"logger.project='{name}'"])).logger.project == name
    monkeypatch.setenv("WANDB_PROJECT", name)
    with pytest.raises(ConfigError, match=r"logger\.project=") if is_refused else nullcontext():
        assert cell_of(compose([])).logger.project == name
    assert cell_of(compose(["logger.project=given"])).logger.project == "given"


def test_project_and_team_come_from_the_environment_where_the_command_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cell_of(compose([])).logger == Logger(kind="wandb", project="arch-bench", entity=None)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert cell_of(compose([])).logger == Logger(kind="wandb", project="theirs", entity="team")
    monkeypatch.setenv("WANDB_PROJECT", "")
    assert cell_of(compose(["logger.entity=null"])).logger == Logger(kind="wandb", project=None, entity=None)


def test_names_of_any_length_are_tracked(tmp_path: Path) -> None:
    cell = tiny(tmp_path, "phases=[decode]", "decode.lengths=[16]", f"name={'n' * 200}")
    measured(cell.model_copy(update={"backbone_name": "b" * 100, "task_name": "t" * 100}))
    (log,) = runs(tmp_path)
    assert opened(log)["tags"] == ["b" * 64, "t" * 64]


def test_an_interrupted_training_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = tiny(tmp_path, "phases=[quality]", "eval_scales=[1]", "backbone=lstm")
    with monkeypatch.context() as patch:
        patch.setattr(fit.Watch, "on_validation_end", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit):
            measured(cell)
    (row,) = measured(cell)
    assert row.metrics["n_attempts"] == 2
    first, second = (records(log) for log in runs(tmp_path))
    ids = [next(record["run"]["run_id"] for record in found if record["type"] == "run") for found in (first, second)]
    assert ids[0] == ids[1]
    curves = [[p["trainer/global_step"] for p in history(found) if "train/loss" in p] for found in (first, second)]
    assert curves == [[10], [20]]
    assert not list((tmp_path / "checkpoints").iterdir()), "the next training of this cell is another run"
    measured(cell.model_copy(update={"rerun": True}))
    assert len({opened(log)["run_id"] for log in runs(tmp_path)}) == 2


def test_where_runs_are_kept_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [tiny(tmp_path / "a b", f"seed={seed}", "phases=[decode]", "decode.lengths=[16]") for seed in (0, 1)]
    assert tracking.kept_offline(cells, 0) == ""
    for cell in cells:
        measured(cell)
    line = f"W&B: 2 runs are kept offline; to upload: wandb sync '{tmp_path}/a b/wandb'/offline-run-*"
    assert tracking.kept_offline(cells, 0) == line
    assert tracking.kept_offline(cells, time.time() + 60) == "", "none of this command"
    monkeypatch.chdir(tmp_path / "a b")
    assert tracking.kept_offline(cells, 0).endswith("wandb sync wandb/offline-run-*")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "other"))
    assert tracking.kept_offline(cells, 0) == ""
    measured(tiny(tmp_path / "rows", "phases=[decode]", "decode.lengths=[16]"))
    assert len(runs(tmp_path / "other")) == 1


def test_the_table_of_runs_says_what_is_of_which_length_and_how_it_ended(tmp_path: Path) -> None:
    cell = tiny(tmp_path)
    ends: list[dict[str, Any]] = [
        {"seq_len": 16, "kernel": "sdpa", "metrics": {"token_accuracy": 0.75}},
        {"seq_len": 32, "kernel": "sdpa", "metrics": {"token_accuracy": 0.5}},
        {"seq_len": 64, "status": "oom", "reason": "out of memory"},
    ]
    with tracking.track(cell) as tracker:
        tracker.log_rows([to_row(cell, "quality", Outcome(**end), Usage()) for end in ends])
    (log,) = runs(tmp_path)
    shown = {name: value for name, value in summary(records(log)).items() if not name.startswith(("_", "rows"))}
    assert shown == {
        "bench/quality/token_accuracy": 0.75,
        "bench/quality/32/token_accuracy": 0.5,
        "status": "ok, oom",
        "reason": "out of memory",
        "kernel": "sdpa",
    }


def test_a_run_that_is_interrupted_has_failed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), tracking.track(tiny(tmp_path)):
        raise SystemExit(143)
    (log,) = runs(tmp_path)
    assert exit_codes(records(log)) == [1]


def test_lengths_measured_later_are_tracked_too(tmp_path: Path) -> None:
    measured(tiny(tmp_path))
    measured(tiny(tmp_path, "decode.lengths=[16,32]"))
    seen = {p["seq_len"] for log in runs(tmp_path) for p in history(records(log)) if "bench/decode/ms_per_token" in p}
    assert seen == {16, 32, 64}


def test_what_is_tried_again_has_no_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(cell: Cell, shape: Shape, earlier: list[Row]) -> list[Row]:
        if shape.kind == "quality" or shape.lengths == [64]:
            raise workers.TimedOut("too long")
        return run_shape(cell, shape, earlier)

    with monkeypatch.context() as patch:
        patch.setattr(run, "run_shape", stop)
        assert [row.status for row in measured(tiny(tmp_path, "decode.lengths=[64]", "phases=[decode]"))] == ["timeout"]
        assert [row.status for row in measured(tiny(tmp_path, "decode.lengths=[16]"))] == ["ok", "timeout", "timeout"]
    assert not runs(tmp_path), "the training will open one, with all rows"
    measured(tiny(tmp_path))
    (log,) = runs(tmp_path)
    assert {p["seq_len"] for p in history(records(log)) if "bench/decode/ms_per_token" in p} == {16, 64}


def test_disabled_by_its_own_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    measured(tiny(tmp_path, "phases=[decode]"))
    assert not (tmp_path / "wandb").exists()


def test_a_key_that_is_no_key_goes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert tracking._can_go_online() is False


def test_the_server_that_the_environment_names_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    wandb.teardown()  # it reads its environment once
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    asked: list[str] = []
    monkeypatch.setattr(tracking, "_is_reachable", asked.append)
    tracking._can_go_online()
    wandb.teardown()
    assert asked == ["https://wandb.example.com"]


def test_cells_of_one_process_do_not_leak_into_one_another(tmp_path: Path) -> None:
    import wandb

    for seed in (0, 1):
        measured(tiny(tmp_path, f"seed={seed}", "phases=[quality]", "eval_scales=[1]"))
        assert wandb.run is None
    names = {next(r["run"]["display_name"] for r in records(log) if r["type"] == "run") for log in runs(tmp_path)}
    assert names == {"transformer mqar 16 seed 0", "transformer mqar 16 seed 1"}


def test_a_cell_without_training_is_tracked_too(tmp_path: Path) -> None:
    measured(tiny(tmp_path, "phases=[decode]"))
    (log,) = runs(tmp_path)
    assert any("bench/decode/ms_per_token" in point for point in history(records(log)))
    measured(tiny(tmp_path, "phases=[decode]"))
    assert len(runs(tmp_path)) == 1, "nothing was measured, so there is nothing to track"


def test_a_failing_upload_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(*_: Any, **__: Any) -> None:
        raise wandb.Error("disk quota")

    monkeypatch.setattr(wandb, "Table", refuse)
    assert {row.status for row in measured(tiny(tmp_path))} == {"ok"}
    assert wandb.run is None


def test_no_logger_writes_nothing(tmp_path: Path) -> None:
    measured(tiny(tmp_path, "logger=none", "phases=[quality]"))
    assert not (tmp_path / "wandb").exists()


def test_logged_in_without_a_network_goes_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    assert not tracking._is_reachable("https://127.0.0.1:9")
    monkeypatch.setattr(tracking, "_can_go_online", lambda: tracking._is_reachable("https://127.0.0.1:9"))
    measured(tiny(tmp_path, "phases=[decode]"))
    assert len(runs(tmp_path)) == 1
    assert "W&B offline: 127.0.0.1 cannot be reached" in capfd.readouterr().err


def test_a_failing_tracker_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.Error("the server said no\nand more")

    monkeypatch.setattr(wandb, "init", refuse)
    rows = measured(tiny(tmp_path))
    assert {row.status for row in rows} == {"ok"}
    assert len(results.load([tmp_path])) == 4
    err = capfd.readouterr().err
    assert "W&B offline: the server said no" in err
    assert "Traceback" not in err


def test_an_address_that_is_none_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    wandb.teardown()  # it reads its environment once
    tracking._tell.cache_clear()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "wandb.example.com")
    assert {row.status for row in measured(tiny(tmp_path, "phases=[quality]", "eval_scales=[1]"))} == {"ok"}
    err = capfd.readouterr().err
    assert "W&B offline: base_url=wandb.example.com: input should be a valid URL" in err
    assert "Traceback" not in err


def test_a_service_that_dies_costs_no_row_and_one_line_for_each_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from wandb.sdk.wandb_run import Run

    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("Connection lost")

    class Config:
        update = lost

    for name in ("define_metric", "log"):
        monkeypatch.setattr(Run, name, lost)
    monkeypatch.setattr(Run, "config", Config())
    tracking._tell.cache_clear()
    assert {row.status for row in measured(tiny(tmp_path, "phases=[quality]"))} == {"ok"}
    err = capfd.readouterr().err
    told = {what: err.count(f"W&B {what}: Connection lost") for what in ("axes", "config", "curves", "rows")}
    assert set(told.values()) == {1}
