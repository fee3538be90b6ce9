"""Lightning strategies for a team: summing metrics, agreeing, and saving one model from its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.distributed.checkpoint import state_dict as parts
from torch.optim import Optimizer

from arch_bench.train.team import Team


class OwnProcesses(ClusterEnvironment):
    """The cluster environment of one run, independent of any batch system's or launcher's variables.

    Lightning would otherwise detect SLURM, LSF, MPI or torchrun and use their ranks and sizes.
    """

    creates_processes_externally = True
    main_address = "127.0.0.1"
    main_port = 0

    def __init__(self, team: Team) -> None:
        self._team = team

    @staticmethod
    def detect() -> bool:
        return True

    def world_size(self) -> int:
        return self._team.size

    def set_world_size(self, size: int) -> None:
        """Do nothing: the team sets it."""

    def global_rank(self) -> int:
        return self._team.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the team sets it."""

    def local_rank(self) -> int:
        return self._team.rank

    def node_rank(self) -> int:
        return 0


class TeamStrategy(SingleDeviceStrategy):
    """Strategy of a Trainer that has one device and is one of several. Steps exchange gradients by themselves."""

    is_distributed = True

    def __init__(self, team: Team, device: torch.device) -> None:
        super().__init__(device)
        self._team = team
        self.global_rank, self.world_size = team.rank, team.size

    @property
    def is_global_zero(self) -> bool:
        return self._team.rank == 0

    def reduce(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the sum over ranks, even for a mean: Lightning divides the sum of values by the sum of weights."""
        self._team.check()  # every rank has reached this point
        return self._team.sum(tensor)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return self._team.all_well(decision) if all else not self._team.all_well(not decision)

    def model_to_device(self) -> None:
        """Do nothing: the model is there, and the optimiser has its parameters. Lightning still believes it is on the
        CPU."""

    def teardown(self) -> None:
        """Leave the model in place: shards do not move."""


class ShardedStrategy(TeamStrategy):
    """Strategy for a sharded model: a checkpoint holds the whole model, in the same form as on one device."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole model on the first rank; the others have nothing to write."""
        assert self.lightning_module is not None
        return parts.get_model_state_dict(self.lightning_module, options=_WHOLE)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        assert self.lightning_module is not None
        return parts.get_optimizer_state_dict(self.lightning_module, optimizer, options=_WHOLE)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        parts.set_model_state_dict(self.lightning_module, checkpoint["state_dict"], options=_WHOLE)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.lightning_module is not None
        (optimizer,), (saved,) = self.optimizers, checkpoint["optimizer_states"]
        parts.set_optimizer_state_dict(self.lightning_module, optimizer, saved, options=_WHOLE)


_WHOLE = parts.StateDictOptions(full_state_dict=True, cpu_offload=True)
