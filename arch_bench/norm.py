"""Norms over the last dimension."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Norm = Literal["layer", "rms"]


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight (Zhang & Sennrich 2019), in the weight's precision also under autocast; keeps x's dtype."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def make_norm(kind: Norm, width: int) -> nn.Module:
    """LayerNorm (Ba et al. 2016), or RMSNorm, which neither centres nor shifts."""
    return nn.LayerNorm(width) if kind == "layer" else RMSNorm(width)
