"""tasks/guesses.py: what the guess of the most common one scores, against counting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tasks.guesses import bigram, most_common, most_common_share, uniform

CPU = torch.device("cpu")


@pytest.mark.parametrize(("n_draws", "n_kinds"), [(1, 1), (1, 5), (7, 1), (5, 3), (6, 4), (8, 2), (4, 9)])
def test_the_share_of_the_most_common_over_all_outcomes(n_draws: int, n_kinds: int) -> None:
    outcomes = itertools.product(range(n_kinds), repeat=n_draws)
    expected = np.mean([np.bincount(outcome).max() for outcome in outcomes]) / n_draws
    assert most_common_share(n_draws, n_kinds) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n_draws", "n_kinds"), [(8, 8), (62, 15), (8, 4096), (2000, 1000), (30_000, 15)])
def test_the_share_of_the_most_common_against_draws(n_draws: int, n_kinds: int) -> None:
    largest = np.random.default_rng(0).multinomial(n_draws, [1 / n_kinds] * n_kinds, size=4000).max(1) / n_draws
    assert most_common_share(n_draws, n_kinds) == pytest.approx(largest.mean(), abs=4 * largest.std() / 4000**0.5)


def test_guesses_by_hand() -> None:
    assert uniform(1, 2, 4, CPU).tolist() == [0, 0.5, 0.5, 0]
    inputs = torch.tensor([[3, 3, 1], [0, 0, 2]])
    assert most_common(inputs, 0, 4, 4).tolist() == [[[0, 0, 0, 1]], [[1, 0, 0, 0]]]
    assert most_common(inputs, 1, 2, 4).tolist() == [[[0, 1, 0, 0]], [[0, 0, 1, 0]]]


def test_a_bigram_by_hand() -> None:
    """Words are 0, 1 and 2; 3 is a mark."""
    text = torch.tensor([[0, 1, 0, 2, 0, 2, 3, 1], [3, 2, 2, 2, 0, 1, 3, 2]])
    shown = torch.tensor([[0, 2, 3], [2, 1, 0]])
    third = [1 / 3, 1 / 3, 1 / 3, 0]
    expected = torch.tensor([[[0, 1 / 3, 2 / 3, 0], [1, 0, 0, 0], third], [[1 / 3, 0, 2 / 3, 0], third, [0, 1, 0, 0]]])
    torch.testing.assert_close(bigram(text, shown, 3, 4), expected)
