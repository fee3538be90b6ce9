"""What the processes of one run on several devices share: parts of a batch, gradients, figures, decisions.

All that they exchange goes through a `Team`; that of a run on one device does nothing. Gradients are exchanged when the
backward pass is over, as a few large messages: that can be captured in a CUDA graph, and a compiled backward pass hands
all of them over at once anyway.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from arch_bench.ops.kernel import Unsupported
from arch_bench.runtime.seed import narrow
from tasks.base import IGNORE

T = TypeVar("T")
BUCKET = 2**25
"""Numbers of a message of gradients, at most: 128 MiB, far beyond where a link reaches its rate."""


class Place(NamedTuple):
    """One process among those of a run."""

    rank: int = 0
    size: int = 1
    meeting: str = ""
    """The file over which they find one another."""

    def part(self, x: Tensor, dim: int) -> Tensor:
        """The rows of `dim` that are this rank's: one part of `size`, in order.

        Rows that cannot be divided so are divided among fewer, and every part then goes to equally many ranks: a mean
        over ranks is a mean over rows all the same.
        """
        n_parts = math.gcd(x.shape[dim], self.size)
        return x if n_parts == 1 else x.chunk(n_parts, dim)[self.rank % n_parts].contiguous()


ALONE = Place()


class OutOfMemoryElsewhereError(torch.OutOfMemoryError):
    """Another device has no memory left."""


class Team:
    """A run on one device, which has nobody to share with."""

    strategy = "single"

    def __init__(self, place: Place = ALONE) -> None:
        self.place = place

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def size(self) -> int:
        return self.place.size

    @property
    def is_sharded(self) -> bool:
        """Whether no rank holds all parameters."""
        return False

    def share(self, model: nn.Module) -> None:
        """Make one model of those of all ranks, before an optimiser is made for it."""

    def part_noise(self) -> None:
        """Give each rank a random state of its own, where all have that of the first.

        Dropout must not leave out the same units in every part of a batch.
        """

    def pool(self, loss: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """From the mean loss over this rank's targets: what to differentiate, and the mean over all targets.

        The gradients that `exchange` leaves are then those of the latter, however many targets each rank has.
        """
        return loss, loss.detach()

    def exchange(self, gradients: Sequence[Tensor]) -> None:
        """Put the sum over ranks in the place of each gradient."""

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of all gradients together, (), after `exchange`."""
        return nn.utils.get_total_norm(gradients)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        return x

    def clock(self) -> float:
        """Seconds, the same on every rank: loops that go by it end together."""
        return time.perf_counter()

    def all_well(self, is_well: bool) -> bool:
        """Whether it is so on every rank."""
        return is_well

    @contextmanager
    def telling(self) -> Iterator[None]:
        """A rank that runs out of memory within it ends it on the others, too, where they `check`."""
        try:
            yield
        except OutOfMemoryElsewhereError:
            raise
        except RuntimeError:  # not every allocator has a class of its own for that
            self.all_well(False)
            raise

    def check(self) -> None:
        """Raise OutOfMemoryElsewhereError if a rank tells so."""
        if not self.all_well(True):
            raise OutOfMemoryElsewhereError("out of memory on another device")

    def largest(self, value: float) -> float:
        """The largest over ranks."""
        return value

    def together(self, name: str) -> str:
        """What every rank says, each name once: as a row calls the kernels of a model that has several."""
        return "+".join(dict.fromkeys(self.gather(name)))

    def gather(self, value: T) -> list[T]:
        """Return the value of every rank, by rank."""
        return [value]

    def whole(self, model: nn.Module) -> AbstractContextManager[object]:
        """Within it, parameters can be used outside of `model.forward`."""
        return nullcontext()


SOLO = Team()


class Replicas(Team):
    """Every rank holds the whole model; gradients are summed over ranks."""

    strategy = "ddp"

    def __init__(self, place: Place, device: torch.device) -> None:
        super().__init__(place)
        self._device = device
        self._control = dist.new_group(backend="gloo") if device.type == "cuda" else dist.group.WORLD
        """For what the hosts agree on while their devices are busy."""

    def share(self, model: nn.Module) -> None:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        self.part_noise()

    def part_noise(self) -> None:
        if self.rank:
            torch.manual_seed(narrow(torch.initial_seed(), self.rank))

    def pool(self, loss: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        n_scored = (targets != IGNORE).sum()
        loss = torch.where(n_scored > 0, loss, 0.0)  # the mean of nothing is not a number
        sums = torch.stack((loss.detach().float() * n_scored, n_scored.float()))
        dist.all_reduce(sums)
        total, count = sums
        return loss * (n_scored / count), total / count

    def exchange(self, gradients: Sequence[Tensor]) -> None:
        for bucket in _buckets(gradients):
            message = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(message)
            pieces = message.split([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(pieces, bucket, strict=True)])

    def sum(self, x: Tensor) -> Tensor:
        total = x.detach().to(self._device, copy=True)
        dist.all_reduce(total)
        return total.to(x.device)

    def clock(self) -> float:
        now = torch.tensor(time.perf_counter(), dtype=torch.float64)
        dist.broadcast(now, src=0, group=self._control)
        return now.item()

    def all_well(self, is_well: bool) -> bool:
        flag = torch.tensor(int(is_well))
        dist.all_reduce(flag, dist.ReduceOp.MIN, group=self._control)
        return bool(flag)

    def largest(self, value: float) -> float:
        found = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._control)
        return found.item()

    def gather(self, value: T) -> list[T]:
        values = [value] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values


class Shards(Replicas):
    """Every rank holds a part of each parameter, its gradient and its optimiser's state (`fully_shard`).

    A block's parameters are gathered when it runs, forward and backward; those around the blocks (embedding, head)
    stay gathered from forward to backward, since the loss reads the head's matrix by itself.
    """

    strategy = "fsdp"

    @property
    def is_sharded(self) -> bool:
        return True

    def share(self, model: nn.Module) -> None:
        super().share(model)
        marks = {name: dict(vars(p)) for name, p in model.named_parameters()}  # who must not decay, for one
        mesh = init_device_mesh(self._device.type, (self.size,))
        try:
            for block in cast("Iterable[nn.Module]", model.blocks):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh, reshard_after_forward=False)
        except ValueError as error:  # a parameter that is a single number, for one
            raise Unsupported(f"trainer.strategy=fsdp: {error}") from error
        for name, parameter in model.named_parameters():
            vars(parameter).update(marks[name])

    def pool(self, loss: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, mean = super().pool(loss, targets)
        return loss * self.size, mean  # its backward pass takes the mean over ranks

    def exchange(self, gradients: Sequence[Tensor]) -> None:
        """Nothing is left to do: the backward pass has summed them."""

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        norm = super().norm(gradients)
        return cast("Tensor", norm.full_tensor())  # type: ignore[attr-defined]

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in sharded:
            module.unshard()
        try:
            yield
        finally:
            for module in sharded:
                module.reshard()


TEAMS: dict[str, type[Replicas]] = {"ddp": Replicas, "fsdp": Shards}


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype that fit a message together; a larger one is a message of its own."""
    bucket: list[Tensor] = []
    n = 0
    for gradient in gradients:
        if bucket and (n + gradient.numel() > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, n = [], 0
        bucket.append(gradient)
        n += gradient.numel()
    if bucket:
        yield bucket
