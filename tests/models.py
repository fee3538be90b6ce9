"""The backbones that tests discover."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from arch_bench.config.schema import CONF, compose
from arch_bench.config.usage import options

BACKBONES = options(CONF, "backbone")
ENCODERS = ["bert"]
DECODERS = [name for name in BACKBONES if name not in ENCODERS]
CUDA_ONLY = ["fla"]
"""Somebody else's layers, which run on nothing else; tests/test_gpu.py holds them to what can be asked of them."""
CORE = ["local_attention", "lstm", "mamba", "transformer"]
"""One of each kind, for what is slow and depends on no mixer's mathematics."""


@cache
def depth(name: str, at_least: int) -> str:
    """The override that makes a backbone as deep as its pattern is long."""
    return f"n_layers={max(at_least, len(compose([f'backbone={name}']).backbone.pattern or ()))}"


def on_cpu(name: str, *values: object) -> Any:
    """A parameter of a test on the CPU, skipped in plain sight for what does not run there."""
    marks = [pytest.mark.skip(reason="runs on CUDA only: tests/test_gpu.py")] if name in CUDA_ONLY else []
    return pytest.param(name, *values, marks=marks)
