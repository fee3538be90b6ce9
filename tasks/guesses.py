"""Guesses that the baselines of several tasks share, and the score of guessing the most common token."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tasks.base import Task


def uniform(first: int, n: int, vocab_size: int, device: torch.device) -> Tensor:
    """Return a uniform guess over the `n` tokens from `first` on: probabilities (vocab_size,)."""
    probabilities = torch.zeros(vocab_size, device=device)
    probabilities[first : first + n] = 1 / n
    return probabilities


def most_common(inputs: Tensor, first: int, n: int, vocab_size: int) -> Tensor:
    """Guess the most frequent of the `n` tokens from `first` on, in each row: probabilities (batch, 1, vocab_size)."""
    counts = torch.zeros(len(inputs), vocab_size, device=inputs.device)
    counts.scatter_add_(1, inputs, torch.ones_like(inputs, dtype=counts.dtype))
    best = first + counts[:, first : first + n].argmax(1, keepdim=True)
    return torch.zeros_like(counts).scatter_(1, best, 1.0).unsqueeze(1)


def bigram(text: Tensor, shown: Tensor, n: int, vocab_size: int) -> Tensor:
    """Guess what followed a token in the text, all places alike: probabilities (batch, n_shown, vocab_size).

    For each of `shown` (batch, n_shown), count the places of `text` (batch, n_text) where it and its successor are
    both among the tokens 0 ... n-1. If there is no such place, guess uniformly among these tokens.
    """
    first, second = text[:, :-1], text[:, 1:]
    is_pair = (first < n) & (second < n)
    none = torch.zeros(len(text), vocab_size, device=text.device)
    counts = torch.stack(
        [none.scatter_add(1, second, (is_pair & (first == token)).float()) for token in shown.t().unsqueeze(2)], dim=1
    )
    n_places = counts.sum(2, keepdim=True)
    return torch.where(n_places > 0, counts / n_places.clamp(min=1), uniform(0, n, vocab_size, text.device))


def score_of_answers(task: Task, guess: Callable[[Tensor], Tensor]) -> float:
    """Return the token accuracy of a guess of answers that end with the sequence, on a fixed sample.

    `guess`: inputs -> probabilities (batch, max_scored, vocab_size). The sample has 2^19 tokens, but 2^8 to 2^13
    examples: standard errors below 0.002 at 64 tokens, 0.02 at 16,384.
    """
    n_examples = min(max(2**19 // task.seq_len, 2**8), 2**13)
    inputs, targets = task.sample(n_examples, torch.Generator().manual_seed(0), torch.device("cpu"))
    answers = targets[:, -task.max_scored :].unsqueeze(2)
    pieces = zip(inputs.split(64), answers.split(64), strict=True)  # in pieces: 16,000 tokens or words take much memory
    return torch.cat([guess(rows).gather(2, wanted) for rows, wanted in pieces]).double().mean().item()


@functools.cache
def most_common_share(n_draws: int, n_kinds: int) -> float:
    """Return the expected share of the most frequent kind among independent uniform draws: the score of guessing it.

    Computed, not simulated: the counts of the kinds are independent Poisson numbers of mean n_draws / n_kinds, given
    that their sum is n_draws. So P(all counts <= m) = P(all <= m and the sum is n_draws) / P(the sum is n_draws), the
    numerator a coefficient of the n_kinds-th power of one truncated generating function, by a Fourier sum.
    """
    mean = n_draws / n_kinds
    reach = 12 * math.sqrt(mean) + 40  # counts further from the mean have probabilities below 1e-20
    fewest, most = max(0, math.floor(mean - reach)), min(n_draws, math.ceil(mean + reach))
    counts = np.arange(fewest, most + 1)
    poisson = np.exp(counts * math.log(mean) - mean - [math.lgamma(count + 1) for count in counts])
    n_angles = 24 * math.isqrt(n_draws) + 64  # sums this far apart would alias; they are as improbable
    at_most = np.zeros(len(counts))
    for angle in math.pi * np.arange(1, n_angles, 2) / n_angles:  # half of the circle; the other half is its conjugate
        truncated = np.cumsum(poisson * np.exp(1j * angle * counts))
        at_most += (truncated**n_kinds * np.exp(-1j * angle * n_draws)).real
    at_most *= 2 / n_angles
    at_most /= math.exp(n_draws * math.log(n_draws) - n_draws - math.lgamma(n_draws + 1))
    return float(fewest + (1 - at_most[:-1]).sum()) / n_draws
