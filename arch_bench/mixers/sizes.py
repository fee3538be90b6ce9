"""Checks of a mixer's sizes; each raises ValueError, which names the size."""

from __future__ import annotations


def at_least(lowest: int, **sizes: float) -> None:
    """Raise ValueError for the first size below `lowest`."""
    for name, size in sizes.items():
        if size < lowest:
            raise ValueError(f"{name}={size} must be at least {lowest}")


def head_width(width: int, n_heads: int, what: str = "d_model") -> int:
    """Return the width of each head; `what` names the total width. Raises ValueError if heads do not divide it."""
    if width < 1:
        raise ValueError(f"{what}={width} must be at least 1")
    if n_heads < 1 or width % n_heads:
        raise ValueError(f"n_heads={n_heads} must divide {what}={width}")
    return width // n_heads
