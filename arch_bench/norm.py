"""Norms over the last dimension."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["layer", "rms"]


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight (Zhang & Sennrich 2019), in the weight's precision also under autocast; keeps x's dtype."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class HeadNorm(nn.Module):
    """A LayerNorm of each head by itself, with a gain for each channel of each head and no shift."""

    def __init__(self, n_heads: int, d_head: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.shape = n_heads, d_head
        self.weight = nn.Parameter(torch.ones(n_heads * d_head))  # a vector, because matrices decay and norms must not

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x: (..., H, K)."""
        return F.layer_norm(x, self.shape[1:], eps=self.eps) * self.weight.view(self.shape)


def make_norm(kind: Norm, width: int) -> nn.Module:
    """Build a LayerNorm (Ba et al. 2016), or an RMSNorm, which neither centres nor shifts."""
    return nn.LayerNorm(width) if kind == "layer" else RMSNorm(width)
