"""tasks/draws.py: every choice equally often, enough of them, and a stable order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from uniform import assert_uniform

from tasks.base import stream
from tasks.draws import distinct, enough_draws, order
from tasks.windows import below

CPU = torch.device("cpu")


@pytest.mark.parametrize(("n", "k"), [(5, 2), (4, 4), (12, 3), (20, 2), (11, 1)])
def test_distinct_draws_every_ordered_choice_equally_often(n: int, k: int) -> None:
    chosen = distinct(n, k, 60_000, stream(0, "train", 0, CPU), CPU)
    assert chosen.shape == (60_000, k)
    code = (chosen * n ** torch.arange(k)).sum(dim=1)
    possible = torch.cartesian_prod(*[torch.arange(n)] * k).view(-1, k)
    possible = possible[(possible.sort(dim=1).values.diff(dim=1) > 0).all(dim=1)]
    codes = (possible * n ** torch.arange(k)).sum(dim=1).sort().values
    assert torch.isin(code, codes).all()
    assert_uniform(torch.searchsorted(codes, code), len(codes))


@pytest.mark.parametrize(("n", "k"), [(4, 1), (16, 4), (31, 7), (256, 64), (4095, 64), (4096, 1024), (32000, 4000)])
def test_draws_are_enough(n: int, k: int) -> None:
    different = np.arange(k)  # the chain of how many different numbers have come, while they are fewer than k
    probability = (different == 0).astype(float)
    for _ in range(enough_draws(n, k)):
        stays, grows = probability * different / n, probability * (n - different) / n
        probability = stays + np.concatenate(([0.0], grows[:-1]))
    assert probability.sum() < 1e-18


def test_order_is_a_stable_argsort() -> None:
    priority = torch.randint(20, (50, 30), generator=torch.Generator().manual_seed(0)) << 35
    assert torch.equal(order(priority), priority.argsort(dim=1, stable=True))


def test_large_offsets_are_drawn_as_often_as_small_ones() -> None:
    limit, n = 200_000_000, 200_000
    drawn = below(limit, n, stream(0, "train", 0, CPU), CPU)
    assert drawn.min() >= 0
    assert drawn.max() < limit
    share = (1 << 32) % limit / limit  # the numbers that the remainder of 32 bits favours
    assert abs((drawn < share * limit).double().mean() - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_offsets_of_small_corpora_are_those_that_were_always_drawn() -> None:
    drawn = below(1 << 24, 9, stream(0, "train", 0, CPU), CPU)
    assert torch.equal(drawn, torch.randint(1 << 24, (9,), generator=stream(0, "train", 0, CPU)))
