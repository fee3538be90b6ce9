"""The vocabulary projection and its cross-entropy.

    loss = mean over n with targets_n != IGNORE of -log softmax(W x_n)[targets_n]

x: (n, d_model), W: (vocab_size, d_model), targets: (n,). The projection runs in autocast's precision where it is on,
the softmax in fp32 or wider. The chunked kernels never hold all logits: they compute the gradients of a chunk of rows
together with its loss.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.ops.kernel import choose_kernel

KernelFn = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def full(x: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Compute all logits at once, (n, vocab_size)."""
    logits = F.linear(x, weight)
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def chunked_torch(x: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Run PyTorch's own chunked loss, available from 2.13 on."""
    x, weight = _cast(x), _cast(weight)
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(x, weight, targets, label_smoothing=label_smoothing, options=options)


def chunked_fla(x: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Run flash-linear-attention's Triton loss; the weight's gradient is summed in the projection's dtype."""
    loss = importlib.import_module("fla.modules.fused_linear_cross_entropy").fused_linear_cross_entropy_loss
    options = {"label_smoothing": label_smoothing, "accumulate_grad_in_fp32": False}  # in fp32 it takes 4 times as long
    return loss(_cast(x), targets, _cast(weight), **options)


KERNELS: dict[str, KernelFn] = {"full": full, "fla": chunked_fla, "torch": chunked_torch}
CHUNKED_FROM = 32_768
"""The vocabulary from which `auto` takes chunks on a GPU, set between two that were measured on an H200, forward and
backward: 65,536 positions, width 768, vocabulary 50,304: 29.5 ms and 2.2 GiB against 31.0 ms and 6.8 GiB for `full`;
16,384, 128, 8,192: 2.5 ms against 0.7 ms."""


@torch.compiler.disable
def _opaque(kernel: str, *args: Tensor | float) -> Tensor:
    """Run a kernel that tracing cannot see into."""
    return KERNELS[kernel](*args)  # type: ignore[arg-type]


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, kernel: str, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the mean loss in nats, by the kernel of that name."""
    if kernel == "full":
        return full(x, weight, targets, label_smoothing)
    return _opaque(kernel, x, weight, targets, label_smoothing)


def choose_loss_kernel(kernel: str, vocab_size: int, label_smoothing: float, device: torch.device) -> str:
    """Resolve `auto`: chunked for a large vocabulary on a GPU, else full. Raises as `choose_kernel`."""
    found = obstacles(device, label_smoothing)
    if kernel != "auto":
        return choose_kernel(kernel, found, key="loss_kernel")
    return "fla" if vocab_size >= CHUNKED_FROM and found["fla"] is None else "full"


def obstacles(device: torch.device, label_smoothing: float = 0.0) -> dict[str, str | None]:
    """Return why each kernel cannot run on this device."""
    no_cuda = f"needs a CUDA device, not {device.type}" if device.type != "cuda" else None
    no_fla = None if find_spec("fla") and find_spec("triton") else "needs flash-linear-attention and triton"
    too_old = None if hasattr(F, "linear_cross_entropy") else f"needs PyTorch 2.13, not {torch.__version__}"
    no_smoothing = "has no label smoothing; use loss_kernel=full" if label_smoothing else None
    return {"full": None, "fla": no_cuda or no_fla, "torch": too_old or no_smoothing}


def _cast(x: Tensor) -> Tensor:
    """Cast as autocast would, which does not cover these kernels."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
