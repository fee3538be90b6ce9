"""No time is taken of a model that computes something else than its reference."""

from __future__ import annotations

import torch
from torch import Tensor

from arch_bench.backbone import Backbone
from arch_bench.config import Cell, with_kernel
from arch_bench.objects import build
from arch_bench.ops.kernel import Unsupported
from arch_bench.precision import autocast
from arch_bench.results import Metrics

LENGTH, BATCH = 256, 2
"""Of the input that is compared: two blocks of a block-sparse kernel, affordable for a loop over positions."""
NO_REFERENCE = "a layer of another library has no reference here"
ALLOWED = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
"""Relative error of the hidden states (in the Euclidean norm) from which on a kernel is suspected."""
OF_ROUNDING = 1.5
"""Where that precision takes more from the reference itself: times as much, from which on a kernel is wrong.

Depth and exponential gates amplify rounding. Eight layers of xLSTM in bf16 are 2 to 13 % off, as their weights were
drawn; on a CPU the reference is as far off as the kernel, to a hundredth of that.
"""


@torch.no_grad()
def check(cell: Cell, backbone: Backbone, precision: str, **sizes: int) -> Metrics:
    """`gate_error`, relative, against the same weights in fp32 by `kernel=reference`; `gate_why` if there is no such.

    What picks positions by their scores is compared in fp32, whatever `precision` is, and says so (`gate_precision`).

    sizes: what the backbone was built with besides its configuration.

    Raises Unsupported when it is more than ALLOWED, and more than OF_ROUNDING times what the reference loses in that
    precision: a figure of that kernel would mean nothing.
    """
    if not backbone.has_reference:
        return {"gate_why": NO_REFERENCE}
    precision = "fp32" if backbone.picks_by_score else precision
    weight = backbone.embedding.weight
    device, was_training = weight.device, backbone.training
    rng = torch.Generator(device).manual_seed(0)
    length = min(LENGTH, sizes["max_len"])
    tokens = torch.randint(len(weight), (BATCH, length), generator=rng, device=device)
    reference = _reference(cell, backbone, sizes)
    expected = reference(tokens)
    backbone.eval()
    error = _error(backbone, tokens, expected, precision)
    backbone.train(was_training)
    allowed = ALLOWED[precision]
    if not error <= allowed:
        allowed = max(allowed, OF_ROUNDING * _error(reference, tokens, expected, precision))
    if not error <= allowed:
        raise Unsupported(
            f"kernel={backbone.kernel} is {error:.2g} off its reference in {precision}, allowed is {allowed:.2g}"
        )
    return {"gate_error": error, "gate_precision": precision}


def _error(model: Backbone, tokens: Tensor, expected: Tensor, precision: str) -> float:
    with autocast(precision, tokens.device):
        found = model(tokens).float()
    return ((found - expected).norm() / expected.norm()).item()


def _reference(cell: Cell, backbone: Backbone, sizes: dict[str, int]) -> Backbone:
    device = backbone.embedding.weight.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        model: Backbone = build(with_kernel(cell, "reference"), "backbone", **sizes)
    model.load_state_dict(backbone.state_dict())
    return model.eval()
