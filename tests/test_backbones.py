"""The contract of a backbone, for every file in conf/backbone: a new one is tested the moment it exists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from models import BACKBONES, DECODERS, depth, on_cpu
from torch.utils.flop_counter import FlopCounterMode

from arch_bench.backbone import Backbone
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, ConfigError, cell_of, compose
from arch_bench.mixers.base import count_bytes, tensors
from arch_bench.ops.kernel import Unsupported, choose_kernel

VOCAB, BATCH = 11, 2
LENGTH = 40
"""Longer than the default window, so that a window shows."""


@cache
def cell(*overrides: str) -> Cell:
    return cell_of(compose(["d_model=32", f"seq_len={LENGTH}", *overrides]))


def backbone(name: str, *overrides: str) -> Backbone:
    torch.manual_seed(0)
    return build(cell(f"backbone={name}", depth(name, 2), *overrides), "backbone", vocab_size=VOCAB).eval()


def tokens(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(VOCAB, (BATCH, length), generator=torch.Generator().manual_seed(1))


def logits(model: Backbone, x: torch.Tensor) -> torch.Tensor:
    return model.head(model(x))


@pytest.fixture(params=[*map(on_cpu, BACKBONES)])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[*map(on_cpu, DECODERS)])
def decoder(request: pytest.FixtureRequest) -> str:
    return request.param


def test_there_are_backbones() -> None:
    assert {"lstm", "transformer", "local_attention", "mamba"} <= set(BACKBONES)


@pytest.mark.parametrize("length", [1, 2, LENGTH, LENGTH + 1])
def test_shape(name: str, length: int) -> None:
    model = backbone(name, f"seq_len={LENGTH if length <= LENGTH else 2 * LENGTH}")
    assert logits(model, tokens(length)).shape == (BATCH, length, VOCAB)


def numbers(node: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where a node and those within it hold numbers of their own, or leave them to the mixer."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from numbers(value)
        elif (type(value) in (int, float) or value == "auto") and key not in Cell.model_fields:
            yield node, key


def complaint(at: Cell) -> str | None:
    """Of a backbone that cannot be; None of one that runs."""
    try:
        model = build(at, "backbone", vocab_size=VOCAB)
    except ConfigError as error:
        return str(error)
    assert logits(model, tokens()).isfinite().all()
    return None


@pytest.mark.parametrize("least", [-1, 0])
def test_a_size_that_cannot_be_is_refused_and_named(name: str, least: int) -> None:
    """Whatever number of a mixer is too small, it is told in one line; what is accepted runs."""
    at = cell(f"backbone={name}", depth(name, 2))
    own = None if name == "transformer" else "mixer"  # the dials of the block are the same for all
    for i, (_, key) in enumerate(numbers(at.backbone[own] if own else at.backbone)):
        changed = at.model_copy(deep=True)
        node = [*numbers(changed.backbone[own] if own else changed.backbone)][i][0]
        node[key] = float(least) if isinstance(node[key], float) else least
        told = complaint(changed)
        assert told is None or (key in told and "\n" not in told)


@pytest.mark.parametrize("length", [32, 64])
def test_without_positions_at_multiples_of_a_block(name: str, length: int) -> None:
    model = backbone(name, "backbone.positions=none")
    model.head(model(tokens(length))).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_no_gradient_from_the_future(decoder: str, kernel: str) -> None:
    model = backbone(decoder, "backbone.d_conv=4", f"kernel={kernel}")
    by_fft = "fft" in model.kernel  # a spectrum holds every position: it rounds
    check_causality(model, allowed=1e-6 if by_fft else 0)


def check_causality(model: Backbone, allowed: float = 0) -> None:
    """`allowed`: the largest gradient from the future over the largest of all."""
    leaves: list[torch.Tensor] = []  # a source and its target are embedded one after the other
    model.embedding.register_forward_hook(lambda *args: leaves.append(args[-1].detach().requires_grad_()) or leaves[-1])
    for position in (model.n_source(LENGTH), LENGTH // 2, LENGTH - 1):
        leaves.clear()
        logits(model, tokens())[:, position].square().sum().backward()  # of a norm's output the squares are constant
        gradient = torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None], dim=1)
        assert gradient.shape[1] == LENGTH
        largest = gradient[:, : position + 1].abs().max()
        assert largest > 0
        assert (gradient[:, position + 1 :].abs() <= allowed * largest).all()


def test_a_source_has_no_output(decoder: str) -> None:
    model = backbone(decoder)
    n_source = model.n_source(LENGTH)
    hidden = model(tokens())
    assert (hidden[:, :n_source] == 0).all()
    assert (hidden[:, n_source:] != 0).any(dim=-1).all()


@pytest.mark.parametrize("d_conv", [0, 4])
def test_decode_equals_forward(decoder: str, d_conv: int) -> None:
    model, x = backbone(decoder, f"backbone.d_conv={d_conv}"), tokens()
    state = model.init_state(BATCH, LENGTH)
    if n_source := model.n_source(LENGTH):
        _, state = model.prefill(x[:, :n_source], state)
    stepped = []
    for t in range(n_source, LENGTH):
        y, state = model.step(x[:, t], state)
        stepped.append(y)
    torch.testing.assert_close(torch.stack(stepped, 1), logits(model, x)[:, n_source:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt", [1, 3, LENGTH - 5])
def test_decode_after_prefill_equals_forward(decoder: str, prompt: int) -> None:
    model, x = backbone(decoder, "backbone.d_conv=4"), tokens()
    prompt = max(prompt, model.n_source(LENGTH))
    y, state = model.prefill(x[:, :prompt], model.init_state(BATCH, LENGTH))
    found = [y]
    for t in range(prompt, LENGTH):
        y, state = model.step(x[:, t], state)
        found.append(y)
    torch.testing.assert_close(torch.stack(found, 1), logits(model, x)[:, prompt - 1 :], atol=1e-4, rtol=1e-4)


def test_state_bytes_are_those_of_the_tensors(decoder: str) -> None:
    model = backbone(decoder)
    state = model.init_state(1, 100)
    assert model.state_bytes(100) == sum(t.numel() * t.element_size() for t in tensors(state)) > 0
    assert count_bytes(model.init_state(3, 100)) > model.state_bytes(100)


def test_flops_of_one_token_are_those_that_a_counter_sees(name: str) -> None:
    model = backbone(name, "kernel=reference", "backbone.mlp=none")
    seen = seen_flops(model, batch_size=2) - seen_flops(model, batch_size=1)  # what sequences share is no cost of one
    assert seen <= model.flops_per_token(1, n_scored=1) <= 1.1 * seen  # on a CPU it sees no depthwise convolution
    assert backbone(name, "backbone.mlp=none").flops_per_token(1, n_scored=1) == model.flops_per_token(1, n_scored=1)


def seen_flops(model: Backbone, batch_size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        logits(model, tokens(1)[:batch_size])
    return counter.get_total_flops()


def test_flops_grow_with_the_width_and_with_the_state(decoder: str) -> None:
    model, wider = backbone(decoder), backbone(decoder, "d_model=64")
    near, far = (model.flops_per_token(n, n_scored=n) for n in (1024, 4096))
    assert 0 < near < wider.flops_per_token(1024, n_scored=1024)
    if model.state_bytes(1024) == model.state_bytes(4096):
        assert far == pytest.approx(near, rel=0.03)
    else:
        assert far > near


@pytest.mark.parametrize("is_bf16", [False, True])
def test_state_does_not_change_size_while_decoding(decoder: str, is_bf16: bool) -> None:
    model, x = backbone(decoder, "backbone.d_conv=4"), tokens()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        state = model.init_state(BATCH, LENGTH)
        before = [(t.shape, t.dtype) for t in tensors(state)]
        _, state = model.prefill(x[:, :9], state)
        assert [(t.shape, t.dtype) for t in tensors(state)] == before
        _, state = model.step(x[:, 9], state)
    assert [(t.shape, t.dtype) for t in tensors(state)] == before


def test_decoding_in_bf16_casts_no_weight_twice(decoder: str) -> None:
    model = backbone(decoder)
    sizes = {p.numel() for p in model.parameters() if p.dim() >= 2 and p.numel() > BATCH * 4 * 32}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, state = model.step(tokens()[:, 0], model.init_state(BATCH, LENGTH))
        with torch.profiler.profile(record_shapes=True) as profile:
            model.step(tokens()[:, 1], state)
    casts = [event for event in profile.events() if event.name == "aten::_to_copy" and event.input_shapes]
    assert not [event for event in casts if math.prod(event.input_shapes[0] or [0]) in sizes]


def test_state_at_a_position_costs_what_the_real_one_does(decoder: str) -> None:
    model, x = backbone(decoder), tokens()
    _, real = model.prefill(x[:, :-1], model.init_state(BATCH, LENGTH))
    sized = model.init_state(BATCH, LENGTH, position=LENGTH - 1)
    assert [t.shape for t in tensors(sized)] == [t.shape for t in tensors(real)]
    assert sized[0] == real[0]
    assert model.step(x[:, -1], sized)[0].shape == (BATCH, VOCAB)


def runnable_kernels(name: str) -> list[str]:
    """What the mixer offers here besides its reference; the mixers of a pattern have no kernel in common but `auto`."""
    if is_hybrid(name):
        return ["auto"]
    with pytest.raises(ValueError, match="choose from: auto, ") as refused:
        backbone(name, "kernel=none_such")
    offered = str(refused.value).partition("choose from: auto, ")[2].split(", ")
    assert "reference" in offered
    return [kernel for kernel in offered if kernel != "reference" and runs_here(name, kernel)]


def is_hybrid(name: str) -> bool:
    return cell(f"backbone={name}").backbone["pattern"] is not None


def runs_here(name: str, kernel: str) -> bool:
    try:
        backbone(name, f"kernel={kernel}")
    except Unsupported:
        return False
    return True


def gradients(model: Backbone) -> dict[str, torch.Tensor]:
    logits(model, tokens()).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_every_kernel_equals_the_reference(name: str) -> None:
    reference = backbone(name, "kernel=reference")
    expected, expected_grads = logits(reference, tokens()), gradients(reference)
    kernels = runnable_kernels(name)
    assert kernels, "a fast kernel that runs anywhere stands beside the reference"
    for kernel in kernels:
        model = backbone(name, f"kernel={kernel}")
        assert model.kernel == kernel or is_hybrid(name)
        torch.testing.assert_close(logits(model, tokens()), expected, atol=1e-5, rtol=1e-4)
        found = gradients(model)
        assert found.keys() == expected_grads.keys()
        for key, gradient in found.items():
            torch.testing.assert_close(gradient, expected_grads[key], atol=1e-6, rtol=1e-3, msg=f"{kernel}: {key}")


def test_auto_never_picks_the_reference(name: str) -> None:
    assert backbone(name).kernel != "reference"


def test_the_same_seed_gives_the_same_model(name: str) -> None:
    torch.testing.assert_close(logits(backbone(name), tokens()), logits(backbone(name), tokens()), atol=0, rtol=0)


def test_every_parameter_learns(name: str) -> None:
    model = backbone(name, "backbone.d_conv=4")
    assert gradients(model).keys() == {key for key, _ in model.named_parameters()}


def test_runs_on_bf16_autocast(name: str) -> None:
    model = backbone(name)
    with torch.autocast("cpu", torch.bfloat16):
        found = logits(model, tokens())
    torch.testing.assert_close(found.float(), logits(model, tokens()), atol=0.05, rtol=0.1)


def test_decodes_on_bf16_autocast(decoder: str) -> None:
    model = backbone(decoder)
    with torch.autocast("cpu", torch.bfloat16):
        state = model.init_state(BATCH, LENGTH)
        prompted, state = model.prefill(tokens()[:, :9], state)
        stepped, _ = model.step(tokens()[:, 9], state)
    exact = logits(model, tokens())
    torch.testing.assert_close(prompted.float(), exact[:, 8], atol=0.05, rtol=0.1)
    torch.testing.assert_close(stepped.float(), exact[:, 9], atol=0.05, rtol=0.1)


def test_encoders_see_both_ways_and_do_not_decode(name: str) -> None:
    model = backbone(name)
    assert model.is_causal == (name in DECODERS)
    if model.is_causal:
        return
    with pytest.raises(AssertionError):
        check_causality(model)
    with pytest.raises(Unsupported, match="no state to decode from"):
        model.init_state(BATCH, LENGTH)


@pytest.mark.parametrize("positions", ["none", "learned", "sinusoidal", "rotary", "alibi"])
def test_positions_are_a_dial(name: str, positions: str) -> None:
    mixers = [block.mixer for block in backbone(name).blocks]
    if positions in {"rotary", "alibi"} and not any(mixer.takes_relative_positions for mixer in mixers):  # type: ignore[union-attr]
        with pytest.raises(ValueError, match=f"positions={positions} works inside attention only"):
            backbone(name, f"backbone.positions={positions}")
        return
    model, x = backbone(name, f"backbone.positions={positions}"), tokens()
    if not model.is_causal:
        reference = backbone(name, f"backbone.positions={positions}", "kernel=reference")
        torch.testing.assert_close(logits(model, x), logits(reference, x), atol=1e-5, rtol=1e-4)
        return
    _, state = model.prefill(x[:, :-1], model.init_state(BATCH, LENGTH))
    stepped, _ = model.step(x[:, -1], state)
    torch.testing.assert_close(stepped, logits(model, x)[:, -1], atol=1e-4, rtol=1e-4)


def test_learned_positions_end_with_their_table() -> None:
    model = backbone("transformer", "backbone.positions=learned")
    with pytest.raises(Unsupported, match=f"trained for {LENGTH} positions, asked for {LENGTH + 1}"):
        model(tokens(LENGTH + 1))
    with pytest.raises(Unsupported, match="positions=learned"):
        model.init_state(1, LENGTH + 1)


@pytest.mark.parametrize(("overrides", "absent"), [(["backbone.mlp=none"], "mlp"), (["backbone.d_conv=0"], "conv")])
def test_parts_of_the_block_can_be_left_out(name: str, overrides: list[str], absent: str) -> None:
    model = backbone(name, *overrides)
    assert getattr(model.blocks[0], absent) is None
    assert logits(model, tokens()).shape == (BATCH, LENGTH, VOCAB)


def test_a_pattern_repeats_over_the_depth() -> None:
    pattern = ["backbone.pattern=[mamba,mamba,lstm]", "+backbone.mixer.mamba.d_state=4", "n_layers=5"]
    model = backbone("hybrid", *pattern)
    assert [type(block.mixer).__name__ for block in model.blocks] == ["Mamba", "Mamba", "LSTM", "Mamba", "Mamba"]
    assert model.blocks[0].mixer.d_state == 4
    assert model.blocks[0].mixer is not model.blocks[1].mixer
    assert model.kernel == "chunked+aten"


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("[mamba,mambo]", "mambo is unknown; choose from: "),
        ("[mamba,hybrid]", "hybrid is a pattern itself; name its mixers instead"),
        ("[encoder_decoder]", "encoder_decoder has no mixer that stands alone; choose another"),
        ("mamba", "backbone.pattern=mamba: input should be a valid list"),
        ("[mamba,mamba,lstm]", "3 mixers for n_layers=2: needs n_layers >= 3, or a pattern of 1 to 2"),
        ("[]", "backbone.pattern has 0 mixers"),
    ],
)
def test_a_wrong_pattern_is_named(pattern: str, complaint: str) -> None:
    cfg = compose(["backbone=hybrid", f"backbone.pattern={pattern}"])
    with pytest.raises(ConfigError, match=complaint):
        build(cell_of(cfg), "backbone", vocab_size=VOCAB)


def test_a_backbone_of_one_mixer_takes_no_pattern() -> None:
    with pytest.raises(ConfigError, match="backbone=transformer has one mixer; a pattern needs backbone=hybrid"):
        cell("backbone=transformer", "backbone.pattern=[mamba]")


def test_what_a_mixer_of_a_pattern_does_not_take_is_named() -> None:
    with pytest.raises(ConfigError, match=r"backbone.mixer.mamba.d_stat is not a key; it takes: .*d_state, d_conv"):
        cell("backbone=samba", "+backbone.mixer.mamba.d_stat=8")


def test_a_tied_head_is_counted_once(name: str) -> None:
    tied, free = backbone(name), backbone(name, "backbone.tie_embeddings=false")
    assert free.n_params() - tied.n_params() == VOCAB * 32


def test_a_planted_look_ahead_is_seen() -> None:
    model = backbone("transformer")
    block: Any = model.blocks[0]
    block.mixer.forward = lambda x: x.flip(1)
    with pytest.raises(AssertionError):
        check_causality(model)


def test_choosing_a_kernel() -> None:
    obstacles = {"fast": "needs a device", "portable": None, "reference": None}
    assert choose_kernel("auto", obstacles) == "portable"
    assert choose_kernel("reference", obstacles) == "reference"
    with pytest.raises(Unsupported, match="kernel=fast: needs a device"):
        choose_kernel("fast", obstacles)
    with pytest.raises(ValueError, match="kernel=quick is unknown here; choose from: auto, fast, portable, reference"):
        choose_kernel("quick", obstacles)
