"""Compute precision of a model: fp32, TF32 or bf16, over parameters that are always fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from arch_bench.config.schema import ConfigError


def pick_precision(name: str, device: torch.device) -> str:
    """Resolve `auto`: bf16 autocast over fp32 on CUDA, else fp32. Raises ConfigError for TF32 without CUDA."""
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if name == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision=tf32: needs a CUDA device, not {device.type}; choose from: auto, fp32, bf16")
    return name


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context for a forward pass at that precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def set_tf32(precision: str) -> None:
    """Allow rounding the inputs of fp32 matrix products to TF32 only if that precision is requested.

    PyTorch's default is mixed: cuDNN (LSTM, convolutions) rounds, matrix products do not.
    """
    is_allowed = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = is_allowed
    torch.backends.cuda.matmul.allow_tf32 = is_allowed
