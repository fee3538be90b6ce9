"""Check a model against its reference before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from arch_bench.backbone import Backbone
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, with_kernel
from arch_bench.ops.kernel import Unsupported
from arch_bench.results import Metrics
from arch_bench.runtime.precision import autocast

N_DECODED = 4
"""Number of tokens after the prompt at which decoding is compared; a task's first answer is no nearer to the end."""
LENGTH, BATCH = 256, 2
"""Shape of the compared input: two blocks of a block-sparse kernel, and affordable for a loop over positions."""
NO_REFERENCE = "a layer of another library has no reference here"
ALLOWED = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
"""Relative error of the hidden states (in the Euclidean norm) above which a kernel is suspect."""
OF_ROUNDING = 1.5
"""Ratio to the reference's own error in that precision above which a suspect kernel is wrong.

Depth and exponential gates amplify rounding. Eight layers of xLSTM in bf16 are 2 to 13 % off, depending on the drawn
weights; on a CPU the errors of the reference and of the kernel agree to a hundredth of that.
"""


class Compared(NamedTuple):
    run: Callable[[Backbone, Tensor], Tensor]
    """Output of the model."""
    truth: Callable[[Backbone, Tensor], Tensor]
    """Same output from the forward pass of its reference."""


@torch.no_grad()
def check(cell: Cell, backbone: Backbone, precision: str, **sizes: int) -> Metrics:
    """Measure `gate_error`, relative to `kernel=reference` with the same weights in fp32.

    Without a reference, return only `gate_why`. A model that picks positions by their scores is compared in fp32,
    whatever `precision` is; `gate_precision` records the precision used.

    sizes: arguments that the backbone was built with besides its configuration.

    Raises Unsupported when the error is above ALLOWED, and above OF_ROUNDING times the reference's own error in that
    precision: a figure for that kernel would be meaningless.
    """
    was_training = backbone.training
    try:
        return _compare(cell, backbone.eval(), precision, sizes, Compared(_hidden, _hidden))
    finally:
        backbone.train(was_training)


@torch.no_grad()
def check_decode(cell: Cell, precision: str, vocab_size: int, device: torch.device) -> Metrics:
    """Measure the same for decoding, on a new model: the logits of a prompt and of N_DECODED tokens after it.

    They are compared with the forward pass of the reference. Raises Unsupported as `check` does.
    """
    sizes = {"vocab_size": vocab_size, "max_len": LENGTH}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device, autocast(precision, device):
        backbone: Backbone = build(cell, "backbone", **sizes)
    return _compare(cell, backbone.eval(), precision, sizes, Compared(_decoded, _last))


def _hidden(model: Backbone, tokens: Tensor) -> Tensor:
    hidden: Tensor = model(tokens)
    return hidden


def _last(model: Backbone, tokens: Tensor) -> Tensor:
    """Compute the logits (B, 1 + N_DECODED, vocabulary) of the last positions at once."""
    return model.head(model(tokens)[:, -1 - N_DECODED :])


def _decoded(model: Backbone, tokens: Tensor) -> Tensor:
    """Compute the same logits from a prompt and then one token after the other."""
    n = tokens.shape[1] - N_DECODED
    y, state = model.prefill(tokens[:, :n], model.init_state(len(tokens), tokens.shape[1]))
    found = [y]
    for token in tokens[:, n:].unbind(1):
        y, state = model.step(token, state)
        found.append(y)
    return torch.stack(found, 1)


def _compare(cell: Cell, backbone: Backbone, precision: str, sizes: dict[str, int], what: Compared) -> Metrics:
    """Compare the model with its reference on random tokens."""
    if not backbone.has_reference:
        return {"gate_why": NO_REFERENCE}
    precision = "fp32" if backbone.picks_by_score else precision
    weight = backbone.embedding.weight
    rng = torch.Generator(weight.device).manual_seed(0)
    length = min(LENGTH, sizes["max_len"])
    tokens = torch.randint(len(weight), (BATCH, length), generator=rng, device=weight.device)
    reference = _reference(cell, backbone, sizes)
    expected = what.truth(reference, tokens)

    def error_of(model: Backbone, run: Callable[[Backbone, Tensor], Tensor]) -> float:
        with autocast(precision, weight.device):
            found = run(model, tokens).float()
        return ((found - expected).norm() / expected.norm()).item()

    error, allowed = error_of(backbone, what.run), ALLOWED[precision]
    if not error <= allowed:
        allowed = max(allowed, OF_ROUNDING * error_of(reference, what.truth))
    if not error <= allowed:
        raise Unsupported(
            f"kernel={backbone.kernel} is {error:.2g} off its reference in {precision}, allowed is {allowed:.2g}"
        )
    return {"gate_error": error, "gate_precision": precision}


def _reference(cell: Cell, backbone: Backbone, sizes: dict[str, int]) -> Backbone:
    device = backbone.embedding.weight.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        model: Backbone = build(with_kernel(cell, "reference"), "backbone", **sizes)
    model.load_state_dict(backbone.state_dict())
    return model.eval()
