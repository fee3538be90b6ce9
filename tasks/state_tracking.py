"""State tracking: every token changes a small state, so that no token may be missed."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Literal, get_args

import torch
from torch import Tensor

from tasks.base import IGNORE, Batch, Task

ScoreOn = Literal["every", "end"]
Group = Literal["z60", "a4xz5", "a5", "s5"]


class StateTracking(Task):
    """Task that scores either `every` position with an answer or only the `end` of the sequence (`score_on`)."""

    def __init__(self, *, seq_len: int, score_on: ScoreOn) -> None:
        super().__init__(seq_len=seq_len)
        self.score_on = score_on

    def check(self) -> None:
        super().check()
        if self.score_on not in get_args(ScoreOn):
            raise ValueError(f"task.score_on={self.score_on} is unknown; choose from: {', '.join(get_args(ScoreOn))}")

    @property
    def max_scored(self) -> int:
        return self.seq_len if self.score_on == "every" else 1

    def scored(self, answers: Tensor) -> Tensor:
        """Return the targets: the answers (batch, seq_len), or only the last of them."""
        if self.score_on == "every":
            return answers
        targets = torch.full_like(answers, IGNORE)
        targets[:, -1] = answers[:, -1]
        return targets


class Parity(StateTracking):
    """Parity: is the number of ones so far odd? [Hahn 2020; Delétang et al. 2023; Grazzi et al. 2025].

    Bits are i.i.d. uniform. One example with score_on=every and seq_len=6:

        position   0  1  2  3  4  5
        token      1  0  1  1  0  1
        target     1  1  0  1  1  0

    Scored: every position, or the last one (`score_on: end`, as Delétang et al. and Grazzi et al.; much harder to
    learn, as no shorter sequence is ever scored). `with_length` keeps score_on.

    Baselines (token accuracy): `chance` = 1/2; no class is more frequent.

    Raises:
        ValueError: score_on is unknown, or seq_len < 1.
    """

    vocab_size = 2

    def __init__(self, *, seq_len: int, score_on: ScoreOn) -> None:
        super().__init__(seq_len=seq_len, score_on=score_on)
        self.check()

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        bits = torch.randint(2, (batch_size, self.seq_len), generator=rng, device=device)
        return Batch(bits, self.scored(self.oracle(bits)))

    def oracle(self, inputs: Tensor) -> Tensor:
        return inputs.cumsum(1) % 2

    def baselines(self) -> dict[str, float]:
        return {"chance": 1 / 2}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline != "chance":
            raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")
        return torch.full((2,), 1 / 2, device=inputs.device)


class GroupWord(StateTracking):
    """The word problem of a finite group [Merrill, Petty & Sabharwal 2024, "The Illusion of State"].

    Tokens are the elements of the group, i.i.d. uniform; the target is the product of all elements so far, from left
    to right: the state moves as the token says. `group` is a cyclic group (z60), one that is solvable and does not
    commute (a4xz5), or one that is not solvable (a5, s5), of order 60, 60, 60 and 120. A fixed number of layers of
    attention, or of a linear recurrence with a diagonal transition, computes only those of solvable groups (unless
    TC0 = NC1).

    Permutations are numbered in lexicographic order, the identity first, and `p q` is p, then q. One example with
    group=z60, score_on=every and seq_len=5 (addition modulo 60):

        position   0  1  2  3  4
        token     17 50  0  1 59
        target    17  7  7  8  7

    Scored: every position, or the last one (`score_on: end`). `with_length` keeps group and score_on.

    Baselines (token accuracy): `chance` = 1 / order; every product is uniform, whatever the position.

    Raises:
        ValueError: group or score_on is unknown, or seq_len < 1.
    """

    def __init__(self, *, seq_len: int, group: Group, score_on: ScoreOn) -> None:
        super().__init__(seq_len=seq_len, score_on=score_on)
        self.group = group
        self.check()
        self.vocab_size = len(multiplication(group, torch.device("cpu")))

    def check(self) -> None:
        super().check()
        if self.group not in get_args(Group):
            raise ValueError(f"task.group={self.group} is unknown; choose from: {', '.join(get_args(Group))}")

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        elements = torch.randint(self.vocab_size, (batch_size, self.seq_len), generator=rng, device=device)
        return Batch(elements, self.scored(self.oracle(elements)))

    def oracle(self, inputs: Tensor) -> Tensor:
        """Compute products in rounds: after each, position t holds that of the last 1, 2, 4, ... elements up to t."""
        table = multiplication(self.group, inputs.device).flatten()
        products, reach = inputs, 1
        while reach < self.seq_len:
            pairs = products[:, :-reach] * self.vocab_size + products[:, reach:]
            products = torch.cat((products[:, :reach], table[pairs]), dim=1)
            reach *= 2
        return products

    def baselines(self) -> dict[str, float]:
        return {"chance": 1 / self.vocab_size}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline != "chance":
            raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")
        return torch.full((self.vocab_size,), 1 / self.vocab_size, device=inputs.device)


@cache
def multiplication(group: Group, device: torch.device) -> Tensor:
    """Return the group's table on a device, built once: entry (p, q) is the number of `p q`."""
    tables = {
        "z60": lambda: _cyclic(60),
        "a4xz5": lambda: _direct_product(_permutations(4, only_even=True), _cyclic(5)),
        "a5": lambda: _permutations(5, only_even=True),
        "s5": lambda: _permutations(5, only_even=False),
    }
    return tables[group]().to(device)


def _cyclic(order: int) -> Tensor:
    numbers = torch.arange(order)
    return (numbers.unsqueeze(1) + numbers) % order


def _permutations(n: int, *, only_even: bool) -> Tensor:
    """Build the symmetric or alternating group on n points."""
    all_of_them = torch.tensor(list(permutations(range(n))))  # (n!, n), in lexicographic order
    first, second = torch.triu_indices(n, n, 1)
    inversions = (all_of_them[:, first] > all_of_them[:, second]).sum(1)
    kept = all_of_them[inversions % 2 == 0] if only_even else all_of_them
    weights = n ** torch.arange(n - 1, -1, -1)
    p_then_q = kept[:, kept].transpose(0, 1)  # [p, q, i] = q[p[i]]
    return torch.searchsorted((kept * weights).sum(1), (p_then_q * weights).sum(2))


def _direct_product(left: Tensor, right: Tensor) -> Tensor:
    """Build the product of two groups: element (a, b) has number a * len(right) + b."""
    order = len(left) * len(right)
    return (left[:, None, :, None] * len(right) + right[None, :, None, :]).reshape(order, order)
