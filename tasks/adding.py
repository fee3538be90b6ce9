"""The adding problem: the sum of two marked numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.base import IGNORE, Batch, Task

SUM = 0
"""Token whose output is the predicted sum; it is never an input."""
SLACK = 1e-6
"""Tolerance of a sum: one that is 0.04 off on the grid may be 2e-7 further off in float32, and counts as right."""


class Adding(Task):
    """The adding problem [Hochreiter & Schmidhuber 1997, experiment 4; layout of Arjovsky, Shah & Bengio 2016].

    seq_len numbers, uniform on a grid of `n_levels` from 0 to 1; one of the first half and one of the second half is
    marked; the sum of both is asked at the last position. All inputs here are tokens, so a number is one of n_levels
    tokens, and one of as many others where it is marked (the papers feed number and mark as two real inputs).

    One example with n_levels=11, seq_len=6; `0.3*` is a marked number (`.` is not scored):

        number   0.9  0.3*  0.0  0.7  0.4*  1.0
        token     10   15     1    8   16    11
        target     .    .     .    .    .   0.7

    Scored: the last position, by the squared error, and as right within 0.04 (the papers' criterion).

    Baselines: `one` is the share of sums within 0.04 of 1, what always answering 1, the mean, scores; its squared
    error is (n_levels + 1) / (n_levels - 1) / 6, the papers' 0.167 on a fine grid.

    Raises ValueError: seq_len < 2, or fewer than 2 levels.
    """

    tolerance = 0.04 + SLACK

    def __init__(self, *, seq_len: int, n_levels: int) -> None:
        super().__init__(seq_len=seq_len)
        self.n_levels = n_levels
        self.vocab_size = 1 + 2 * n_levels
        self.check()

    def check(self) -> None:
        super().check()
        if self.seq_len < 2:
            raise ValueError(f"seq_len={self.seq_len} is too short for two numbers: needs seq_len >= 2")
        if self.n_levels < 2:
            raise ValueError(f"task.n_levels={self.n_levels} is too small: needs n_levels >= 2")

    def n_source(self, seq_len: int) -> int:
        return seq_len - 1

    @property
    def max_scored(self) -> int:
        return 1

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        levels = torch.randint(self.n_levels, (batch_size, self.seq_len), generator=rng, device=device)
        half = self.seq_len // 2
        first = torch.randint(half, (batch_size, 1), generator=rng, device=device)
        second = torch.randint(half, self.seq_len, (batch_size, 1), generator=rng, device=device)
        marked = torch.cat((first, second), 1)
        inputs = 1 + levels.scatter_add(1, marked, torch.full_like(marked, self.n_levels))
        targets = torch.full(inputs.shape, float(IGNORE), device=device)
        targets[:, -1] = self._numbers(levels.gather(1, marked)).sum(1)
        return Batch(inputs, targets)

    def _numbers(self, levels: Tensor) -> Tensor:
        return levels.float() / (self.n_levels - 1)

    def word(self, token: int) -> str:
        if token == SUM:
            return "sum"
        mark, level = divmod(token - 1, self.n_levels)
        return f"{level / (self.n_levels - 1):.4g}{'*' * mark}"

    def baselines(self) -> dict[str, float]:
        levels = torch.arange(self.n_levels)
        steps_off = (levels[:, None] + levels - (self.n_levels - 1)).abs()
        # counted in whole grid steps, 1 / 0.04 = 25: in floats many of the sums at the edge would be lost
        return {"one": (25 * steps_off <= self.n_levels - 1).double().mean().item()}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline != "one":
            raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")
        return torch.ones(inputs.shape, device=inputs.device)

    def oracle(self, inputs: Tensor) -> Tensor:
        is_marked = inputs > self.n_levels
        numbers = self._numbers((inputs - 1) % self.n_levels)
        return (numbers * is_marked).sum(1, keepdim=True).expand(inputs.shape)
