"""The encoder-decoder: the network of `torch.nn.Transformer`, its source at every length, and whom it refuses."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from arch_bench.cell import match, run
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, ConfigError, cell_of, compose
from arch_bench.encoder_decoder import EncoderDecoder
from arch_bench.mixers.base import tensors
from arch_bench.ops.kernel import Unsupported
from arch_bench.train.generation import generate
from arch_bench.train.step import TrainStep, list_scored
from tasks.base import stream

VOCAB, BATCH, T, D = 11, 2, 24, 32
S = 8
"""Of the default task: 4 pairs."""
CPU = torch.device("cpu")


def cell(*overrides: str) -> Cell:
    return cell_of(compose(["backbone=encoder_decoder", f"d_model={D}", f"seq_len={T}", "device=cpu", *overrides]))


def backbone(*overrides: str, **sizes: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    model: EncoderDecoder = build(cell(*overrides), "backbone", vocab_size=VOCAB, **sizes)
    return model.eval()


def tokens(length: int = T) -> Tensor:
    return torch.randint(VOCAB, (BATCH, length), generator=torch.Generator().manual_seed(1))


def logits(model: EncoderDecoder, x: Tensor) -> Tensor:
    return model.head(model(x))


def decoded(model: EncoderDecoder, x: Tensor, prompt: int) -> Tensor:
    """Logits from the last token of the prompt on."""
    y, state = model.prefill(x[:, :prompt], model.init_state(len(x), x.shape[1]))
    found = [y]
    for token in x[:, prompt:].unbind(1):
        y, state = model.step(token, state)
        found.append(y)
    return torch.stack(found, 1)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # what its own constructor asks for
@pytest.mark.parametrize("norm_at", ["post", "pre"])
def test_it_is_the_transformer_of_pytorch(norm_at: str) -> None:
    model = backbone(f"backbone.norm_at={norm_at}", "n_layers=3")
    theirs = nn.Transformer(
        D, 4, 3, 3, 4 * D, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_at == "pre"
    ).eval()
    copy_weights(model, theirs)
    source, target = (model._embed(part) for part in (tokens()[:, :S], tokens()[:, S:]))
    mask = nn.Transformer.generate_square_subsequent_mask(T - S)
    expected = theirs(source, target, tgt_mask=mask, tgt_is_causal=True)
    torch.testing.assert_close(model(tokens())[:, S:], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def copy_weights(model: EncoderDecoder, theirs: Any) -> None:
    """Into PyTorch's, whose biases of attention start as zeros; its norms at the end are those of pre-norm only."""
    for parameter in [p for block in model.blocks for p in block.parameters()]:
        parameter.add_(0.05 * torch.randn_like(parameter))  # norms and biases that differ
    theirs.encoder.norm, theirs.decoder.norm = model.source_norm, model.norm
    for block, layer in zip(model._encoder, theirs.encoder.layers, strict=True):
        mixer, mlp = parts(block)
        layer.self_attn.in_proj_weight.copy_(mixer.qkv.weight)
        layer.self_attn.out_proj.weight.copy_(mixer.out.weight)
        layer.linear1, layer.linear2, layer.norm1, layer.norm2 = mlp.up, mlp.down, block.norm, block.mlp_norm
    for (own, cross), layer in zip(model._layers, theirs.decoder.layers, strict=True):
        (looks_back, _), (asks, mlp) = parts(own), parts(cross)
        layer.self_attn.in_proj_weight.copy_(looks_back.qkv.weight)
        layer.self_attn.out_proj.weight.copy_(looks_back.out.weight)
        layer.multihead_attn.in_proj_weight.copy_(torch.cat((asks.q.weight, asks.kv.weight)))
        layer.multihead_attn.out_proj.weight.copy_(asks.out.weight)
        layer.linear1, layer.linear2 = mlp.up, mlp.down
        layer.norm1, layer.norm2, layer.norm3 = own.norm, cross.norm, cross.mlp_norm


def parts(block: Any) -> tuple[Any, Any]:
    return block.mixer, block.mlp


def test_tokens_are_scaled_before_sinusoidal_positions_are_added() -> None:
    model = backbone()
    found = model._embed(tokens()) - model.positions(torch.arange(T))  # type: ignore[misc]
    torch.testing.assert_close(found, model.embedding(tokens()) * D**0.5, atol=1e-6, rtol=1e-5)


