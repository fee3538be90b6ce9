"""Which learning rate a scan chooses, by what came of a training at each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

TIE = 1e-4
"""Nats, or squared error: trainings that end as near as this have learned the same."""


class Trained(NamedTuple):
    """What came of a training; the smaller the better, its steps first: who stops early needed fewer to learn it.

    Where none stops before the last step that is the loss. Losses of trainings that stopped (`trainer.stop_at`) say
    only by how much each passed the line.
    """

    steps: float
    loss: float


FAILED = Trained(math.inf, math.inf)


def best(trained: Mapping[float, Trained]) -> list[float]:
    """The rate that trained best and all that are as good, rising; none where no training worked."""
    first = min(trained.values(), default=FAILED)
    if first == FAILED:
        return []
    return sorted(rate for rate, (steps, loss) in trained.items() if steps == first.steps and loss <= first.loss + TIE)


def chosen(trained: Mapping[float, Trained]) -> float | None:
    """The best; of several as good the middle one, as far as may be from those that fail, and the lower of two."""
    rates = best(trained)
    return rates[(len(rates) - 1) // 2] if rates else None
