"""Fused kernels of other libraries: tests of whether they can train here, and their input layout.

Those of flash-linear-attention (fla-core) and mamba-ssm take (batch, seq_len, heads, width), ours are (batch, heads,
seq_len, width).

At the first use of a shape Triton tunes each kernel (tuning.py), which takes a while. Widths and dtypes are part of the
shape for all kernels and the number of heads for some: hence a trial has all heads. The length never is, the batch only
for cumulative sums, which are quickly tuned: the first call, long or short, decides the configuration of all later
ones, hence a trial has the size of a step. A failed trial is recorded.
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
"""Sequences and positions of a trial: as many tokens as a training step has, because kernels are tuned for these."""


def heads_last(x: Tensor) -> Tensor:
    """Move heads behind positions: (B, H, T, ...) -> (B, T, H, ...)."""
    return x.transpose(1, 2).contiguous()


def cast(x: Tensor) -> Tensor:
    """Cast as autocast would, which does not cover these kernels."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def missing(device: torch.device, package: str) -> str | None:
    """Return why no kernel of the package can run on this device, or None."""
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
    """Return why a forward and backward pass fails, or None: some GPUs, dtypes and widths are refused or miscompiled.

    inputs: typical values, which are varied at random. truth: the same function by a trusted kernel in float32, whose
    output and gradients `run` must reproduce on the first of the sequences.

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
"""Words of errors caused by the device, or by other processes on it, rather than by the kernel."""


class Disagreement(Exception):
    """Raised when a kernel's output or gradient differs from the reference."""


ALLOWED = 0.1
"""Allowed relative error of an output or a gradient, in norm; bf16 takes a tenth of it."""


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
    except torch.OutOfMemoryError:  # other processes use the device, or it is small: no verdict on the kernel
        raise
    except Exception as error:  # from Triton's compiler, its launcher or an assertion: they share no class
        return error
    return None


def _varied(x: Tensor, seed: int) -> Tensor:
    """Vary every number by up to a half: equal ones would hide swapped rows."""
    rng = torch.Generator(x.device).manual_seed(seed)
    return (x * (0.5 + torch.rand(x.shape, generator=rng, device=x.device))).to(x.dtype)


def _first(x: Tensor) -> Tensor:
    """Return one sequence; inputs shared by all sequences stay unchanged."""
    return x[:1] if x.dim() > 2 and len(x) == TRIAL[0] else x


def _gradients(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of the inputs for a random gradient of the output."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = run(*leaves)
    rng = torch.Generator(output.device).manual_seed(0)
    gradient = torch.randn(output.shape, generator=rng, device=output.device).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def _compare(run: Callable[..., Tensor], truth: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Raise Disagreement if results differ by more than the allowed error."""
    true = _gradients(truth, [x.float() for x in inputs])
    for i, (found, exact) in enumerate(zip(_gradients(run, inputs), true, strict=True)):
        error = ((found.float() - exact).norm() / exact.norm()).item()
        if not error <= ALLOWED:  # NaN too
            what = f"its gradient at input {i} of {len(inputs)}" if i else "its output"
            raise Disagreement(f"{what} is off by {error:.2g}, more than {ALLOWED:g}")


def _note(package: str, about: object) -> Path:
    """Return the file of a refusal, beside Triton's cache."""
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
    """Write all or nothing; if the folder cannot be written, the next process repeats the trial."""
    draft = note.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(reason)
        draft.replace(note)
