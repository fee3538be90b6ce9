"""Pruning of a search's trials: a training reports each validation and stops if other trials did better."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from arch_bench.config.schema import Cell, Trial
from arch_bench.runtime.outcome import Pruned
from arch_bench.train import journal
from arch_bench.train.team import Team

if TYPE_CHECKING:
    import optuna


class Pruning(Callback):
    """Callback that ends a training whose best validation loss exceeds the median of finished trials at that step.

    The reporting rank decides for the whole team. A trial that is finished in the journal but has lost its row is
    trained to its end. Raises Pruned.
    """

    def __init__(self, cell: Cell, trial: Trial, team: Team) -> None:
        self._path, self._trial, self._team = journal.path_of(cell, trial.study), trial, team
        self._live: optuna.Trial | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        import optuna

        if self._team.rank:
            return
        study = journal.study(self._path, pruner=_pruner(self._trial))
        own = study.get_trials(deepcopy=False)[self._trial.number]
        if not own.state.is_finished():
            self._live = optuna.Trial(study, own._trial_id)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        found = trainer.callback_metrics
        loss = found["val/loss_nats" if "val/loss_nats" in found else "val/mse"].item()
        why = self._report(loss, trainer.global_step) if math.isfinite(loss) else ""
        is_over = trainer.should_stop or trainer.global_step >= trainer.max_steps  # no checkpoint will follow
        if not self._team.all_well(is_over or not why):
            raise Pruned(why or "by the first rank")

    def _report(self, loss: float, step: int) -> str:
        """Report a loss, and return the reason for stopping; empty to continue."""
        if self._live is None:
            return ""
        if step not in self._reported():  # else an earlier attempt got past its last checkpoint and reported it
            self._live.report(loss, step)
        return self._reason(step) if self._live.should_prune() else ""

    def _reason(self, step: int) -> str:
        import optuna

        assert self._live is not None
        done = self._live.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        others = [trial.intermediate_values[step] for trial in done if step in trial.intermediate_values]
        return (
            f"validation loss {min(self._reported().values()):.4g} by step {step:,}: worse than "
            f"{statistics.median(others):.4g}, the median of {len(others)} finished trials at that step"
        )

    def _reported(self) -> dict[int, float]:
        assert self._live is not None
        trials = self._live.study.get_trials(deepcopy=False)
        return trials[self._trial.number].intermediate_values


def _pruner(trial: Trial) -> optuna.pruners.BasePruner:
    import optuna

    if trial.prune_from_trial is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(trial.prune_from_trial, trial.prune_from_step)
