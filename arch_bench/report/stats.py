"""The statistics of a report, as pure functions of numbers: intervals, tests of differences, exact tests of shares.

SciPy is imported where it is needed: `scipy.stats` takes longer to load than the summary of a sweep takes to print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from statistics import fmean

import numpy as np

LEVEL = 0.05
"""Share of studies of equal contenders that may state any difference at all."""
LEAST_SEEDS = 3
"""Seeds of a contender from which on a difference is tested."""
N_PERMUTATIONS = 9_999
HUMP_GAP, HUMP_RATIO = 0.25, 4.0
"""Scores (shares) have two humps where they leave a gap this wide, and this many times wider than all else."""

HUMP_WIDTH = 4.0
"""Standard deviations from a mean within which another's seed scores like it."""


def interval(
    values: Sequence[float] | np.ndarray, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """Return the 95 % Student-t interval of a mean, clipped to the range that values can take."""
    middle, n = fmean(values), len(values)  # a report has thousands, of a few seeds each: an array takes longer to make
    reach = _quantile(n - 1) * math.sqrt(sum((value - middle) ** 2 for value in values) / (n - 1) / n)
    return max(low, middle - reach), min(high, middle + reach)


def factor_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the 95 % Student-t interval of a mean of positive numbers, as a factor above and below it.

    A time cannot be negative, and its logarithm scatters more evenly than the time does.
    """
    middle = fmean(values)
    low, high = interval([value / middle for value in values])
    reach = (high - low) / 2
    return middle * math.exp(-reach), middle * math.exp(min(reach, 700.0))


def difference_interval(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return Welch's 95 % interval of the difference of two means."""
    parts = [values.var(ddof=1) / len(values) for values in (one, other)]
    gap, error = float(one.mean() - other.mean()), math.sqrt(sum(parts))
    if error == 0:
        return gap, gap
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True)
    )
    reach = _quantile(freedom) * error
    return gap - reach, gap + reach


def has_two_humps(values: Sequence[float]) -> bool:
    """Return whether some seeds score far above all others: then no interval of the mean means anything."""
    gaps = [after - before for before, after in pairwise(sorted(values))]
    if len(gaps) < 2:
        return False
    widest = max(gaps)
    return widest >= HUMP_GAP and widest >= HUMP_RATIO * (sum(gaps) - widest)


def holm(values: np.ndarray) -> np.ndarray:
    """Return p-values adjusted for their number by Holm's step-down rule."""
    order = np.argsort(values)
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(steps)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def differences(samples: Sequence[np.ndarray], tolerance: float, floor: float | None = None) -> np.ndarray:
    """Return a (k, k) matrix: the p-value of each pair of k contenders, adjusted for the number of pairs.

    A pair differs if three tests agree, and its p-value is the largest of theirs:

    - Welch's t test, adjusted by Holm;
    - the same with one variance for the two and for all whose seeds score like both: of contenders that flip between
      solving and guessing three seeds may well all solve for one and all fail for another, and then only the others
      show the scatter;
    - an exact test of the contest as a whole, which holds for any distribution (`any_difference`).

    Means within the `tolerance` of each other do not differ, and neither does one with fewer than three seeds. No
    spread counts as smaller than the `floor` (half the tolerance if not given): seeds may agree by chance.
    """
    k = len(samples)
    found = np.ones((k, k))
    tested = [place for place in range(k) if len(samples[place]) >= LEAST_SEEDS]
    if len(tested) < 2:
        return found
    kept = [np.asarray(samples[place], dtype=float) for place in tested]
    first, second = np.triu_indices(len(kept), 1)
    adjusted = holm(_pairwise(kept, first, second, tolerance, tolerance / 2 if floor is None else floor))
    if adjusted.min() <= LEVEL:
        adjusted = np.maximum(adjusted, any_difference(kept))
    for one, other, p in zip(first, second, adjusted, strict=True):
        found[tested[one], tested[other]] = found[tested[other], tested[one]] = p
    return found


def any_difference(samples: Sequence[np.ndarray]) -> float:
    """Return the p-value of an analysis of variance in which every score might be any contender's.

    Two contenders with three seeds have ten arrangements, of which none is rarer than one in ten: there the test says
    nothing, and 0 is returned.
    """
    if _rarest(tuple(map(len, samples))) > LEVEL:
        return 0.0
    from scipy.stats import permutation_test

    found = permutation_test(
        samples,
        _between,
        permutation_type="independent",
        vectorized=True,
        n_resamples=N_PERMUTATIONS,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def fisher(solved: int, n: int, other_solved: int, other_n: int) -> float:
    """Return the two-sided p-value of Fisher's exact test for two shares."""
    from scipy.stats import fisher_exact

    return float(fisher_exact([[solved, n - solved], [other_solved, other_n - other_solved]]).pvalue)


def share_interval(solved: int, n: int) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) 95 % interval of a share."""
    from scipy.special import betaincinv

    low = float(betaincinv(solved, n - solved + 1, 0.025)) if solved else 0.0
    high = float(betaincinv(solved + 1, n - solved, 0.975)) if solved < n else 1.0
    return low, high


def _pairwise(
    samples: Sequence[np.ndarray], first: np.ndarray, second: np.ndarray, tolerance: float, floor: float
) -> np.ndarray:
    """Return the larger p-value of the two t tests of each pair; 1 within the tolerance."""
    from scipy.special import stdtr

    n = np.array([len(each) for each in samples])
    means = np.array([each.mean() for each in samples])
    variances = np.maximum([each.var(ddof=1) for each in samples], floor**2)
    gaps = np.abs(means[first] - means[second])
    parts = variances / n
    error = parts[first] + parts[second]
    freedom = error**2 / (parts[first] ** 2 / (n[first] - 1) + parts[second] ** 2 / (n[second] - 1))
    welch = 2 * stdtr(freedom, -gaps / np.sqrt(error))
    weights = _witnesses(samples, means, HUMP_WIDTH * np.sqrt(variances) + tolerance, first, second) * (n - 1)
    common = weights @ variances / weights.sum(axis=1)
    pooled = 2 * stdtr(weights.sum(axis=1), -gaps / np.sqrt(common * (1 / n[first] + 1 / n[second])))
    # the margin keeps a gap of just the tolerance, which rounding may widen, within it
    return np.where(gaps <= tolerance * (1 + 1e-9), 1.0, np.maximum(welch, pooled))


def _witnesses(
    samples: Sequence[np.ndarray], means: np.ndarray, reach: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Return, for each pair, who bears on its spread: the two, and any with seeds that score like both of them."""
    is_like = np.array([(np.abs(each[:, None] - means) <= reach).any(axis=0) for each in samples])
    found = is_like[:, first] & is_like[:, second]
    pairs = np.arange(len(first))
    found[first, pairs] = found[second, pairs] = True
    return found.T


def _between(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the sum of squares between groups, but for a constant: permutations order by it as by the F statistic."""
    squares = np.stack([each.shape[axis] * each.mean(axis=axis) ** 2 for each in samples])
    found: np.ndarray = squares.sum(axis=0)
    return found.round(12)  # sums in another order are no other arrangement


def _rarest(sizes: tuple[int, ...]) -> float:
    """Return the least p-value of `any_difference`: the best scores in one group, the worst in another."""
    ordered, total = sorted(sizes), sum(sizes)
    ways = math.comb(total, ordered[0]) * math.comb(total - ordered[0], ordered[1])
    return len(sizes) * (len(sizes) - 1) / ways


@cache
def _quantile(freedom: float) -> float:
    """97.5 % of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
