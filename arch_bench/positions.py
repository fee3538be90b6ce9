"""Position encodings of a backbone: added to the embedding, or applied inside attention."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from arch_bench.ops.kernel import Unsupported

Positions = Literal["none", "learned", "sinusoidal", "rotary", "alibi"]
RELATIVE = frozenset({"rotary", "alibi"})
"""Kinds that the mixer itself applies."""


class LearnedPositions(nn.Module):
    """A table with one trained vector per position up to `max_len`; undefined beyond."""

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        if max_len < 1:
            raise ValueError(f"max_len={max_len} must be at least 1")
        self.table = nn.Parameter(torch.randn(max_len, d_model) * 0.02)
        self.table._no_weight_decay = True  # type: ignore[attr-defined]

    def check(self, max_len: int) -> None:
        """Raise Unsupported when the sequence is longer than the table."""
        if max_len > len(self.table):
            raise Unsupported(f"positions=learned: trained for {len(self.table)} positions, asked for {max_len}")

    def forward(self, positions: Tensor) -> Tensor:
        return self.table[positions]


class SinusoidalPositions(nn.Module):
    """Sines and cosines in geometric progression, defined at every length (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        if d_model % 2:
            raise ValueError(f"positions=sinusoidal needs an even d_model, got d_model={d_model}")
        self.d_model = d_model

    def check(self, max_len: int) -> None:
        """Accept every length."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.cat(waves(positions, self.d_model), dim=-1)


def absolute_positions(kind: Positions, max_len: int, d_model: int) -> LearnedPositions | SinusoidalPositions | None:
    """Build the module added to the embedding, or None for other kinds. It maps (n,) positions to (n, d_model)."""
    match kind:
        case "learned":
            return LearnedPositions(max_len, d_model)
        case "sinusoidal":
            return SinusoidalPositions(d_model)
    return None


def rotate(x: Tensor, waves: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions (Su et al. 2021, equation 34), all dimensions rotated, halves paired.

    x: (batch, n_heads, seq_len, d_head); waves: the waves of its positions, for d_head.
    """
    sin, cos = waves
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


@torch.compiler.assume_constant_result  # else compiled code would recompute them for every head of every sequence
def first_waves(n: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the waves of positions 0 ... n-1."""
    return _kept_waves(n, width, device)


@cache
@torch.inference_mode(False)  # the first caller may be a test, the next a training
def _kept_waves(n: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return waves(torch.arange(n, device=device), width)


def waves(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return (sin, cos) of shape (n, width / 2). Angles are fp32: bf16 cannot distinguish 1,000 from 1,001."""
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = positions.float()[:, None] * 10_000.0**-exponents
    return angles.sin(), angles.cos()


def alibi_slopes(n_heads: int) -> Tensor:
    """Return the geometric slopes of ALiBi (Press et al. 2022, section 3), 2^(-8h/H) for head h = 1 ... H."""
    return 2.0 ** (-8.0 / n_heads * torch.arange(1, n_heads + 1))
