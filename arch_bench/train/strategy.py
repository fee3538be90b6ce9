"""What Lightning has to know of a team: how to add up a metric, to agree, and to save one model from its parts."""

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
    """The processes of one run as they are, whatever a batch system or a launcher says in the environment.

    Lightning would otherwise look for SLURM, LSF, MPI and torchrun, and take their ranks and sizes for its own.
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
        """It is settled."""

    def global_rank(self) -> int:
        return self._team.rank

    def set_global_rank(self, rank: int) -> None:
        """It is settled."""

    def local_rank(self) -> int:
        return self._team.rank

    def node_rank(self) -> int:
        return 0


class TeamStrategy(SingleDeviceStrategy):
    """Of a Trainer that has one device and is one of several. Steps exchange gradients by themselves."""

    is_distributed = True

    def __init__(self, team: Team, device: torch.device) -> None:
        super().__init__(device)
        self._team = team
        self.global_rank, self.world_size = team.rank, team.size

    @property
    def is_global_zero(self) -> bool:
        return self._team.rank == 0

    def reduce(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The sum, of what is to be a mean too: sums of values and of weights are what Lightning divides."""
        self._team.check()  # that all have come so far
        return self._team.sum(tensor)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return self._team.all_well(decision) if all else not self._team.all_well(not decision)

    def model_to_device(self) -> None:
        """It is there, and the optimiser has its parameters. Lightning still takes the module's device for the CPU."""

    def teardown(self) -> None:
        """Stay there: shards do not move."""


class ShardedStrategy(TeamStrategy):
    """The same where each rank has a part of the model: a checkpoint holds all of it, as that of one device would."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """On the first rank; the others have nothing to write."""
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
