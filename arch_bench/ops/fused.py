"""Fused kernels of other libraries: whether they can train here, and what they ask for.

Those of flash-linear-attention (fla-core) and mamba-ssm take (batch, seq_len, heads, width), ours are (batch, heads,
seq_len, width).

At the first use of a shape Triton tries out how to run each kernel (tuning.py), which takes a while. To some kernels
the number of heads is part of the shape, as widths and dtypes are to all: hence a trial has all heads. The length never
is, the batch to cumulative sums only, which are quickly tuned: what the first call finds best, long or short, all later
ones get, hence a trial has the size of a step. A trial that failed is remembered.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from arch_bench.ops.tuning import parallel_tuning

TRIAL = (16, 1024)
"""Sequences and positions of a trial: as many tokens as steps have here, for it is for them that a kernel is tuned."""


def heads_last(x: Tensor) -> Tensor:
    """(B, H, T, ...) -> (B, T, H, ...)."""
    return x.transpose(1, 2).contiguous()


def cast(x: Tensor) -> Tensor:
    """As autocast would, which does not know these kernels."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def missing(device: torch.device, package: str) -> str | None:
    """Why no kernel of the package can run on this device, or None."""
    if device.type != "cuda":
        return f"needs a CUDA device, not {device.type}"
    absent = [name for name in (package, "triton") if find_spec(name) is None]
    return f"needs {' and '.join(absent)}, not installed" if absent else None


def refusal(package: str, run: Callable[..., Tensor], inputs: Sequence[Tensor], about: object = None) -> str | None:
    """Why a forward and backward pass over `inputs` fails, or None: some GPUs, dtypes and widths are refused.

    A refusal can take long to find, for Triton then tries all it has, in every process anew. It is kept on disk for
    what `about` says of the kernel, this device and these versions; None: it is not kept. What a device in trouble
    raises is no refusal of these shapes, and not kept either.

    Raises torch.OutOfMemoryError where the device has no room for a trial.
    """
    note = None if about is None else _note(package, about)
    if note is not None and note.is_file():
        return f"{note.read_text()}, as found before: {note}"
    error = _failure(run, inputs)
    if error is None:
        return None
    first, *_ = str(error).strip().splitlines() or [""]
    reason = f"{package} cannot train this here ({type(error).__name__}: {first})"
    if note is not None and not any(word in str(error) for word in _IN_TROUBLE):
        _keep(note, reason)
    return reason


_IN_TROUBLE = ("CUDA", "out of memory")
"""Words of errors that are the device's, or that of others on it, rather than the kernel's."""


@torch.inference_mode(False)
@torch.enable_grad()
def _failure(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Exception | None:
    leaves = [x.clone().requires_grad_() for x in inputs]
    try:
        with parallel_tuning():
            torch.autograd.grad(run(*leaves).sum(), leaves)
    except torch.OutOfMemoryError:  # others are on the device, or it is small: no word on the kernel
        raise
    except Exception as error:  # of Triton's compiler, of its launcher, an assertion: nothing that they share
        return error
    return None


def _note(package: str, about: object) -> Path:
    """Where a refusal is kept: beside what Triton keeps."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    versions = [f"{name} {_version(name)}" for name in ("torch", "triton", *_DISTRIBUTIONS[package])]
    text = "\n".join([type(about).__module__, str(about), device, *versions])
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    return folder / "arch_bench" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"


_DISTRIBUTIONS = {"fla": ("fla-core", "flash-linear-attention"), "mamba_ssm": ("mamba-ssm",)}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


def _keep(note: Path, reason: str) -> None:
    """All of it or nothing; a folder that cannot be written costs the next process its time."""
    draft = note.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(reason)
        draft.replace(note)
