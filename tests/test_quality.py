"""What the rows of a test hold beside the headline."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from arch_bench import results
from arch_bench.cell.run import run_cell
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, cell_of, compose
from arch_bench.train.module import bytes_per_token_of
from tasks.base import stream

CPU = torch.device("cpu")
SMALL = "backbone=lstm d_model=16 n_layers=1 phases=[quality] logger=none isolate=false device=cpu"
BRIEF = "trainer.max_steps=4 trainer.val_every=4 trainer.batch_size=8 trainer.n_val_batches=1 trainer.n_test_batches=2"


def cell(tmp_path: Path, *overrides: str) -> Cell:
    return cell_of(compose([*SMALL.split(), *BRIEF.split(), f"results_dir={tmp_path}", *overrides]))


def test_the_loss_of_a_text_is_told_by_position_and_by_recall(tmp_path: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_text("".join(random.Random(0).choices("abcd", k=20_000)))
    text = ["task=text", f"task.path={corpus}", f"task.cache_dir={tmp_path}", "seq_len=16", "eval_scales=[1,2]"]
    rows = run_cell(cell(tmp_path, *text), say=lambda row: None)
    for row, n in zip(rows, (16, 32), strict=True):
        found = {k.removeprefix("loss_nats/"): float(v) for k, v in row.metrics.items() if k.startswith("loss_nats/")}  # type: ignore[arg-type]
        starts = [0, *(2**i for i in range(n.bit_length() - 1))]
        assert set(found) == {"recall", "other", *(f"position_{start}" for start in starts)}
        total = sum(max(1, start) * found[f"position_{start}"] for start in starts)
        assert total / n == pytest.approx(row.metrics["loss_nats"], rel=1e-4), "every position is in one octave"
        assert row.metrics["bits_per_byte/recall"] == pytest.approx(found["recall"] / 0.6931472, rel=1e-5)


def test_a_training_tells_its_budget_and_its_curve(tmp_path: Path) -> None:
    longer = ["trainer.max_steps=5", "trainer.val_every=2", "seq_len=16", "eval_scales=[1,2]", "task.n_pairs=2"]
    at_its_length, longer_one = run_cell(cell(tmp_path, "task=mqar", *longer), say=lambda row: None)
    metrics, curve = at_its_length.metrics, at_its_length.curve
    assert (metrics["steps"], metrics["examples"], metrics["tokens"]) == (5, 40, 640)
    assert curve["step"] == [2, 4, 5], "every validation, and the end"
    assert [len(column) for column in curve.values()] == [3, 3, 3]
    assert curve["val_loss_nats"][-1] == pytest.approx(metrics["val_loss_nats"], rel=1e-5)
    assert curve["val_token_accuracy"][-1] == pytest.approx(metrics["val_token_accuracy"], rel=1e-5)
    assert longer_one.curve == {}
    (path,) = tmp_path.glob("rows/*-quality-16-*.json")
    assert results.read(path).curve == curve
    assert '"step": [2, 4, 5]' in path.read_text(), "one line, however long the curve"


def test_a_slice_is_counted_by_the_bytes_of_its_own_tokens(tmp_path: Path) -> None:
    """Where recall helps, byte pairs are longer."""
    corpus = tmp_path / "a.txt"
    corpus.write_text(
        " ".join(random.Random(0).choices(["of", "reproducibility", "measurements", "a", "b", "7"], k=9000))
    )
    text = ["task=text", f"task.path={corpus}", f"task.cache_dir={tmp_path}", "task.tokenizer=bpe"]
    one = cell(tmp_path, *text, "task.bpe_vocab_size=270", "seq_len=16", "eval_scales=[1]")
    (row,) = run_cell(one, say=lambda row: None)
    task = build(one, "task").for_split("test")
    batches = [task.sample(8, stream(0, "test", i, CPU), CPU) for i in range(2)]
    ratios = set()
    for name in ("recall", "other", "position_8"):
        masks = [task.slices(batch.inputs)[name] for batch in batches]
        targets = torch.cat([batch.targets[mask] for batch, mask in zip(batches, masks, strict=True)])
        ratio = sum(len(task.tokens.vocabulary.tokens[token]) for token in targets.tolist()) / len(targets)
        nats: Any = row.metrics[f"loss_nats/{name}"]
        assert row.metrics[f"bits_per_byte/{name}"] == pytest.approx(nats / math.log(2) / ratio, rel=1e-4), name
        ratios.add(round(ratio, 3))
    assert len(ratios) == 3


def test_the_words_of_validation_may_be_longer_than_those_of_the_test(tmp_path: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_text("é" + "a" * 1798 + "é" * 50 + "a" * 100, encoding="utf-8")
    text = [f"task.path={corpus}", f"task.cache_dir={tmp_path}", "task.tokenizer=characters", "seq_len=16"]
    assert bytes_per_token_of(build(cell(tmp_path, "task=text", *text), "task")) == {"val": 2.0, "test": 1.0}
    assert bytes_per_token_of(build(cell(tmp_path, "task=mqar"), "task")) is None


def test_a_string_is_generated_too(tmp_path: Path) -> None:
    dials = ["task=string_copy", "seq_len=24", "eval_scales=[1,2]", "task.min_length=2"]
    for row in run_cell(cell(tmp_path, *dials), say=lambda row: None):
        assert row.status == "ok", row.reason
        assert 0 <= row.metrics["generated_token_accuracy"] <= 1  # type: ignore[operator]
        assert row.metrics["generated_sequence_accuracy"] <= row.metrics["generated_token_accuracy"]  # type: ignore[operator]


def test_a_needle_is_looked_for_at_each_depth(tmp_path: Path) -> None:
    dials = ["task=needle", "seq_len=32", "eval_scales=[1]", "task.n_depths=3"]
    (row,) = run_cell(cell(tmp_path, *dials), say=lambda row: None)
    parts = {name for name in row.metrics if name.startswith("token_accuracy/")}
    assert parts == {f"token_accuracy/depth_{depth}" for depth in ("0.00", "0.50", "1.00")}
    assert "generated_sequence_accuracy/depth_0.50" in row.metrics


def test_a_mixture_is_reported_by_component(tmp_path: Path) -> None:
    dials = ["task=recall_mixture", "seq_len=256", "eval_scales=[1]"]
    (row,) = run_cell(cell(tmp_path, *dials), say=lambda row: None)
    assert {name for name in row.metrics if name.startswith("token_accuracy/")} == {
        f"token_accuracy/pairs_{n}" for n in (4, 8, 16, 32, 64)
    }


def test_an_encoder_generates_nothing(tmp_path: Path) -> None:
    """It answers at the last position of a task that does not show the answer."""
    (row,) = run_cell(
        cell(tmp_path, "backbone=bert", "task=adding", "seq_len=16", "eval_scales=[1]"), say=lambda _: None
    )
    assert row.status == "ok", row.reason
    assert "generated_token_accuracy" not in row.metrics


def test_guessing_is_told_at_the_length_that_is_tested(tmp_path: Path) -> None:
    """At greater lengths the letter before is more often right."""
    rows = run_cell(cell(tmp_path, "task=sort", "seq_len=32", "eval_scales=[1,8]"), say=lambda _: None)
    short, long = (row.metrics["baseline_repeat"] for row in rows)
    task = build(cell(tmp_path, "task=sort", "seq_len=32"), "task")
    assert (short, long) == tuple(task.with_length(n).baselines()["repeat"] for n in (32, 256))
    assert long > short  # type: ignore[operator]


@pytest.mark.parametrize("phase", ["scan", "quality"])
def test_a_training_that_diverges_in_its_last_steps_has_diverged(phase: Any, tmp_path: Path) -> None:
    """No further block of steps would notice."""
    wild = cell(tmp_path, "task.n_pairs=2", "task.vocab_size=32", "seq_len=16", "eval_scales=[1]", "optim.lr=1e30")
    (row,) = run_cell(wild.model_copy(update={"phases": [phase]}), say=lambda _: None)
    assert (row.kind, row.status) == (phase, "diverged")
    assert row.reason == "validation loss at step 4 is not finite"


def test_what_is_asked_beyond_the_training_length_is_told_apart(tmp_path: Path) -> None:
    """Of 64 bits of parity 48 are; a model that knows nothing is about as good at either."""
    short, long = run_cell(cell(tmp_path, "task=parity", "seq_len=16", "eval_scales=[1,4]"), say=lambda _: None)
    assert "token_accuracy_beyond" not in short.metrics
    beyond, every = (long.metrics[name] for name in ("token_accuracy_beyond", "token_accuracy"))
    within = (64 * every - 48 * beyond) / 16  # type: ignore[operator]
    assert 0.2 < within < 0.8
    assert within * 16 * 16 == pytest.approx(round(within * 16 * 16), abs=1e-3), "of 16 examples, a whole number"
