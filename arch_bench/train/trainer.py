"""The Lightning Trainer of a cell: every argument is passed, so nothing outside the cell sets one."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO

from arch_bench.train.strategy import OwnProcesses, ShardedStrategy, TeamStrategy
from arch_bench.train.team import Team

_GIVEN: dict[str, Any] = {
    **dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"), 1.0),
    **dict.fromkeys(
        ("fast_dev_run", "detect_anomaly", "barebones", "sync_batchnorm", "use_distributed_sampler"), False
    ),
    **dict.fromkeys(("enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False),
    **dict.fromkeys(("min_epochs", "min_steps", "max_time", "gradient_clip_val", "gradient_clip_algorithm")),
    **dict.fromkeys(("deterministic", "benchmark", "profiler", "model_registry", "val_check_interval")),
    **dict.fromkeys(("max_epochs", "num_nodes", "check_val_every_n_epoch", "accumulate_grad_batches"), 1),
    "precision": "32-true",
    "overfit_batches": 0.0,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,  # Lightning's "step" here is a block of steps
    "reload_dataloaders_every_n_epochs": 0,
    "enable_autolog_hparams": True,
    "default_root_dir": os.devnull,  # no folder: on SLURM, Lightning would load a checkpoint found in it
}
"""Lightning's own defaults, with a few exceptions. An omitted argument would be read from PL_TRAINER_<ARGUMENT>."""


def make_trainer(
    team: Team,
    device: torch.device,
    callbacks: list[Callback],
    logger: Logger | None,
    *,
    max_steps: int,
    files: CheckpointIO | None = None,
    **options: Any,
) -> L.Trainer:
    """Build a Trainer for one process of a team. files: the IO plugin for its checkpoints."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning 2.6 on torch 2.13
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches are made on the device, in one call
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # a phase is one process, already started
    warnings.filterwarnings("ignore", ".*GPU available but not used.*")  # device=cpu is the user's choice
    rank_zero_only.rank = team.rank  # type: ignore[attr-defined]  # set at import from RANK and similar
    own = OwnProcesses(team)
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        max_steps=max_steps,
        callbacks=list(callbacks),
        logger=logger or False,
        plugins=[own] if files is None else [own, files],
        **_GIVEN | _ways(team, device) | options,
    )
    trainer.callbacks = callbacks  # type: ignore[attr-defined]  # drops those that installed packages add
    return trainer


def _ways(team: Team, device: torch.device) -> dict[str, Any]:
    """Return the Trainer options for a single device or for one of a team."""
    if team.strategy == "single":
        return {"strategy": "auto", "devices": 1, "inference_mode": True}
    place = torch.device(device.type, team.rank if device.type == "cuda" else 0)
    devices = [team.rank] if device.type == "cuda" else 1
    no_traces = {"inference_mode": False}  # parameters gathered in inference mode could not be trained
    kind = ShardedStrategy if team.is_sharded else TeamStrategy
    return {"strategy": kind(team, place), "devices": devices} | no_traces
