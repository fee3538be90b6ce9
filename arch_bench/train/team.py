"""Communication between the processes of a run on several devices: parts of a batch, gradients, figures, decisions.

All exchanges go through a `Team`; on one device it does nothing. Gradients are exchanged after the backward pass, as a
few large messages: this can be captured in a CUDA graph, and a compiled backward pass returns all gradients at once
anyway.
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
"""Maximum numbers per gradient message: 128 MiB, far beyond the size at which a link reaches its full rate."""


class Place(NamedTuple):
    """The place of one process in a run."""

    rank: int = 0
    size: int = 1
    meeting: str = ""
    """The rendezvous file of the processes."""

    def part(self, x: Tensor, dim: int) -> Tensor:
        """Return this rank's rows of `dim`: one of `size` equal parts, in order.

        If the rows do not divide evenly, they are split among fewer ranks and every part goes to equally many ranks, so
        a mean over ranks still equals the mean over rows.
        """
        n_parts = math.gcd(x.shape[dim], self.size)
        return x if n_parts == 1 else x.chunk(n_parts, dim)[self.rank % n_parts].contiguous()


ALONE = Place()


class OutOfMemoryElsewhereError(torch.OutOfMemoryError):
    """Raised when another device has run out of memory."""


class Team:
    """A team of one device: nothing to share."""

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
        """True if no rank holds all parameters."""
        return False

    def share(self, model: nn.Module) -> None:
        """Give all ranks the same model, before an optimiser is made for it."""

    def part_noise(self) -> None:
        """Give each rank its own random state, when all share the state of the first.

        Dropout must not drop the same units in every part of a batch.
        """

    def pool(self, loss: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss to differentiate, and the mean over all targets, from the mean loss over this rank's targets.

        The gradients after `exchange` are then those of the mean over all targets, however many targets each rank has.
        """
        return loss, loss.detach()

    def exchange(self, gradients: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over ranks."""

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the norm of all gradients together, (), after `exchange`."""
        return nn.utils.get_total_norm(gradients)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks."""
        return x

    def clock(self) -> float:
        """Return a time in seconds, the same on every rank: loops bounded by it end together."""
        return time.perf_counter()

    def all_well(self, is_well: bool) -> bool:
        """Return True if `is_well` holds on every rank."""
        return is_well

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Signal an out-of-memory error in this context to the other ranks; their `check` then raises."""
        try:
            yield
        except OutOfMemoryElsewhereError:
            raise
        except RuntimeError:  # not every allocator has its own exception class
            self.all_well(False)
            raise

    def check(self) -> None:
        """Raise OutOfMemoryElsewhereError if another rank has signalled one."""
        if not self.all_well(True):
            raise OutOfMemoryElsewhereError("out of memory on another device")

    def largest(self, value: float) -> float:
        """Return the largest value over ranks."""
        return value

    def together(self, name: str) -> str:
        """Join the names of all ranks, each once, as a row does for the kernels of a model."""
        return "+".join(dict.fromkeys(self.gather(name)))

    def gather(self, value: T) -> list[T]:
        """Return the value of every rank, by rank."""
        return [value]

    def whole(self, model: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which parameters can be used outside `model.forward`."""
        return nullcontext()


SOLO = Team()


class Replicas(Team):
    """A team whose ranks each hold the whole model; gradients are summed over ranks."""

    strategy = "ddp"

    def __init__(self, place: Place, device: torch.device) -> None:
        super().__init__(place)
        self._device = device
        self._control = dist.new_group(backend="gloo") if device.type == "cuda" else dist.group.WORLD
        """The group for decisions between hosts while their devices are busy."""

    def share(self, model: nn.Module) -> None:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        self.part_noise()

    def part_noise(self) -> None:
        if self.rank:
            torch.manual_seed(narrow(torch.initial_seed(), self.rank))

    def pool(self, loss: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        n_scored = (targets != IGNORE).sum()
        loss = torch.where(n_scored > 0, loss, 0.0)  # the mean over no targets is NaN
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
    """A team whose ranks each hold a part of every parameter, gradient and optimiser state (`fully_shard`).

    A block's parameters are gathered when it runs, forward and backward. Parameters outside the blocks (embedding,
    head) stay gathered from forward to backward, because the loss reads the head's matrix directly.
    """

    strategy = "fsdp"

    @property
    def is_sharded(self) -> bool:
        return True

    def share(self, model: nn.Module) -> None:
        super().share(model)
        marks = {name: dict(vars(p)) for name, p in model.named_parameters()}  # such as the exemption from weight decay
        mesh = init_device_mesh(self._device.type, (self.size,))
        try:
            for block in cast("Iterable[nn.Module]", model.blocks):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh, reshard_after_forward=False)
        except ValueError as error:  # such as a parameter that is a single number
            raise Unsupported(f"trainer.strategy=fsdp: {error}") from error
        for name, parameter in model.named_parameters():
            vars(parameter).update(marks[name])

    def pool(self, loss: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, mean = super().pool(loss, targets)
        return loss * self.size, mean  # FSDP's backward pass averages over ranks

    def exchange(self, gradients: Sequence[Tensor]) -> None:
        """Do nothing: the backward pass has summed the gradients."""

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
    """Yield groups of gradients of one dtype that fit a message; a larger gradient is a message of its own."""
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
