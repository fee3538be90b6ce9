"""The longest length that still works, by doubling and then halving the gap, to an eighth of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

STEP = 128
"""Lengths are multiples of it: the block of most kernels."""


def lengths(found: Callable[[], Mapping[int, str]]) -> Iterator[int]:
    """Lengths to try, one after the other.

    found: length -> status of all that was tried, the length before included. The search starts from those there are:
    nothing is tried when none of them is `ok`. Every other status is a limit.
    """
    fitting = [n for n, status in found().items() if status == "ok"]
    if not fitting:
        return
    low = max(fitting)
    high = min((n for n in found() if n > low), default=0)
    while not high:
        yield 2 * low
        low, high = (2 * low, 0) if found()[2 * low] == "ok" else (low, 2 * low)
    while high - low > max(STEP, low // 8):
        middle = (low + high) // 2 // STEP * STEP
        if middle <= low:
            return
        yield middle
        low, high = (middle, high) if found()[middle] == "ok" else (low, middle)
