"""Whole models as people start them, against the rules in their authors' code; the source stands beside each value."""

from __future__ import annotations

import pytest
import torch
from models import depth
from torch import Tensor

from arch_bench.backbone import Backbone
from arch_bench.config import cell_of, compose
from arch_bench.objects import build

D, LAYERS = 64, 4


def backbone(name: str, *overrides: str) -> Backbone:
    torch.manual_seed(0)
    given = [f"backbone={name}", f"d_model={D}", "seq_len=64", depth(name, LAYERS), *overrides]
    return build(cell_of(compose(given)), "backbone", vocab_size=512)


def bound(weight: Tensor) -> float:
    """That of a uniform distribution of the same spread, which PyTorch starts linear maps with at fan_in^-1/2."""
    limit: float = weight.abs().max().item()
    assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.03)
    return limit


@pytest.mark.parametrize("mlp", ["none", "gelu", "swiglu"])
@pytest.mark.parametrize("name", ["mamba", "mamba2", "mamba3", "samba", "jamba"])
def test_what_mamba_adds_to_the_residual_stream_starts_smaller_the_deeper_it_is(name: str, mlp: str) -> None:
    """mamba_ssm, mixer_seq_simple.py, `_init_weights`: fan_in^-1/2 over the root of the sums, 1 or 2 to a layer."""
    model = backbone(name, f"backbone.mlp={mlp}")
    n_layers = len(model._stack)
    n_sums = n_layers if mlp == "none" else 2 * n_layers
    found = {
        key: p for key, p in model.named_parameters() if key.endswith(("out.weight", "out_proj.weight", "down.weight"))
    }
    assert len(found) == n_sums
    for key, weight in found.items():
        assert bound(weight) == pytest.approx((weight.shape[1] * n_sums) ** -0.5, rel=0.01), key
    for key, bias in model.named_parameters():
        assert not (".mlp." in key and key.endswith(".bias") and bias.any()), key


@pytest.mark.parametrize("overrides", [["backbone.norm_at=post"], []])
def test_others_and_post_norms_are_not_damped(overrides: list[str]) -> None:
    for block in backbone("mamba" if overrides else "transformer", *overrides)._stack:
        weights = [
            p for key, p in block.named_parameters() if key.endswith(("out.weight", "out_proj.weight", "down.weight"))
        ]
        assert len(weights) == 2
        assert all(bound(p) == pytest.approx(p.shape[1] ** -0.5, rel=0.01) for p in weights)


def test_embeddings_and_untied_heads_start_at_the_scale_of_gpt2() -> None:
    """mamba_ssm's `initializer_range`, GPT-2's and fla's: 0.02."""
    model = backbone("mamba", "backbone.tie_embeddings=false")
    for weight in (model.embedding.weight, model.head.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
