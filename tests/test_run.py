"""One cell from config to rows: what is measured, skipped, and written when something goes wrong."""

from __future__ import annotations

import errno
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from arch_bench import results
from arch_bench.cell import run
from arch_bench.cell.shape import Shape, Usage, row_path, save
from arch_bench.config.schema import Cell, ConfigError, cell_of, compose
from arch_bench.ops.kernel import Unsupported
from arch_bench.results import Outcome, Row
from arch_bench.runtime import workers
from arch_bench.runtime.outcome import Diverged, guarded

TINY = [
    "logger=none",
    "isolate=false",
    "seq_len=16",
    "d_model=16",
    "n_layers=1",
    "task.n_pairs=2",
    "task.vocab_size=64",
    "trainer.max_steps=4",
    "trainer.batch_size=4",
    "trainer.val_every=2",
    "trainer.n_val_batches=1",
    "trainer.n_test_batches=2",
    "speed.lengths=[16,32]",
    "speed.tokens_per_step=64",
    "speed.n_steps=3",
    "decode.lengths=[16]",
    "decode.n_tokens=4",
]


def tiny(folder: Path, *overrides: str) -> Cell:
    return cell_of(compose([*TINY, f"results_dir={folder}", *overrides]))


def measured(cell: Cell) -> list[Row]:
    said: list[Row] = []
    rows = run.run_cell(cell, said.append)
    assert said == rows
    return rows


def test_a_cell_gives_one_row_per_kind_and_length(tmp_path: Path) -> None:
    rows = measured(tiny(tmp_path))
    assert [(row.kind, row.seq_len) for row in rows] == [
        ("speed", 16),
        ("speed", 32),
        ("decode", 16),
        ("quality", 16),
        ("quality", 32),
        ("quality", 64),
    ]
    assert {row.status for row in rows} == {"ok"}
    assert sorted(results.load([tmp_path]), key=str) == sorted(rows, key=str)
    assert len({row.key for row in rows}) == 1


def test_rows_carry_metrics_and_provenance(tmp_path: Path) -> None:
    speed, _, decode, quality, *_ = measured(tiny(tmp_path))
    for name in ("forward_ms", "forward_backward_ms", "train_step_ms", "tokens_per_s"):
        assert speed.metrics[name] > 0, name  # type: ignore[operator]
    assert speed.metrics["forward_ms"] < speed.metrics["forward_backward_ms"] < speed.metrics["train_step_ms"]  # type: ignore[operator]
    assert speed.metrics["tokens_per_step"] == 64
    assert speed.metrics["n_scored"] == 4 * 2  # four sequences of 16 tokens, two pairs asked in each
    assert decode.metrics["ms_per_token"] > 0  # type: ignore[operator]
    assert decode.metrics["state_bytes"] == 8 + 2 * 16 * 16 * 4 + 8  # position, keys and values, position of the ring
    assert 0 <= quality.metrics["token_accuracy"] <= 1  # type: ignore[operator]
    assert quality.metrics["baseline_value_set"] == 0.5
    assert quality.metrics["steps"] == 4
    assert quality.metrics["val_loss_nats"] > 0  # type: ignore[operator]
    assert speed.metrics["step"] == quality.metrics["step"] == "eager"
    assert speed.metrics["step_why"] is quality.metrics["step_why"] is None
    assert speed.metrics["loss_kernel"] == "full"
    assert speed.metrics["n_params"] == quality.metrics["n_params"]
    assert speed.metrics["peak_mem_bytes"] is None  # this process is not fresh
    for row in (speed, decode, quality):
        assert row.kernel == "sdpa"
        assert "threads" in row.device or torch.cuda.is_available()
        assert row.versions["torch"]
        assert row.config["backbone_name"] == "transformer"
        assert row.commit == "" or len(row.commit) == 40


def test_a_second_run_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured(tiny(tmp_path))
    monkeypatch.setattr(run, "run_shape", None)
    assert measured(tiny(tmp_path)) == first


def test_a_second_run_fills_gaps_and_replaces_torn_rows(tmp_path: Path) -> None:
    first = measured(tiny(tmp_path, "phases=[speed,decode]"))
    cell = run.settle(tiny(tmp_path, "phases=[speed,decode]"))
    row_path(cell, "speed", 32).unlink()
    row_path(cell, "decode", 16).write_text('{"torn": ')
    second = measured(cell)
    assert second[0] == first[0]
    assert second[1] != first[1]
    assert len(results.load([tmp_path])) == 3