def test_the_source_is_seen_both_ways_and_the_target_is_not() -> None:
    model, x = backbone(), tokens()
    before = model(x)
    for changed in (0, S - 1, T // 2):
        other = x.clone()
        other[:, changed] = (other[:, changed] + 1) % VOCAB
        is_same = (model(other) == before).all(-1).all(0)
        assert is_same[:S].all()
        assert is_same[S:].tolist() == [changed >= S and t < changed for t in range(S, T)]
        assert torch.equal(model._encode(other[:, :S])[:, 3], model._encode(x[:, :S])[:, 3]) == (changed >= S)


DIALS = {"norm": ["layer", "rms"], "norm_at": ["pre", "post"], "mlp": ["gelu", "swiglu", "none"], "d_conv": ["0", "4"]}
HEADS = ["scale=true", "scale=false", "qk_norm=true", "n_kv_heads=1", "n_kv_heads=2"]


@pytest.mark.parametrize("values", [*product(*DIALS.values())], ids="-".join)
def test_dials_cross(values: tuple[str, ...]) -> None:
    model = backbone(*(f"backbone.{dial}={value}" for dial, value in zip(DIALS, values, strict=True)))
    torch.testing.assert_close(
        decoded(model, tokens(), S + 5), logits(model, tokens())[:, S + 4 :], atol=1e-4, rtol=1e-4
    )
    logits(model, tokens()).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "alibi"])
@pytest.mark.parametrize("dial", HEADS)
def test_dials_of_heads(dial: str, positions: str) -> None:
    dials = [f"backbone.mixer.{dial}", f"backbone.positions={positions}"]
    model, reference = backbone(*dials), backbone(*dials, "kernel=reference")
    assert (model.kernel, reference.kernel) == ("sdpa", "reference")
    torch.testing.assert_close(model(tokens()), reference(tokens()), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decoded(model, tokens(), S), logits(model, tokens())[:, S - 1 :], atol=1e-4, rtol=1e-4)


SOURCES = {
    "mqar": [S, S, S],
    "copy_memory": [T - 10, 2 * T - 10, 4 * T - 10],
    "string_copy": [12, 24, 48],  # `$`, and half of the rest
    "adding": [T - 1, 2 * T - 1, 4 * T - 1],
}


@pytest.mark.parametrize(("task", "found"), SOURCES.items())
def test_the_source_is_that_of_the_task_at_every_length(task: str, found: list[int]) -> None:
    model = backbone(f"task={task}")
    assert [model.n_source(scale * T) for scale in (1, 2, 4)] == found
    for scale, n_source in zip((1, 2, 4), found, strict=True):
        is_zero = (model(tokens(scale * T)) == 0).all(-1).all(0)
        assert is_zero.tolist() == [t < n_source for t in range(scale * T)]


@pytest.mark.parametrize("overrides", [[], ["task=copy_memory"], ["task=adding"]])
def test_learned_positions_are_those_of_the_longer_half(overrides: list[str]) -> None:
    """Each half counts from 0: a table of all positions of both would have rows that no training reaches."""
    model = backbone("backbone.positions=learned", *overrides)
    logits(model, tokens()).square().mean().backward()
    rows = model.positions.table.grad.abs().sum(-1)  # type: ignore[union-attr]
    assert (rows > 0).all()
    assert len(rows) == max(model.n_source(T), T - model.n_source(T))
    for reach in (lambda: model(tokens(2 * T)), lambda: model.init_state(BATCH, 2 * T)):
        with pytest.raises(Unsupported, match=f"trained for {len(rows)} positions, asked for"):
            reach()


@pytest.mark.parametrize(("task", "length", "n_source"), [("mqar", 5, 4), ("copy_memory", 7, 1), ("mqar", 2, 1)])
def test_at_lengths_without_an_example_both_halves_have_a_token(task: str, length: int, n_source: int) -> None:
    model = backbone(f"task={task}")
    assert model.n_source(length) == n_source
    found = logits(model, tokens(length))
    torch.testing.assert_close(decoded(model, tokens(length), n_source)[:, 1:], found[:, n_source:])


def test_a_sequence_may_go_on_beyond_the_example_that_it_began_as() -> None:
    model = backbone("task=copy_memory", context_len=T)
    assert {model.n_source(n) for n in (T, T + 1, 10 * T)} == {T - 10}


@pytest.mark.parametrize("length", [T, T + 1])  # one more would leave room for a longer string, or not
@torch.no_grad()
def test_an_answer_is_generated_from_the_source(length: int) -> None:
    it = cell("task=string_copy", f"seq_len={length}")
    task = build(it, "task")
    model = build(it, "backbone", vocab_size=task.vocab_size).eval()
    nn.init.normal_(model.head.weight)  # far from a tie between the likeliest tokens
    tokens, _ = task.sample(3, stream(0, "test", 0, CPU), CPU)
    written = generate(model, tokens[:, : task.n_prompt], length - task.n_prompt + 1)
    for t in range(task.n_prompt, length + 1):
        likeliest = logits(model, tokens)[:, t - 1].argmax(-1)
        assert torch.equal(written[:, t - task.n_prompt], likeliest)
        tokens[:, t : t + 1] = likeliest[:, None]
    assert model.n_source(length) == task.n_prompt - 1, "the mark before the answer is where the decoder begins"


