"""Environment variables that would steer a training, which must depend on its configuration only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

STEERING = (
    "PL_*",  # Lightning reads PL_TRAINER_<ARGUMENT> for every argument that is not passed
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_*"),
    *("MASTER_ADDR", "MASTER_PORT", "STANDALONE_PORT"),
    *("SLURM_NTASKS*", "SLURM_NNODES", "SLURM_NPROCS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
    *("JSM_NAMESPACE_*", "LSB_DJOB_RANKFILE"),
)
"""Variables by which batch systems and launchers describe the process they started, which is not the one that trains.

Lightning reads them from its import on, and some crash it. Variables that only name a job stay: W&B records them.
"""
W_AND_B = (
    *("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM", "WANDB_REINIT"),
    *("WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_CONFIG_PATHS"),
    *("WANDB_LAUNCH", "WANDB_LAUNCH_CONFIG_PATH", "WANDB_JOB_NAME", "WANDB_JOB_SOURCE", "WANDB__*"),
)
"""Variables by which an agent, a launcher or a shell describes one W&B run; here every cell is its own run."""


@contextmanager
def hidden(patterns: Iterable[str] = STEERING) -> Iterator[None]:
    """Remove variables of these names in this context, also for the processes started in it."""
    found = {name: os.environ.pop(name) for name in _present(patterns)}
    try:
        yield
    finally:
        os.environ.update(found)


def notice(*, tracks: bool) -> str:
    """Return a line on variables that the user set and that are ignored; empty if there are none.

    tracks: True if W&B is used.
    """
    names = _present(["PL_TRAINER_*", *(W_AND_B if tracks else ())])
    if not names:
        return ""
    are = "is" if len(names) == 1 else "are"
    why = "a training is what its configuration says, and each cell a W&B run of its own"
    return f"{', '.join(names)}: {are} ignored, for {why}. Use overrides such as trainer.max_steps=100 instead."


def _present(patterns: Iterable[str]) -> list[str]:
    patterns = tuple(patterns)
    return sorted(name for name in os.environ if any(fnmatchcase(name, pattern) for pattern in patterns))