def test_a_crash_is_tried_again_and_an_unsupported_shape_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run, "run_shape", _die)
        (row,) = measured(tiny(tmp_path, "isolate=true", "phases=[decode]"))
    assert row.status == "crashed"
    (row,) = measured(tiny(tmp_path, "phases=[decode]"))
    assert row.status == "ok"
    impossible = tiny(tmp_path, "phases=[decode]", "backbone=local_attention", "kernel=flex")
    first = measured(impossible)
    assert first[0].status == "unsupported"
    assert measured(impossible) == first


def test_a_rerun_that_dies_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(tiny(tmp_path, "phases=[decode]"))
    monkeypatch.setattr(run, "run_shape", _die)
    (row,) = measured(tiny(tmp_path, "isolate=true", "phases=[decode]", "rerun=true"))
    assert row.status == "crashed"


def test_a_corpus_too_short_is_told_before_training(tmp_path: Path) -> None:
    corpus = tmp_path / "short.txt"
    corpus.write_text("words " * 40)
    shared = [override for override in TINY if not override.startswith("task.")]
    text = ["task=text", f"task.path={corpus}", f"task.cache_dir={tmp_path / 'cache'}", f"results_dir={tmp_path}"]
    with pytest.raises(ConfigError, match="task=text"):
        measured(cell_of(compose([*shared, *text, "seq_len=256"])))
    corpus.write_text("words " * 400)  # 120 bytes to test on: enough for 64 tokens, too few for 256
    cell = cell_of(compose([*shared, *text, "seq_len=64", "eval_scales=[1,4]", "phases=[quality]"]))
    assert [row.status for row in measured(cell)] == ["ok", "unsupported"]


def test_the_last_validation_is_of_the_model_that_is_tested(tmp_path: Path) -> None:
    steps = ["trainer.max_steps=7", "trainer.val_every=3", "phases=[quality]", "eval_scales=[1]"]
    known = measured(tiny(tmp_path / "a", *steps))[0].metrics["val_token_accuracy"]
    steps[1] = "trainer.val_every=7"
    assert measured(tiny(tmp_path / "b", *steps))[0].metrics["val_token_accuracy"] == known


def test_rerun_measures_again(tmp_path: Path) -> None:
    first = measured(tiny(tmp_path, "phases=[decode]"))
    assert measured(tiny(tmp_path, "phases=[decode]", "rerun=true"))[0].metrics != first[0].metrics


