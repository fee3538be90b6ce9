"""Analytic FLOPs against counts by hand, and against what PyTorch's counter sees of the reference kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from arch_bench.backbone import TRAIN_PER_FORWARD, Backbone
from arch_bench.config.instantiate import build
from arch_bench.config.schema import cell_of, compose

BATCH, T, D, LAYERS, VOCAB, SCORED = 2, 16, 8, 2, 11, 4
WINDOW = 4
MLP = 2 * 8 * 24 + 2 * 24 * 8  # mlp_ratio=3
VISIBLE_PAIRS = {"transformer": 136, "local_attention": 58}  # 1 + 2 + ... + 16; 1 + 2 + 3 + 13 * 4
MIXERS = {
    "lstm": 4 * (2 * 8 * 8 + 2 * 8 * 8),  # W x and U h, for each gate
    "transformer": 3 * 2 * 8 * 8 + 2 * 8 * 8 + (2 * 8 + 2 * 8) * 136 / 16,  # q, k, v; out; q k and p v
    "local_attention": 3 * 2 * 8 * 8 + 2 * 8 * 8 + (2 * 8 + 2 * 8) * 58 / 16,
    "mamba": sum(
        (
            2 * 8 * 32,  # in_proj: d_model to x and z, 16 each
            2 * 16 * 4,  # conv1d: 16 channels, 4 taps
            2 * 16 * (1 + 3 + 3),  # x_proj: to dt (rank 1), B and C (3 states)
            2 * 1 * 16,  # dt_proj
            2 * 16 * 8,  # out_proj
        )
    ),
}
SIZES = {
    "transformer": ["backbone.mixer.n_heads=2"],
    "local_attention": ["backbone.mixer.n_heads=2", f"backbone.mixer.window={WINDOW}"],
    "mamba": ["backbone.mixer.d_state=3"],
}


def backbone(name: str, *overrides: str) -> Backbone:
    dials = [f"seq_len={T}", f"d_model={D}", f"n_layers={LAYERS}", "backbone.mlp_ratio=3", "kernel=reference"]
    cell = cell_of(compose([f"backbone={name}", *dials, *SIZES.get(name, []), *overrides]))
    return build(cell, "backbone", vocab_size=VOCAB)


def flops(name: str, *overrides: str) -> float:
    return backbone(name, *overrides).flops_per_token(T, n_scored=SCORED)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize(("dial", "extra"), [("d_conv=0", 0), ("d_conv=3", 2 * 8 * 3), ("mlp=none", -MLP)])
def test_count_by_hand(name: str, dial: str, extra: int) -> None:
    head = 2 * 8 * 11 * 4 / 16
    assert flops(name, f"backbone.{dial}") == 2 * (MIXERS[name] + MLP + extra) + head


def seen_by_counter(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def scored_logits(model: Backbone) -> Tensor:
    return model.head(model(torch.randint(VOCAB, (BATCH, T)))[:, -SCORED:])


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What `causal_conv` calls on CUDA, where the counter sees it."""
    return F.conv1d(F.pad(x.mT, (weight.shape[-1] - 1, 0)), weight, bias, groups=weight.shape[0]).mT


@pytest.fixture
def visible_conv(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("block", "mixers.mamba"):
        monkeypatch.setattr(f"arch_bench.{module}.causal_conv", conv1d)


@pytest.mark.usefixtures("visible_conv")
@pytest.mark.parametrize("name", MIXERS)
def test_counter_sees_the_same(name: str) -> None:
    model = backbone(name, "backbone.d_conv=3")
    n_masked = T * T - VISIBLE_PAIRS[name] if name in VISIBLE_PAIRS else 0  # the reference computes the whole square
    expected = BATCH * (T * model.flops_per_token(T, n_scored=SCORED) + LAYERS * 4 * D * n_masked)
    assert seen_by_counter(lambda: scored_logits(model)) == expected


@pytest.mark.parametrize("name", sorted(set(MIXERS) - {"lstm"}))  # its first h is a constant, without a gradient
def test_counter_sees_the_backward_pass_cost_two_forward_passes(name: str) -> None:
    model = backbone(name)  # no visible convolution: the counter takes the backward of a depthwise one for a dense one
    forward = seen_by_counter(lambda: scored_logits(model))
    assert seen_by_counter(lambda: scored_logits(model).sum().backward()) == TRAIN_PER_FORWARD * forward


def test_the_scan_is_counted_apart() -> None:
    found = {name: backbone(name).blocks[0].mixer.elementwise_flops_per_token(T) for name in MIXERS}  # type: ignore[union-attr, operator]
    assert found == {"lstm": 0, "transformer": 0, "local_attention": 0, "mamba": 9 * 16 * 3}


@pytest.mark.parametrize("length", [1, 5, T])
def test_a_window_as_long_as_the_sequence_costs_full_attention(length: int) -> None:
    local = backbone("local_attention", f"backbone.mixer.window={T}")
    assert local.flops_per_token(length, n_scored=1) == backbone("transformer").flops_per_token(length, n_scored=1)


def test_full_attention_grows_with_the_length_and_a_window_does_not() -> None:
    full, local = (backbone(name) for name in ("transformer", "local_attention"))
    near, far = (full.flops_per_token(n, n_scored=0) for n in (1024, 4096))
    assert far - near == LAYERS * 2 * D * (4096 - 1024)
    assert local.flops_per_token(4096, n_scored=0) < local.flops_per_token(1024, n_scored=0) * 1.001


@pytest.mark.parametrize("dial", ["positions=learned", "tie_embeddings=false", "mixer.n_heads=4"])
def test_look_ups_and_heads_cost_nothing(dial: str) -> None:
    assert flops("transformer", f"backbone.{dial}") == flops("transformer")