def test_the_state_holds_the_keys_and_values_of_every_position() -> None:
    model = backbone("backbone.mixer.n_kv_heads=2", "n_layers=3")
    n_positions = 1 + 3  # the model's own, and self-attention's
    assert model.state_bytes(100) == 3 * 2 * 100 * (D // 2) * 4 + n_positions * 8


def test_a_prompt_holds_the_source() -> None:
    model = backbone()
    with pytest.raises(ValueError, match=r"^a prompt of 7 tokens does not hold the source: needs 8 or more$"):
        model.prefill(tokens()[:, :7], model.init_state(BATCH, T))
    with pytest.raises(ValueError, match=r"^position=3 is inside the source: needs 0, or position >= 8$"):
        model.init_state(BATCH, T, position=3)


def test_a_step_without_a_source_shows() -> None:
    model = backbone()
    assert model.step(tokens()[:, 0], model.init_state(BATCH, T))[0].isnan().all()
    _, state = model.prefill(tokens()[:, :S], model.init_state(BATCH, T))
    assert all(t.isfinite().all() for t in tensors(state))


def test_flops_by_hand() -> None:
    """8 tokens of source and 16 of target, two layers."""
    found = backbone("backbone.mixer.n_kv_heads=1", "backbone.mlp_ratio=3").flops_per_token(T, n_scored=4)
    mlp = 2 * 2 * 32 * 96
    qkv_and_out = 2 * 32 * (32 + 2 * 8) + 2 * 32 * 32
    encoder = 8 * (qkv_and_out + mlp) + 8 * 8 * 4 * 32
    own = 16 * qkv_and_out + (1 + 16) * 16 / 2 * 4 * 32
    cross = 16 * (2 * 2 * 32 * 32 + mlp) + 8 * 2 * 32 * 2 * 8 + 16 * 8 * 4 * 32
    head = 4 * 2 * 32 * VOCAB
    assert found * T == pytest.approx(2 * (encoder + own + cross) + head)


def test_a_counter_sees_the_same_flops() -> None:
    model = backbone("kernel=reference")
    with FlopCounterMode(display=False) as counter:
        model.head(model(tokens())[:, -4:])
    n_masked = 16 * 15 / 2  # the reference computes the whole square
    assert counter.get_total_flops() == BATCH * (T * model.flops_per_token(T, n_scored=4) + 2 * 4 * D * n_masked)


def losses(task: str, kind: str, n_steps: int, *overrides: str) -> list[float]:
    it = cell(f"task={task}", "n_layers=1", "optim.lr=3e-3", *overrides)
    made = build(it, "task")
    torch.manual_seed(0)
    model = build(it, "backbone", vocab_size=made.vocab_size)
    step = TrainStep(model, it.optim, max_steps=n_steps, kind=kind, precision="fp32", loss_kernel="full")
    found = []
    for i in range(n_steps):
        step(list_scored(made.sample(32, stream(0, "train", i, CPU), CPU), made.max_scored))
        found.append(step.figures(1)[0].item())
    assert step.kind == kind, step.why
    return found


def test_it_learns_to_copy() -> None:
    found = losses("copy_memory", "eager", 300, "task.n_data=4", "optim.lr=1e-2")
    assert 2.3 < found[0] < 10, "a tied head with words of std 1 begins by repeating its input"
    assert found[-1] < 0.3, found[::20]


def test_every_phase_has_rows(tmp_path: Path) -> None:
    """Decoding goes on for 64 tokens, though the task has 10 to give back."""
    small = "task=copy_memory isolate=false logger=none n_layers=1 eval_scales=[1,2] trainer.max_steps=2"
    lengths = "speed.lengths=[32] decode.lengths=[32] trainer.n_test_batches=1 speed.n_steps=3 speed.max_seconds=0.1"
    small_cell = cell(f"results_dir={tmp_path}", "speed.tokens_per_step=64", *small.split(), *lengths.split())
    rows = run.run_cell(small_cell, say=lambda row: None)
    assert [row.kind for row in rows] == ["speed", "decode", "quality", "quality"]
    assert {row.status for row in rows} == {"ok"}, [row.reason for row in rows]
    assert rows[1].metrics["state_bytes"] == 2 * 32 * D * 4 + 2 * 8


@pytest.mark.parametrize("overrides", [[], ["match.params=100000"], ["phases=[kernels]"]])
def test_a_task_without_a_source_is_refused_in_one_line(overrides: list[str], tmp_path: Path) -> None:
    refused = cell("task=text", "logger=none", "isolate=false", f"results_dir={tmp_path}", *overrides)
    complaint = "^backbone=encoder_decoder: needs a source, and task=text gives nothing whole before its first scored"
    with pytest.raises(ConfigError, match=complaint):
        run.run_cell(refused, say=lambda row: None)


def test_a_budget_counts_both_halves() -> None:
    found, n_params = match.matched(cell("match.params=500000", "task.vocab_size=64"))
    model = build(found, "backbone", vocab_size=64)
    assert n_params == model.n_params() == pytest.approx(500_000, rel=found.match.tolerance)
