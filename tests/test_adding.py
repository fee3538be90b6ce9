"""tasks/adding.py: the layout by hand, and regression through the step and the metrics that all tasks share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arch_bench.cell import run
from arch_bench.config.instantiate import build
from arch_bench.config.schema import cell_of, compose
from arch_bench.train.step import list_scored, predicted_number, scored_hidden, scored_loss
from tasks.adding import Adding
from tasks.base import IGNORE, stream

CPU = torch.device("cpu")


def test_the_example_of_the_docstring() -> None:
    task = Adding(seq_len=6, n_levels=11)
    inputs = torch.tensor([[10, 15, 1, 8, 16, 11]])
    assert [task.word(token) for token in inputs[0].tolist()] == ["0.9", "0.3*", "0", "0.7", "0.4*", "1"]
    torch.testing.assert_close(task.oracle(inputs)[0, -1].item(), 0.7)


def test_one_number_of_each_half_is_marked_anywhere() -> None:
    task = Adding(seq_len=7, n_levels=50)
    inputs, targets = task.sample(4000, stream(0, "train", 0, CPU), CPU)
    is_marked = inputs > 50
    assert (is_marked[:, :3].sum(1) == 1).all()
    assert (is_marked[:, 3:].sum(1) == 1).all()
    shares = is_marked.float().mean(0)
    torch.testing.assert_close(shares, torch.tensor([1 / 3] * 3 + [1 / 4] * 4), atol=0.03, rtol=0)
    assert (targets[:, :-1] == IGNORE).all()


def test_the_mean_guess_has_the_squared_error_that_is_stated() -> None:
    task = Adding(seq_len=8, n_levels=11)
    sums = task.sample(100_000, stream(0, "test", 0, CPU), CPU).targets[:, -1]
    assert (sums - 1).square().mean().item() == pytest.approx(12 / 10 / 6, rel=0.02)


@pytest.mark.parametrize(
    ("n_levels", "n_right"),
    [
        (101, 97 + 98 + 99 + 100 + 101 + 100 + 99 + 98 + 97),  # 0.0871: sums of 96 to 104 hundredths
        (26, 25 + 26 + 25),
        (11, 11),
    ],
)
def test_a_sum_at_the_edge_of_the_tolerance_is_right(n_levels: int, n_right: int) -> None:
    """Counted by hand, and over all pairs of levels by the comparison that scores a prediction in float32."""
    task = Adding(seq_len=2, n_levels=n_levels)
    assert task.baselines() == {"one": pytest.approx(n_right / n_levels**2)}
    pairs = torch.cartesian_prod(*[torch.arange(n_levels)] * 2)
    error = (task.guess("one", pairs)[:, -1] - task.oracle(1 + n_levels + pairs)[:, -1]).abs()
    assert (error <= task.tolerance).sum().item() == n_right


def test_the_loss_of_a_regression_is_its_squared_error() -> None:
    cell = cell_of(compose(["task=adding", "seq_len=8", "d_model=16", "backbone=lstm"]))
    task = build(cell, "task")
    model = build(cell, "backbone", vocab_size=task.vocab_size)
    batch = task.sample(5, stream(0, "train", 0, CPU), CPU)
    scored = list_scored(batch, task.max_scored)
    hidden = scored_hidden(model, scored)
    found = scored_loss(model, scored, loss_kernel="full", label_smoothing=0)
    expected = (model.head(hidden)[:, 0, 0] - batch.targets[:, -1]).square().mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(predicted_number(model, hidden.flatten(0, 1)), model.head(hidden)[:, 0, 0])


def test_a_cell_reports_the_error_and_the_share_within_the_tolerance(tmp_path: Path) -> None:
    dials = "task=adding backbone=gru seq_len=4 d_model=32 n_layers=1 phases=[quality] eval_scales=[1] logger=none"
    recipe = "trainer.max_steps=300 trainer.val_every=150 trainer.batch_size=64 optim.lr=1e-2 device=cpu isolate=false"
    cell = cell_of(compose([*dials.split(), *recipe.split(), f"results_dir={tmp_path}"]))
    (row,) = run.run_cell(cell, say=lambda row: None)
    assert row.status == "ok", row.reason
    assert row.metrics["mse"] < 0.05, "a third of what guessing scores"  # type: ignore[operator]
    assert row.metrics["token_accuracy"] > 2 * row.metrics["baseline_one"]  # type: ignore[operator]
    assert 0 < row.metrics["val_mse"] < 0.05  # type: ignore[operator]
    assert not {"loss_nats", "val_loss_nats"} & set(row.metrics)


def test_impossible_knobs_are_refused() -> None:
    with pytest.raises(ValueError, match="seq_len=1 is too short"):
        Adding(seq_len=1, n_levels=10)
    with pytest.raises(ValueError, match="n_levels=1 is too small"):
        Adding(seq_len=8, n_levels=1)
