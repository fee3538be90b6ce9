"""Blocks of batches, one per `training_step`, and the DataModule that serves them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from arch_bench.train.step import Scored, join, list_scored
from arch_bench.train.team import ALONE, Place
from tasks.base import Split, Task, stream

MAX_BLOCK = {"cuda": (64, 2**19), "cpu": (10, 2**16)}
"""Maximum batches and tokens per block: on a GPU enough to hide the framework's overhead, elsewhere one point of the
curve."""

DRAWN = MAX_BLOCK
"""Maximum training batches and tokens drawn in one call. They determine the examples of each step, so they depend only
on the device (whose generator differs anyway) and on no user setting."""

MAX_KEPT = 2**22
"""Maximum validation tokens kept on the device: some 100 MB with their targets and positions."""


def cut(n_steps: int, every: int, batch_tokens: int, device: torch.device) -> list[range]:
    """Cut training into blocks of about equal length that end at every multiple of `every` steps, and at the last step.

    Blocks are as long as MAX_BLOCK allows. Their limits are the same for every backbone.
    """
    n_batches, n_tokens = MAX_BLOCK.get(device.type, MAX_BLOCK["cpu"])
    longest = max(1, min(n_batches, n_tokens // batch_tokens))
    blocks = []
    for start in range(0, n_steps, every):
        steps = range(start, min(start + every, n_steps))
        n_blocks = -(-len(steps) // longest)
        edges = [start + len(steps) * i // n_blocks for i in range(n_blocks + 1)]
        blocks += [range(*edge) for edge in pairwise(edges)]
    return blocks


class Blocks(Dataset[Scored]):
    """Batches of a split, made on request: a function of the seed, the split and the step, however blocks are cut.

    Block i is (steps, batch, ...). Training batches are drawn several per call, from the stream of the first of them,
    and grouped independently of the blocks, whose ends depend on when validation is due. Batches of other splits are
    drawn one by one. With several processes, each draws all batches and keeps its part of every one.
    """

    def __init__(
        self,
        task: Task,
        split: Split,
        blocks: list[range],
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        place: Place = ALONE,
    ) -> None:
        self._task = task.for_split(split)
        self._split = split
        self._blocks = blocks
        self._seed = seed
        self._batch_size = batch_size
        self._device = device
        self._place = place
        n_batches, n_tokens = DRAWN.get(device.type, DRAWN["cpu"]) if split == "train" else (1, 1)
        self._n_drawn = max(1, min(n_batches, n_tokens // (batch_size * task.seq_len)))
        self._latest: tuple[int, Scored] | None = None
        """The group drawn last, if the next block begins within it."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the drawn group; the receiving process draws it again."""
        return vars(self) | {"_latest": None}

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, i: int) -> Scored:
        steps = self._blocks[i]
        starts = range(steps.start - steps.start % self._n_drawn, steps.stop, self._n_drawn)
        parts = [self._within(steps, start) for start in starts]
        return parts[0] if len(parts) == 1 else join(parts)

    def _within(self, steps: range, start: int) -> Scored:
        """Return the batches in `steps` from the group that begins at step `start`."""
        first, group = self._latest or (None, None)
        if group is None or first != start:
            group = self._draw(start)
        self._latest = (start, group) if steps.stop < start + self._n_drawn else None
        wanted = slice(max(0, steps.start - start), steps.stop - start)
        return group.map(lambda x: x[wanted])

    def _draw(self, start: int) -> Scored:
        rng = stream(self._seed, self._split, start, self._device)
        batch = self._task.sample(self._n_drawn * self._batch_size, rng, self._device)
        scored = list_scored(batch, self._task.max_scored)
        return scored.map(lambda x: self._place.part(x.unflatten(0, (self._n_drawn, self._batch_size)), 1))


class _Kept(Dataset[Scored]):
    """Cache of blocks that are read repeatedly: each is made once."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._made: dict[int, Scored] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, i: int) -> Scored:
        if i not in self._made:
            self._made[i] = self._blocks[i]
        return self._made[i]


class _Remaining(Sampler[int]):
    """Sampler of the blocks still to train on. Its length is that of all blocks, because Lightning counts the finished
    ones."""

    def __init__(self, blocks: list[range], data: L.LightningDataModule) -> None:
        self._blocks = blocks
        self._data = data

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[int]:
        n_done = self._data.trainer.global_step if self._data.trainer else 0
        return (i for i, steps in enumerate(self._blocks) if steps.start >= n_done)


class _Loader(DataLoader[Scored]):
    """Loader whose batches are blocks. It needs no state to resume: its position follows from the trainer's step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class TaskData(L.LightningDataModule):
    """Train, validation and test streams of one task; every loader yields blocks of batches.

    Blocks are made on the device on request. If the data do not fit there, a separate process makes them in pinned
    memory, ahead of the steps.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int,
        batch_size: int,
        n_steps: int,
        val_every: int,
        n_val: int,
        device: torch.device,
        place: Place = ALONE,
    ) -> None:
        super().__init__()
        self._task = task
        self._seed = seed
        self._batch_size = batch_size
        self._n_val = n_val
        self._device = device
        self._place = place
        self._val_every = min(val_every, n_steps)
        self.blocks = cut(n_steps, self._val_every, batch_size * task.seq_len, device)

    @property
    def val_check_interval(self) -> int:
        """Blocks between validations, for Lightning's argument of that name."""
        return sum(steps.stop <= self._val_every for steps in self.blocks)

    def train_dataloader(self) -> DataLoader[Scored]:
        return self._loader(self._task, "train", self.blocks, self._batch_size, _Remaining(self.blocks, self))

    def val_dataloader(self) -> DataLoader[Scored]:
        return self._loader(self._task, "validation", _singles(self._n_val), self._batch_size)

    def test_loader(self, task: Task, n_batches: int) -> DataLoader[Scored]:
        """Return a task's test split at any length, with as many tokens as `n_batches` at the training length."""
        n_examples = max(1, n_batches * self._batch_size * self._task.seq_len // task.seq_len)
        batch_size = max(1, min(n_examples, self._batch_size * self._task.seq_len // task.seq_len))
        return self._loader(task, "test", _singles(-(-n_examples // batch_size)), batch_size)

    def _loader(
        self, task: Task, split: Split, blocks: list[range], batch_size: int, order: Sampler[int] | None = None
    ) -> DataLoader[Scored]:
        source = task.for_split(split).source(self._device)
        sizes = {"seed": self._seed, "batch_size": batch_size}
        drawn = Blocks(task, split, blocks, device=source, place=self._place, **sizes)
        drawn[0]  # a split that is too short raises here, not in the middle of a loop
        own = torch.Generator()  # an iterator draws a seed when it starts; this keeps it off the model's generator
        if source == self._device:
            is_small = len(blocks) * batch_size * task.seq_len <= MAX_KEPT
            data = _Kept(drawn) if split == "validation" and is_small else drawn
            return _Loader(data, batch_size=None, sampler=order, generator=own)
        return _Loader(
            drawn,
            batch_size=None,
            sampler=order,
            generator=own,
            num_workers=1,
            prefetch_factor=4,
            pin_memory=True,
            multiprocessing_context="forkserver",
        )


def _singles(n_batches: int) -> list[range]:
    """Return blocks of one batch each."""
    return [range(i, i + 1) for i in range(n_batches)]
