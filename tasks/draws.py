"""Random draws for whole batches: without replacement, in random order, and the sorts that they use."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def distinct(n: int, k: int, batch_size: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """Draw (batch, k) ordered numbers from 0 ... n-1 without replacement: every ordered choice is equally likely.

    Keeps the first k different numbers of a stream of independent draws, in the order drawn. The stream is so long
    that fewer than one row in 10^18 lacks k different numbers (and repeats some).
    """
    if n < 4 * k:
        return order(torch.randint(1 << 40, (batch_size, n), generator=rng, device=device))[:, :k]
    n_draws = enough_draws(n, k)
    draws = torch.randint(n, (batch_size, n_draws), generator=rng, device=device)
    place = torch.arange(n_draws, device=device)
    by_value = sort_rows(draws * n_draws + place)  # equal draws are neighbours, the earliest first
    value, drawn_at = by_value // n_draws, by_value % n_draws
    drawn_at[:, 1:] += n_draws * (value[:, 1:] == value[:, :-1])  # a repeat goes behind every first occurrence
    return sort_rows(drawn_at * n + value)[:, :k] % n


def enough_draws(n: int, k: int) -> int:
    """Count the draws from n that hold k different numbers in all but one row in 10^18: mean, ten spreads, a margin."""
    mean = -n * math.log1p(-k / n)
    return math.ceil(mean + 10 * math.sqrt(mean - k)) + 20


def order(priority: Tensor) -> Tensor:
    """Return `priority.argsort(1)` for integers in [0, 2^40) by sorting values only; equal ones keep their order."""
    width = priority.shape[1]
    return sort_rows(priority * width + torch.arange(width, device=priority.device)) % width


def sort_rows(numbers: Tensor) -> Tensor:
    """Sort each row in ascending order: (batch, n) -> (batch, n)."""
    if numbers.device.type == "cpu":  # NumPy's sort is vectorised: 20 times faster on short rows, with the same result
        return torch.from_numpy(np.sort(numbers.numpy(), axis=1))
    return numbers.sort(dim=1).values
