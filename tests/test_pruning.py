"""A training that reports to its search: what it says, and when it is given up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from optuna.trial import TrialState

from arch_bench.config.schema import Cell, Trial, cell_of, compose
from arch_bench.runtime.outcome import Pruned
from arch_bench.train import journal
from arch_bench.train.pruning import Pruning
from arch_bench.train.team import SOLO


def validated(callback: Pruning, step: int, loss: float, *, is_fitting: bool = True) -> None:
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(fn=TrainerFn.FITTING if is_fitting else TrainerFn.VALIDATING),
        callback_metrics={"val/loss_nats": torch.tensor(loss)},
        should_stop=False,
        global_step=step,
        max_steps=40,
    )
    callback.on_validation_end(trainer, None)  # type: ignore[arg-type]


def with_three_finished(folder: Path) -> Cell:
    """A cell whose search has seen losses of 1, 2 and 3, and is at its fourth trial."""
    cell = cell_of(compose(["backbone=lstm", f"results_dir={folder}", "phases=[scan]"]))
    study = journal.study(journal.path_of(cell, "search"))
    for loss in (1.0, 2.0, 3.0):
        trial = study.ask()
        for step in (10, 20):
            trial.report(loss, step)
        study.tell(trial, loss)
    study.ask()
    own = Trial(study="search", number=3, values={"optim.lr": 0.1}, prune_from_trial=2, prune_from_step=10)
    return cell.model_copy(update={"trial": own})


def study_of(cell: Cell) -> optuna.Study:
    return journal.study(journal.path_of(cell, "search"))


def begun(cell: Cell) -> Pruning:
    assert cell.trial is not None
    callback = Pruning(cell, cell.trial, SOLO)
    callback.on_fit_start(None, None)  # type: ignore[arg-type]
    return callback


def test_a_training_is_given_up_when_it_is_worse_than_the_median(tmp_path: Path) -> None:
    cell = with_three_finished(tmp_path)
    callback = begun(cell)
    validated(callback, 5, 9.0)  # too early to tell
    validated(callback, 10, 1.9)
    validated(callback, 15, float("nan"))  # which the training itself notices
    validated(callback, 20, 9.0)  # its best so far counts
    validated(callback, 20, 9.0, is_fitting=False)
    reported = study_of(cell).trials[3].intermediate_values
    assert reported == {5: 9.0, 10: pytest.approx(1.9), 20: 9.0}
    assert not list((tmp_path / "optuna").glob("*.lock"))


def test_a_training_that_goes_on_is_judged_again_at_the_same_step(tmp_path: Path) -> None:
    cell = with_three_finished(tmp_path)
    for _ in range(2):
        words = r"^validation loss 2.1 by step 10: worse than 2, the median of 3 finished trials at that step$"
        with pytest.raises(Pruned, match=words):
            validated(begun(cell), 10, 2.1)
    study_of(cell).tell(3, state=TrialState.PRUNED)
    validated(begun(cell), 10, 2.1)  # the row of a finished trial was lost: trained to its end


def test_the_last_validation_gives_nothing_up(tmp_path: Path) -> None:
    validated(begun(with_three_finished(tmp_path)), 40, 9.0)
