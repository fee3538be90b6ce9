"""What a computation holds: for tests that claim linear memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        leaves = made if isinstance(made, tuple) else (made,)
        self.sizes.extend(t.numel() for t in leaves if isinstance(t, torch.Tensor))
        return made


def largest_tensor(run: Callable[[], torch.Tensor]) -> int:
    """Elements of the largest tensor that `run` makes, and the backward pass of the sum of what it returns."""
    with _Watch() as watch:
        run().sum().backward()
    return max(watch.sizes)
