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


def refusal(
    package: str,
    run: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    about: object = None,
    truth: Callable[..., Tensor] | None = None,
) -> str | None:
    """Why a forward and backward pass fails, or None: some GPUs, dtypes and widths are refused, or are compiled wrong.

    inputs: what is usual there; they are varied at random. truth: the same function by a kernel that is trusted, in
    float32, whose output and gradients `run` has to have on the first of the sequences.

    A refusal can take long to find, for Triton then tries all it has, in every process anew. It is kept on disk for
    what `about` says of the kernel, this device and these versions; None: it is not kept. What a device in trouble
    raises is no refusal of these shapes, and not kept either.

    Raises torch.OutOfMemoryError where the device has no room for a trial.
    """
    note = None if about is None else _note(package, about)
    if note is not None and note.is_file():
        return f"{note.read_text()}, as found before: {note}"
    error = _failure(run, truth, inputs)
    if error is None:
        return None
    first, *_ = str(error).strip().splitlines() or [""]
    reason = f"{package} cannot train this here ({type(error).__name__}: {first})"
    if note is not None and not any(word in str(error) for word in _IN_TROUBLE):
        _keep(note, reason)
    return reason


_IN_TROUBLE = ("CUDA", "out of memory")
"""Words of errors that are the device's, or that of others on it, rather than the kernel's."""


class Disagreement(Exception):
    """A kernel computes something else."""


ALLOWED = 0.1
"""Relative error of an output or a gradient, in norm; bf16 takes a tenth of it."""


@torch.inference_mode(False)
@torch.enable_grad()
def _failure(
    run: Callable[..., Tensor], truth: Callable[..., Tensor] | None, inputs: Sequence[Tensor]
) -> Exception | None:
    varied = [_varied(x, seed) for seed, x in enumerate(inputs)]
    try:
        with parallel_tuning():
            _gradients(run, varied)
        if truth is not None:
            _compare(run, truth, [_first(x) for x in varied])
    except torch.OutOfMemoryError:  # others are on the device, or it is small: no word on the kernel
        raise
    except Exception as error:  # of Triton's compiler, of its launcher, an assertion: nothing that they share
        return error
    return None


def _varied(x: Tensor, seed: int) -> Tensor:
    """Every number by up to a half: equal ones would hide rows that have changed places."""
    rng = torch.Generator(x.device).manual_seed(seed)
    return (x * (0.5 + torch.rand(x.shape, generator=rng, device=x.device))).to(x.dtype)


def _first(x: Tensor) -> Tensor:
    """One sequence; what all of them share as it is."""
    return x[:1] if x.dim() > 2 and len(x) == TRIAL[0] else x


def _gradients(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output, and what it makes of a random gradient at each of the inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = run(*leaves)
    rng = torch.Generator(output.device).manual_seed(0)
    gradient = torch.randn(output.shape, generator=rng, device=output.device).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def _compare(run: Callable[..., Tensor], truth: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Raises Disagreement."""
    true = _gradients(truth, [x.float() for x in inputs])
    for i, (found, exact) in enumerate(zip(_gradients(run, inputs), true, strict=True)):
        error = ((found.float() - exact).norm() / exact.norm()).item()
        if not error <= ALLOWED:  # NaN too
            what = f"its gradient at input {i} of {len(inputs)}" if i else "its output"
            raise Disagreement(f"{what} is off by {error:.2g}, more than {ALLOWED:g}")


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
