"""Search for the longest length that still works: double it, then halve the gap down to an eighth of the length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

STEP = 128
"""Granularity of the lengths: the block size of most kernels."""


def lengths(found: Callable[[], Mapping[int, str]]) -> Iterator[int]:
    """Yield the lengths to try, one after the other.

    found: length -> status of every length tried so far, the previous one included. The search starts from the
    existing lengths and tries nothing when none of them is `ok`. Every other status is a limit.
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
