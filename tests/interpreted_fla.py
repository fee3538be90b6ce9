"""Kernels of flash-linear-attention on a CPU, by Triton's interpreter; `interpreted` runs a part in its own process.

The interpreter is chosen before Triton is imported. It cannot time kernels, so that the first configuration is taken.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import fla_pairs
import pytest
import torch
from fla_pairs import PAIRS

from arch_bench.mixers import fla_layer
from arch_bench.mixers.base import tensors
from arch_bench.ops import nsa
from arch_bench.ops.kernel import Unsupported

D, T = 32, 20


def build(layer: str, **options: Any) -> fla_layer.FlaLayer:
    torch.manual_seed(0)
    return fla_layer.FlaLayer(d_model=D, layer=layer, n_heads=2, options=options, kernel="auto").eval()


def decodes_as_forward(layer: str, **options: Any) -> None:
    mixer, x = build(layer, **options), torch.randn(2, T, D, requires_grad=True)
    expected = mixer(x)
    assert expected.shape == x.shape
    expected[:, T // 2].square().sum().backward()
    assert x.grad is not None
    assert x.grad[:, : T // 2 + 1].abs().sum() > 0
    assert (x.grad[:, T // 2 + 1 :] == 0).all()
    with torch.no_grad():
        for n_prompt in (1, 7):
            state = mixer.init_state(2, T)
            before = [(t.shape, t.dtype) for t in tensors(state)]
            y, state = mixer.prefill(x[:, :n_prompt], state)
            found = [*y.unbind(1)]
            for x_t in x[:, n_prompt:].unbind(1):
                y_t, state = mixer.step(x_t, state)
                found.append(y_t)
            torch.testing.assert_close(torch.stack(found, 1), expected, atol=1e-5, rtol=1e-4)
            assert [(t.shape, t.dtype) for t in tensors(state)] == before
    assert mixer.state_bytes(10) == mixer.state_bytes(1000) > 0
    print(layer, "decodes")


@torch.no_grad()
def equals_ours(layer: str) -> None:
    torch.manual_seed(0)
    mixer, theirs = PAIRS[layer](importlib.import_module("fla.layers"))
    x = torch.randn(2, T, fla_pairs.D)
    torch.testing.assert_close(theirs.eval()(x)[0], mixer(x), atol=1e-5, rtol=1e-4)
    print(layer, "equals ours")


def says_why_not(layer: str, reason: str, **options: Any) -> None:
    with pytest.raises(Unsupported, match=reason):
        build(layer, **options).init_state(1, T)
    print(layer, "does not decode")


def layers() -> None:
    fla_layer.missing = lambda device, package: None
    fla_layer.TRIAL = (1, T)  # one chunk: it cannot interpret all kernels of several
    for name in ("GatedSlotAttention", "DeltaNet"):
        decodes_as_forward(name)
    for name in PAIRS:
        equals_ours(name)
    says_why_not("ForgettingAttention", "keeps keys and values in a cache that grows by copying")


def sparse_attention() -> None:
    """Its first two branches, outputs and gradients."""
    rng = torch.Generator().manual_seed(0)
    shapes = [(1, 16, 70, 16), (1, 1, 70, 16), (1, 1, 70, 16), (3, 1, 16, 70, 1)]
    inputs = nsa.Inputs(*(torch.randn(shape, generator=rng, requires_grad=True) for shape in shapes))
    gates = inputs.gates * torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1, 1, 1)
    sizes = nsa.Sizes(block=16, top_k=4, window=8)
    found, expected = nsa._fla(inputs, sizes), nsa.reference(inputs._replace(gates=gates), sizes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for got, want in zip(torch.autograd.grad(found.square().sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    print("sparse attention equals the reference")


def interpreted(part: str) -> str:
    """What a part prints. Raises AssertionError with what it complained of."""
    paths = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    command = [sys.executable, __file__, part]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    importlib.import_module("triton.runtime.autotuner").Autotuner._bench = lambda self, *args, **kwargs: [1.0] * 3
    {"layers": layers, "sparse_attention": sparse_attention}[sys.argv[1]]()
