"""Choice of an op's implementation: once, recorded in the row, and never by input length."""

from __future__ import annotations

from collections.abc import Mapping


class Unsupported(Exception):
    """Raised when a combination cannot run here; the row gets status `unsupported` with this message as its reason."""


def choose_kernel(kernel: str, obstacles: Mapping[str, str | None], key: str = "kernel") -> str:
    """Resolve `auto | <name>` against the kernels of an op.

    Args:
        kernel: `auto` takes the first kernel without an obstacle; a name takes only that one.
        obstacles: kernel name -> why it cannot run here, or None if it can; the fastest comes first.
        key: the name of the setting.

    Raises:
        ValueError: the name is unknown (the user's mistake).
        Unsupported: the named kernel exists but cannot run here (the machine's limit).
    """
    if kernel == "auto":
        return next(name for name, obstacle in obstacles.items() if obstacle is None)
    if kernel not in obstacles:
        raise ValueError(f"{key}={kernel} is unknown here; choose from: auto, {', '.join(obstacles)}")
    if (obstacle := obstacles[kernel]) is not None:
        raise Unsupported(f"{key}={kernel}: {obstacle}")
    return kernel
