"""Choice of the learning rate from the results of a scan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

TIE = 1e-4
"""Tolerance in nats, or in squared error: trainings that end within it have learned the same."""


class Trained(NamedTuple):
    """Result of a training; smaller is better. Steps compare first: a training that stops early learned faster.

    If none stops before the last step, the loss decides. Losses of trainings that stopped (`trainer.stop_at`) show
    only by how much each passed the threshold.
    """

    steps: float
    loss: float


FAILED = Trained(math.inf, math.inf)


def best(trained: Mapping[float, Trained]) -> list[float]:
    """Return the best rate and all that tie with it, in ascending order; none if no training worked."""
    first = min(trained.values(), default=FAILED)
    if first == FAILED:
        return []
    return sorted(rate for rate, (steps, loss) in trained.items() if steps == first.steps and loss <= first.loss + TIE)


def chosen(trained: Mapping[float, Trained]) -> float | None:
    """Return the best rate; among ties the middle one, farthest from the rates that fail, and the lower of two."""
    rates = best(trained)
    return rates[(len(rates) - 1) // 2] if rates else None