def test_training_is_deterministic_and_sees_the_seed(tmp_path: Path) -> None:
    scores = [
        measured(tiny(tmp_path / str(i), "phases=[quality]", f"seed={seed}"))[0].metrics["loss_nats"]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert scores[0] == scores[1] != scores[2]


def test_a_solved_task_ends_early_and_says_when(tmp_path: Path) -> None:
    shared = [override for override in TINY if not override.startswith(("task.", "trainer."))]
    easy = ["task=copy_memory", "task.n_data=1", "task.n_symbols=2", "eval_scales=[1]", "phases=[quality]"]
    schedule = ["optim.lr=0.01", "trainer.max_steps=400", "trainer.val_every=20", "trainer.stop_at=0.99"]
    cell = cell_of(compose([*shared, *easy, *schedule, f"results_dir={tmp_path}"]))
    (row,) = measured(cell)
    assert row.metrics["steps_to_99"] == row.metrics["steps"] < 400  # type: ignore[operator]
    assert row.metrics["token_accuracy"] > 0.95  # type: ignore[operator]


def test_lengths_that_cannot_be_are_rows_too(tmp_path: Path) -> None:
    rows = measured(tiny(tmp_path, "phases=[quality]", "backbone.positions=learned"))
    assert [row.status for row in rows] == ["ok", "unsupported", "unsupported"]
    assert "positions=learned" in rows[1].reason


def test_sines_are_defined_beyond_the_training_length(tmp_path: Path) -> None:
    rows = measured(tiny(tmp_path, "phases=[quality]", "backbone.positions=sinusoidal"))
    assert [(row.seq_len, row.status) for row in rows] == [(16, "ok"), (32, "ok"), (64, "ok")]


def test_a_missing_kernel_is_a_row(tmp_path: Path) -> None:
    (row,) = measured(tiny(tmp_path, "phases=[decode]", "backbone=local_attention", "kernel=flex"))
    assert row.status == "unsupported"
    assert "kernel=flex" in row.reason


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.n_pairs=9"], "task=mqar: seq_len=16 is too short for task.n_pairs=9"),
        (["backbone.mixer.n_heads=3"], "backbone=transformer: backbone.mixer.n_heads=3 must divide d_model=16"),
        (["backbone.mixer.n_heads=x"], "backbone.mixer.n_heads=x: input should be a valid integer"),
        (
            ["kernel=warp"],
            "kernel=warp is unknown here; choose from: auto, sdpa, sdpa_cudnn, sdpa_flash, sdpa_efficient, reference",
        ),
        (["step=graph", "device=cpu"], "step=graph: needs a CUDA device, not cpu; choose from: auto, eager, compiled"),
        (
            ["precision=tf32", "device=cpu"],
            "precision=tf32: needs a CUDA device, not cpu; choose from: auto, fp32, bf16",
        ),
        (["backbone.positions=polar"], "backbone.positions=polar: input should be 'none', 'learned'"),
        (["task=text", "task.path=/no/such/corpus"], "/no/such/corpus"),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, overrides: list[str], words: str) -> None:
    chosen = [o for o in TINY if not (overrides[0] == "task=text" and o.startswith("task."))]
    cell = cell_of(compose([*chosen, f"results_dir={tmp_path}", *overrides]))
    with pytest.raises(ConfigError) as caught:
        measured(cell)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("d_model=abc", "d_model=abc: input should be a valid integer"),
        ("d_model=0", "d_model=0: input should be greater than or equal to 1"),
        ("step=warp", "step=warp: input should be 'auto', 'eager', 'compiled' or 'graph'"),
        ("phases=[speed,loud]", "phases.1=loud: input should be 'quality', 'scan', 'speed', 'decode' or 'kernels'"),
        ("optim.lr=-1", "optim.lr=-1: input should be greater than 0"),
        ("trainer.max_steps=1.5", "trainer.max_steps=1.5: input should be a valid integer"),
        ("eval_scales=[]", "eval_scales=[]: list should have at least 1 item"),
    ],
)
def test_impossible_dials(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cell_of(compose([override]))
    assert words in str(caught.value)


def _die(*_: Any) -> list[Row]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def _hang(*_: Any) -> list[Row]:
    signal.pause()
    return []


def test_a_fresh_process_knows_its_memory(tmp_path: Path) -> None:
    overrides = ["isolate=true", "phases=[speed]", "speed.lengths=[512]", "speed.tokens_per_step=16384", "d_model=64"]
    (row,) = measured(tiny(tmp_path, *overrides))
    assert row.metrics["peak_mem_bytes"] > 16384 * 64 * 4  # type: ignore[operator]


@pytest.mark.parametrize(
    ("fate", "limit", "end"), [(_die, 60, ("crashed", "SIGKILL")), (_hang, 0.5, ("timeout", "0.5 s"))]
)
def test_a_process_that_ends_badly_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: Any, limit: float, end: tuple[str, str]
) -> None:
    status, reason = end
    monkeypatch.setattr(run, "run_shape", fate)
    rows = measured(tiny(tmp_path, "isolate=true", "phases=[speed]", f"time_limit_s={limit}"))
    assert [(row.status, row.seq_len) for row in rows] == [(status, 16), (status, 32)]
    assert reason in rows[0].reason
    assert len(results.load([tmp_path])) == 2


def _end_by_length(cell: Cell, shape: Shape, earlier: list[Row]) -> list[Row]:
    """Each length meets another end; the last is measured."""
    length = shape.lengths[0]
    if length == 16:
        return _die()
    if length == 24:
        return _hang()
    if length == 32:
        outcomes = guarded(lambda: torch.empty(2**60), shape.lengths)  # type: ignore[arg-type, return-value]
        return save(cell, shape, outcomes, Usage())
    return run.run_shape(cell, shape, earlier)


