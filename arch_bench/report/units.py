"""Numbers the way a person reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Show = Callable[[float], str]
DASH = "\N{EN DASH}"


def count(value: float) -> str:
    """1234567 -> 1.23M; three significant digits."""
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * scale:
            return _significant(value / scale) + suffix
    return _significant(value)


def size(n_bytes: float) -> str:
    """34816 -> 34 KiB; three significant digits."""
    for power, suffix in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(n_bytes) >= 1024**power:
            return f"{_significant(n_bytes / 1024**power)} {suffix}"
    return f"{_significant(n_bytes)} B"


def percent(share: float) -> str:
    """0.998 -> 99.8 %; two digits of what would round to zero."""
    return f"{100 * share:.2g} %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def decimal(value: float) -> str:
    """Three decimals: bits per byte differ in the third."""
    return f"{value:.3f}"


def plain(value: float) -> str:
    """Three significant digits, thousands separated: 0.213, 12.3, 1,240."""
    return _significant(value)


def length(n_tokens: int) -> str:
    """4096 -> 4k, for ticks and narrow columns; lengths that are no multiple of 1,024 in full."""
    if n_tokens >= 1024**2 and n_tokens % (1024**2 // 8) == 0:
        return f"{n_tokens / 1024**2:g}M"
    return f"{n_tokens // 1024}k" if n_tokens >= 1024 and n_tokens % 1024 == 0 else f"{n_tokens:,}"


def tokens(n_tokens: int) -> str:
    """A length within a sentence: `4,096 tokens`."""
    return f"{n_tokens:,} tokens"


def milli(value: float) -> str:
    """0.00213 -> 2.13, under a heading that says `m`."""
    return _significant(1000 * value)


def times(factor: float) -> str:
    """`1.03x`: two decimals where few percent matter, else three digits."""
    return f"{factor:.2f}x" if factor < 9.995 else f"{_significant(factor)}x"


def exponent(value: float) -> str:
    """Two decimals, and no minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def power(value: float, low: float, high: float) -> str:
    """`1.98 [1.95-2.01]`; the range only if two decimals show one."""
    middle, *ends = map(exponent, (value, low, high))
    between = " to " if low < 0 else DASH  # a dash before a minus is hard to read
    return middle if ends[0] == ends[1] else f"{middle} [{between.join(ends)}]"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def seeds(*counts: int) -> str:
    """How many seeds stand behind a statement: `1 seed`, `3 seeds`, or a range when it is uneven."""
    low, high = min(counts), max(counts)
    return f"{low}{DASH}{high} seeds" if low != high else f"{low} seed{'s' * (low != 1)}"


def _significant(value: float) -> str:
    if value == 0:
        return "0"
    digits = next((d for d, limit in ((0, 99.95), (1, 9.995), (2, 0.9995), (3, 0.09995)) if abs(value) >= limit), None)
    if digits is None:
        return f"{value:.3g}"
    if digits == 0:
        return f"{float(f'{value:.3g}'):,.0f}" if abs(value) < 1e15 else f"{value:.3g}"
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".")
