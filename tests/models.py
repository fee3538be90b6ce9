"""The backbones that tests discover."""

from __future__ import annotations

from functools import cache

from arch_bench.config import CONF, compose
from arch_bench.usage import options

BACKBONES = options(CONF, "backbone")
ENCODERS = ["bert"]
DECODERS = [name for name in BACKBONES if name not in ENCODERS]
CORE = ["local_attention", "lstm", "mamba", "transformer"]
"""One of each kind, for what is slow and depends on no mixer's mathematics."""


@cache
def depth(name: str, at_least: int) -> str:
    """The override that makes a backbone as deep as its pattern is long."""
    return f"n_layers={max(at_least, len(compose([f'backbone={name}']).backbone.pattern or ()))}"
