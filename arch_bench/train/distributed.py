"""Processes of one run on several devices of one machine: rendezvous and per-process setup.

Every process runs the same phase on its rows of the same batches; a `Team` handles communication.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from arch_bench.runtime import scratch
from arch_bench.runtime.threads import usable_cores
from arch_bench.runtime.workers import LostPeer
from arch_bench.train.team import SOLO, TEAMS, Place, Team

TIMEOUT = timedelta(minutes=10)
"""Maximum wait of one rank for another: compiling and autotuning may take minutes longer on one of them."""


@contextmanager
def places(n: int) -> Iterator[list[Place]]:
    """Yield the places of a run on `n` devices."""
    with scratch.folder() as folder:
        yield [Place(rank, n, str(folder / "meeting")) for rank in range(n)]


@contextmanager
def joined(place: Place | None, strategy: str, device: torch.device) -> Iterator[Team]:
    """Join this process to its team and yield it; without a place, yield SOLO. `cuda` then means the GPU of its rank.

    The process group is never destroyed: leaving it would wait for ranks that failed.

    Raises LostPeer when another rank is gone, or does not answer for TIMEOUT.
    """
    if place is None:
        yield SOLO
        return
    _settle_in(place, device)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{place.meeting}",
            rank=place.rank,
            world_size=place.size,
            timeout=TIMEOUT,
            device_id=torch.device("cuda", place.rank) if device.type == "cuda" else None,
        )
        yield TEAMS[strategy](place, device)
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise LostPeer(f"rank {place.rank} waited for the others in vain: {str(error).splitlines()[0]}") from error


def _settle_in(place: Place, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(place.rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // place.size))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine, whatever its name resolves to


def _is_loss(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo/" in str(error)
