"""Mixtures: every example comes from one of several tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.base import IGNORE, Batch, Split, Task


class Component(NamedTuple):
    """Task of a mixture, resized to its share of the length."""

    weight: float
    """Relative frequency of the component."""
    share: float
    """Sequence length relative to that of the mixture; a shorter example is padded at its end."""
    task: Task

    def room(self, seq_len: int) -> int:
        """Return its length in a mixture of `seq_len`."""
        return round(seq_len * self.share)


class Mixture(Task):
    """Mixture of tasks: each example is drawn from one component, by weight; a test reports each separately (`parts`).

    Components share their tokens: vocab_size is their maximum. The component of an example is not shown, as
    when data sets are shuffled together ("Based", Arora et al. 2024, learns recall on such a mixture of lengths and
    numbers of pairs).

    One example of a copy task of 6 positions at share 0.75 of 8 positions (`.` is not scored):

        position   0  1  2  3  4  5  6  7
        token      5  8  9  8  8  8  0  0
        target     .  .  .  .  .  5  .  .

    Scored: what the components score. `with_length` keeps the shares and makes each component longer: strings have all
    lengths in training and the longest in a test, as they do alone.

    Baselines: of each guess that all components have, the mean over scored positions. No oracle and no guess for the
    whole, because these depend on the component: the parts have theirs.

    Raises ValueError: no component, a weight that is not positive, a share not in (0, 1], components that are
    scored differently (regression, bytes), or a component that does not fit its length.
    """

    def __init__(self, *, seq_len: int, components: dict[str, Component]) -> None:
        super().__init__(seq_len=seq_len)
        self.components = components
        self.check()
        self.components = self._of_each(lambda each: each.task.resized(each.room(seq_len)))
        self.vocab_size = max(task.vocab_size for task in self._tasks)
        first = self._tasks[0]
        self.tolerance, self.bytes_per_token = first.tolerance, first.bytes_per_token
        self.shows_answers = first.shows_answers

    def check(self) -> None:
        super().check()
        if not self.components:
            raise ValueError("task.components is empty: needs one or more")
        for name, (weight, share, _) in self.components.items():
            if not weight > 0:
                raise ValueError(f"task.components.{name}.weight={weight} is too small: needs weight > 0")
            if not 0 < share <= 1:
                raise ValueError(f"task.components.{name}.share={share} does not fit: needs 0 < share <= 1")
        if len({(t.tolerance, t.bytes_per_token, t.shows_answers) for _, _, t in self.components.values()}) > 1:
            raise ValueError(
                "task.components differ in what they ask for (tokens, numbers, text): give tasks of a kind"
            )

    def provenance(self) -> dict[str, str | int]:
        return {
            f"{name}/{key}": value
            for name, each in self.components.items()
            for key, value in each.task.provenance().items()
        }

    @property
    def _tasks(self) -> list[Task]:
        return [each.task for each in self.components.values()]

    def _of_each(self, change: Callable[[Component], Task]) -> dict[str, Component]:
        return {name: each._replace(task=change(each)) for name, each in self.components.items()}

    def resized(self, seq_len: int) -> Self:
        resized = super().resized(seq_len)
        resized.components = self._of_each(lambda each: each.task.resized(each.room(seq_len)))
        return resized

    def with_length(self, seq_len: int) -> Self:
        longer = super().resized(seq_len)
        longer.components = self._of_each(lambda each: each.task.with_length(each.room(seq_len)))
        return longer

    def for_split(self, split: Split) -> Self:
        ranged = copy.copy(super().for_split(split))
        ranged.components = self._of_each(lambda each: each.task.for_split(split))
        return ranged

    def n_source(self, seq_len: int) -> int:
        """Return the minimum over the components: an example does not show which one it comes from."""
        return min(each.task.n_source(each.room(seq_len)) for each in self.components.values())

    @property
    def max_scored(self) -> int:
        return max(task.max_scored for task in self._tasks)

    @property
    def mean_scored(self) -> float:
        weights = [each.weight for each in self.components.values()]
        return sum(w * task.mean_scored for w, task in zip(weights, self._tasks, strict=True)) / sum(weights)

    def source(self, device: torch.device) -> torch.device:
        places = {task.source(device) for task in self._tasks}
        return device if places == {device} else torch.device("cpu")

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        """Draw a batch of each component and keep one example per row: so shapes do not depend on random numbers."""
        weights = torch.tensor([each.weight for each in self.components.values()], device=device)
        which = torch.multinomial(weights, batch_size, replacement=True, generator=rng)
        drawn = [self._padded(task.sample(batch_size, rng, device)) for task in self._tasks]
        inputs, targets = (torch.stack(tensors) for tensors in zip(*drawn, strict=True))
        here = which.view(1, -1, 1).expand(1, -1, self.seq_len)
        return Batch(inputs.gather(0, here)[0], targets.gather(0, here)[0])

    def _padded(self, batch: Batch) -> Batch:
        room = self.seq_len - batch.inputs.shape[1]
        return Batch(F.pad(batch.inputs, (0, room)), F.pad(batch.targets, (0, room), value=IGNORE))

    def parts(self) -> dict[str, Task]:
        return {name: _Part(self, name) for name in self.components}

    def baselines(self) -> dict[str, float]:
        scored = {name: each.weight * each.task.mean_scored for name, each in self.components.items()}
        of_each = {name: each.task.baselines() for name, each in self.components.items()}
        shared = set.intersection(*(set(found) for found in of_each.values()))
        total = sum(scored.values())
        return {
            guess: sum(scored[name] * found[guess] for name, found in of_each.items()) / total
            for guess in next(iter(of_each.values()))
            if guess in shared
        }

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        raise ValueError(f"baseline={baseline}: a guess would have to know the component; ask its parts")

    def word(self, token: int) -> str:
        return max(self._tasks, key=lambda task: task.vocab_size).word(token)


class _Part(Mixture):
    """One component of a mixture, padded in the same way."""

    def __init__(self, whole: Mixture, name: str) -> None:
        super().__init__(seq_len=whole.seq_len, components={name: whole.components[name]})
        self.vocab_size = whole.vocab_size

    def parts(self) -> dict[str, Task]:
        return {}

    @property
    def _task(self) -> Task:
        return self._tasks[0]

    def oracle(self, inputs: Tensor) -> Tensor | None:
        answer = self._task.oracle(inputs[:, : self._task.seq_len])
        return None if answer is None else F.pad(answer, (0, self.seq_len - answer.shape[1]))

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        """Return the guess of the component; padding gets the guess of its last position."""
        found = self._task.guess(baseline, inputs[:, : self._task.seq_len])
        if self.tolerance is None:
            found = F.pad(found, (0, self.vocab_size - found.shape[-1]))
        if found.dim() > 1 and found.shape[1] == self._task.seq_len:
            last = found[:, -1:].expand(-1, self.seq_len - found.shape[1], *found.shape[2:])
            found = torch.cat((found, last), 1)
        return found
