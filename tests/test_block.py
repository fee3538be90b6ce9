"""The dials of the block: each crosses with every other, and together they make the published blocks."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from arch_bench.backbone import Backbone
from arch_bench.block import Block
from arch_bench.config.instantiate import build
from arch_bench.config.schema import ConfigError, cell_of, compose
from arch_bench.norm import make_norm

VOCAB, T, D = 11, 20, 32
DIALS = {"norm": ["layer", "rms"], "norm_at": ["pre", "post"], "mlp": ["gelu", "swiglu", "none"], "d_conv": ["0", "4"]}


def backbone(name: str, *overrides: str) -> Backbone:
    torch.manual_seed(0)
    cell = cell_of(compose([f"backbone={name}", f"d_model={D}", f"seq_len={T}", *overrides]))
    return build(cell, "backbone", vocab_size=VOCAB).eval()


def tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (2, T), generator=torch.Generator().manual_seed(1))


def check_decode(model: Backbone) -> None:
    x = tokens()
    y, state = model.prefill(x[:, :7], model.init_state(2, T))
    found = [y]
    for t in range(7, T):
        y, state = model.step(x[:, t], state)
        found.append(y)
    torch.testing.assert_close(torch.stack(found, 1), model.head(model(x))[:, 6:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("values", [*product(*DIALS.values())], ids="-".join)
@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_dials_cross(name: str, values: tuple[str, ...]) -> None:
    model = backbone(name, *(f"backbone.{dial}={value}" for dial, value in zip(DIALS, values, strict=True)))
    check_decode(model)
    model.head(model(tokens())).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


HEADS = [f"{dial}={value}" for dial in ("scale", "qk_norm") for value in ("true", "false")]
HEADS += ["n_kv_heads=1", "n_kv_heads=2"]


@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
@pytest.mark.parametrize("dial", HEADS)
@pytest.mark.parametrize("name", ["transformer", "local_attention"])
def test_dials_of_heads(name: str, dial: str, positions: str) -> None:
    dials = [f"backbone.mixer.{dial}", f"backbone.positions={positions}"]
    model, reference = backbone(name, *dials), backbone(name, *dials, "kernel=reference")
    assert model.kernel != "reference"
    torch.testing.assert_close(model(tokens()), reference(tokens()), atol=1e-5, rtol=1e-4)
    check_decode(model)


def test_a_dial_of_heads_changes_what_it_says() -> None:
    plain, grouped = backbone("transformer"), backbone("transformer", "backbone.mixer.n_kv_heads=1")
    assert grouped.state_bytes(1024) - 8 * 3 == pytest.approx((plain.state_bytes(1024) - 8 * 3) / 4)  # positions: int64
    unscaled = backbone("transformer", "backbone.mixer.scale=false")
    assert not torch.allclose(unscaled(tokens()), plain(tokens()), atol=1e-3)
    normed = backbone("transformer", "backbone.mixer.qk_norm=true")
    assert normed.n_params() == plain.n_params() + 2 * 2 * 8


@pytest.mark.parametrize(
    ("dials", "complaint"),
    [
        (["backbone.mixer.n_heads=5"], "n_heads=5 must divide d_model=32"),
        (["backbone.mixer.n_kv_heads=3"], "n_kv_heads=3 must divide n_heads=4"),
        (["backbone.mixer.n_kv_heads=0"], "n_kv_heads=0 must divide n_heads=4"),
        (["backbone.mixer.qk_norm=yes_please"], "backbone.mixer.qk_norm=yes_please: input should be a valid boolean"),
        (["backbone.mlp_ratio=0"], "mlp_ratio=0.* leaves the MLP no hidden unit; mlp=none leaves out the MLP"),
        (["backbone.norm=batch"], "backbone.norm=batch: input should be 'layer' or 'rms'"),
        (["+backbone.mixer.windows=3"], "takes no windows"),
    ],
)
@pytest.mark.parametrize("name", ["transformer", "local_attention"])
def test_a_wrong_dial_is_named(name: str, dials: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        backbone(name, *dials)


def blocks(model: Backbone) -> list[Any]:
    return list(model.blocks)


def test_post_norm_is_the_layer_of_2017() -> None:
    """Against `nn.TransformerEncoderLayer` with a causal mask and copied weights."""
    model = backbone("transformer", "backbone.norm_at=post", "backbone.positions=none", "n_layers=1")
    (block,) = blocks(model)
    layer = nn.TransformerEncoderLayer(D, 4, 4 * D, dropout=0.0, activation="gelu", batch_first=True)
    layer.self_attn.in_proj_weight.data = block.mixer.qkv.weight.data
    layer.self_attn.out_proj.weight.data = block.mixer.out.weight.data
    layer.linear1, layer.linear2, layer.norm1, layer.norm2 = block.mlp.up, block.mlp.down, block.norm, block.mlp_norm
    x = torch.randn(2, T, D)
    mask = nn.Transformer.generate_square_subsequent_mask(T)
    torch.testing.assert_close(block(x), layer(x, src_mask=mask, is_causal=True), atol=1e-5, rtol=1e-5)
    assert isinstance(model.norm, nn.Identity)


def test_swiglu_has_three_matrices_and_rms_no_shift() -> None:
    model = backbone("llama", "n_layers=1")
    (block,) = blocks(model)
    assert isinstance(block, Block)
    assert {name: tuple(p.shape) for name, p in block.mlp.named_parameters()} == {  # type: ignore[union-attr]
        "gate.weight": (86, 32),
        "up.weight": (86, 32),
        "down.weight": (32, 86),
    }
    x = torch.randn(3, D) + 5
    torch.testing.assert_close(make_norm("rms", D)(x), x / x.square().mean(-1, keepdim=True).sqrt(), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("default")  # of the library's own imports
def test_llama_agrees_with_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = backbone("llama")
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=D,
        intermediate_size=86,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
    )
    theirs = transformers.LlamaModel(config).eval()
    copy_llama(ours, theirs)
    found = theirs(tokens()).last_hidden_state
    torch.testing.assert_close(ours(tokens()), found, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def copy_llama(ours: Backbone, theirs: Any) -> None:
    theirs.embed_tokens.weight.copy_(ours.embedding.weight)
    theirs.norm.weight.copy_(ours.norm.weight)
    for block, layer in zip(blocks(ours), theirs.layers, strict=True):
        q, k, v = block.mixer.qkv.weight.split((32, 16, 16))
        attention = layer.self_attn
        for weight, copied in {attention.q_proj: q, attention.k_proj: k, attention.v_proj: v}.items():
            weight.weight.copy_(copied)
        attention.o_proj.weight.copy_(block.mixer.out.weight)
        layer.mlp.gate_proj.weight.copy_(block.mlp.gate.weight)
        layer.mlp.up_proj.weight.copy_(block.mlp.up.weight)
        layer.mlp.down_proj.weight.copy_(block.mlp.down.weight)
        layer.input_layernorm.weight.copy_(block.norm.weight)
        layer.post_attention_layernorm.weight.copy_(block.mlp_norm.weight)
