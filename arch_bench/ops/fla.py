"""What the fused kernels of flash-linear-attention (fla-core) ask for, whatever they compute.

They take (batch, seq_len, heads, width) in one dtype, where ours are (batch, heads, seq_len, width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

TRIAL_LENGTH = 128
"""Positions of the trial: two chunks."""


def heads_last(x: Tensor) -> Tensor:
    """(B, H, T, ...) -> (B, T, H, ...), and back."""
    return x.transpose(1, 2).contiguous()


def missing(device: torch.device) -> str | None:
    """Why no kernel of the library can run on this device, or None."""
    if device.type != "cuda":
        return f"needs a CUDA device, not {device.type}"
    if not (find_spec("fla") and find_spec("triton")):
        return "needs flash-linear-attention (fla-core) and triton"
    return None


@torch.inference_mode(False)
@torch.enable_grad()
def refusal(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> str | None:
    """Why a forward and backward pass over `inputs` fails, or None: some GPUs, dtypes and widths are refused."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    try:
        torch.autograd.grad(run(*leaves).sum(), leaves)
    except Exception as error:  # of Triton's compiler, of its launcher, an assertion: nothing that they share
        first, *_ = str(error).strip().splitlines() or [""]
        return f"flash-linear-attention cannot train this here ({type(error).__name__}: {first})"
    return None