def test_whatever_ends_a_child_the_next_shape_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "call", partial(_call_instead, workers.call))
    overrides = ["isolate=true", "phases=[speed]", "speed.lengths=[16,24,32,40]", "time_limit_s=10"]
    rows = measured(tiny(tmp_path, *overrides))
    assert [row.status for row in rows] == ["crashed", "timeout", "oom", "ok"], [row.reason for row in rows]
    assert [row.seq_len for row in results.load([tmp_path])] == [16, 24, 32, 40]


def _call_instead(real: Any, _function: Any, *args: Any, **options: Any) -> Any:
    return real(_end_by_length, *args, **options)


@pytest.mark.parametrize(
    ("error", "status"), [(Unsupported("no"), "unsupported"), (Diverged("nan"), "diverged"), ("oom", "oom")]
)
def test_the_guard_knows_what_is_no_bug(error: Any, status: str) -> None:
    def fail() -> list[Outcome]:
        raise torch.OutOfMemoryError("2 GiB\nmore") if error == "oom" else error

    outcomes = guarded(fail, [64, 128], "sdpa")
    assert [(o.status, o.seq_len, o.kernel) for o in outcomes] == [(status, 64, "sdpa"), (status, 128, "sdpa")]
    assert "\n" not in outcomes[0].reason


def test_the_guard_knows_the_memory_of_the_cpu() -> None:
    def hoard() -> list[Outcome]:
        torch.empty(2**60)
        return []

    assert guarded(hoard, [64])[0].status == "oom"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "MemoryError"),
        (MemoryError("\n\n no room \nat all"), "no room"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (torch.OutOfMemoryError(), "OutOfMemoryError"),
    ],
)
def test_the_guard_knows_every_way_to_run_out_of_memory(error: Exception, reason: str) -> None:
    def fail() -> list[Outcome]:
        raise error

    (outcome,) = guarded(fail, [64])
    assert (outcome.status, outcome.reason) == ("oom", reason)


@pytest.mark.parametrize("error", [Diverged(), Unsupported("\n")])
def test_a_failure_without_words_has_its_class_for_a_reason(error: Exception) -> None:
    def fail() -> list[Outcome]:
        raise error

    assert guarded(fail, [64])[0].reason == type(error).__name__


def test_the_guard_lets_bugs_through() -> None:
    def fail() -> list[Outcome]:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        guarded(fail, [1])


def test_a_measurement_outlives_a_worse_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = tiny(tmp_path, "phases=[decode]")
    (before,) = measured(cell)
    shape = Shape("decode", [16])

    def late(*_: Any, **__: Any) -> list[Row]:
        raise workers.TimedOut("stopped after 0.01 s")

    monkeypatch.setattr(run, "run_shape", late)
    (row,) = measured(cell.model_copy(update={"rerun": True}))
    assert row.status == "timeout"
    assert row.reason.endswith("s; its row of " + before.created_at[:10] + ", ok, is kept")
    assert results.read(shape.paths(run.final(cell)[0])[0]) == before
    assert run.run_cell(cell, lambda _: None) == [before]


def test_a_reason_is_one_short_line(tmp_path: Path) -> None:
    cell = run.final(tiny(tmp_path))[0]
    for reason in ("a\nb\t\x1b[31mc", "x" * 10**6, "", "\udc80"):
        (row,) = save(cell, Shape("decode", [16]), [Outcome(seq_len=16, status="crashed", reason=reason)], Usage())
        assert len(row.reason) <= 400
        assert row.reason.isprintable()
        assert results.read(Shape("decode", [16]).paths(cell)[0]) == row


def test_a_bug_names_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> list[Row]:
        raise KeyError("bug")

    monkeypatch.setattr(run, "run_shape", broken)
    with pytest.raises(KeyError) as caught:
        measured(tiny(tmp_path))
    assert any("transformer on mqar" in note for note in caught.value.__notes__)


def test_a_loss_that_is_no_number_diverges(tmp_path: Path) -> None:
    wild = ["phases=[quality]", "optim.lr=1e30", "optim.clip_norm=0"]
    rows = measured(tiny(tmp_path, *wild, "trainer.max_steps=40"))
    assert {row.status for row in rows} == {"diverged"}
    assert "step" in rows[0].reason
    rows = measured(tiny(tmp_path, *wild, "trainer.max_steps=2"))  # ends before the loss is looked at
    assert {row.status for row in rows} == {"diverged"}
    assert rows[0].reason == "validation loss at step 2 is not finite"
