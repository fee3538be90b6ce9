"""Longformer and BigBird: states, costs and what is visible, at lengths where every part of the pattern shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from arch_bench.mixers.attention import Attention, LocalAttention
from arch_bench.mixers.base import Mixer, tensors
from arch_bench.mixers.sparse_attention import BigBird, Longformer

D, HEADS, LENGTH = 16, 4, 61
LONGFORMER = {"window": 5, "n_global": 3}
BIGBIRD = {"window": 8, "n_global": 4, "n_random": 2, "block": 4, "seed": 1}


def build(kind: type[Mixer], **sizes: Any) -> Any:
    torch.manual_seed(0)
    dials: dict[str, Any] = {"d_model": D, "n_heads": HEADS, "positions": "rotary", "kernel": "blocks"}
    return kind(**dials | (LONGFORMER if kind is Longformer else BIGBIRD if kind is BigBird else {}) | sizes)


def random(length: int = LENGTH) -> torch.Tensor:
    return torch.randn(2, length, D, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check_decoding(mixer: Mixer, length: int, n_prompt: int, max_len: int) -> None:
    """A prompt and then steps give what `forward` gives."""
    x = random(length)
    state, found = mixer.init_state(2, max_len), []
    if n_prompt:
        y, state = mixer.prefill(x[:, :n_prompt], state)
        found = [*y.unbind(1)]
    for x_t in x[:, n_prompt:].unbind(1):
        y_t, state = mixer.step(x_t, state)
        found.append(y_t)
    torch.testing.assert_close(torch.stack(found, 1), mixer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
@pytest.mark.parametrize("n_prompt", [0, 2, 3, 8, 9, 40])
@pytest.mark.parametrize("kind", [Longformer, BigBird])
def test_steps_equal_forward(kind: type[Mixer], n_prompt: int, positions: str) -> None:
    check_decoding(build(kind, positions=positions), LENGTH, n_prompt, max_len=LENGTH + 2)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", [Longformer, BigBird])
def test_steps_equal_forward_with_room_for_no_more(kind: type[Mixer], length: int) -> None:
    for n_prompt in (0, 1):
        check_decoding(build(kind), length, n_prompt, max_len=length)


def test_what_a_state_holds() -> None:
    assert [t.shape[2:] for t in tensors(build(Longformer).init_state(2, 100)) if t.dim()] == [(8, 4), (8, 4)]
    assert [t.shape[2:] for t in tensors(build(BigBird).init_state(2, 100)) if t.dim()] == [(100, 4), (100, 4)]


def seen_from(mixer: Mixer, position: int) -> list[int]:
    """Positions that a gradient from `position` reaches, without those that only its own query is made of."""
    x = random().requires_grad_()
    (gradient,) = torch.autograd.grad(mixer(x)[:, position].square().sum(), x)
    return gradient.abs().sum((0, 2)).nonzero()[:, 0].tolist()


def test_what_is_visible() -> None:
    assert seen_from(build(Longformer), 50) == [0, 1, 2, 46, 47, 48, 49, 50]
    assert seen_from(build(Longformer), 4) == [0, 1, 2, 3, 4]
    mixer = build(BigBird)
    picks = mixer.pattern.picks(16)[50 // 4].tolist()
    picked = [4 * pick + offset for pick in picks for offset in range(4)]
    assert seen_from(mixer, 50) == sorted([*range(4), *range(44, 51), *picked])  # position 50 is in block 12


@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_without_its_extras_each_is_a_window(positions: str) -> None:
    x, local = random(), build(LocalAttention, window=5, positions=positions)
    torch.testing.assert_close(build(Longformer, n_global=0, positions=positions)(x), local(x), atol=1e-6, rtol=1e-5)
    position_wise = build(BigBird, window=5, block=1, n_global=0, n_random=0, positions=positions)
    torch.testing.assert_close(position_wise(x), local(x), atol=1e-6, rtol=1e-5)


def test_with_enough_extras_each_is_full_attention() -> None:
    x, full = random(), build(Attention, kernel="sdpa")
    for mixer in (build(Longformer, n_global=LENGTH), build(BigBird, n_random=16), build(Longformer, window=LENGTH)):
        torch.testing.assert_close(mixer(x), full(x), atol=1e-6, rtol=1e-5)


WEIGHTS = 4 * 2 * D * D
PER_PAIR = 4 * D  # a product of a query with a key, and of a weight with a value


def test_flops_by_hand() -> None:
    # the window shows 1 + 2 + 3 + 4 + 8 * 5; from position 5 on, 1, 2, 3, 3, 3, 3, 3 global ones are beyond it
    assert build(Longformer).flops_per_token(12) == WEIGHTS + PER_PAIR * (50 + 18) / 12
    # each block its own 1 + 2 + 3 + 4, and 4 * 4 with each other: the one before, from block 2 on the global one,
    # in block 3 the one that is left, in block 4 two; of block 5 there is the first position
    whole = 5 * 10 + 16 * (1 + 2 + 3 + 4)
    assert build(BigBird).flops_per_token(21) == WEIGHTS + PER_PAIR * (whole + 1 + 4 * 4) / 21


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (Longformer, {"window": 0}, "window=0 must be at least 1"),
        (Longformer, {"n_global": -1}, "n_global=-1 must be at least 0"),
        (BigBird, {"n_random": -1}, "n_random=-1 must be at least 0"),
        (BigBird, {"block": 0}, "block=0 must be at least 1"),
        (BigBird, {"window": 6}, "window=6 must be a multiple of block=4"),
        (BigBird, {"n_global": 2}, "n_global=2 must be a multiple of block=4"),
        (BigBird, {"n_heads": 3}, "n_heads=3 must divide d_model=16"),
    ],
)
def test_bad_values_are_refused(kind: type[Mixer], sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind, **sizes)


@pytest.mark.parametrize("kind", [Longformer, BigBird])
def test_tracing_breaks_no_graph(kind: type[Mixer]) -> None:
    mixer, x = build(kind), random()
    compiled = torch.compile(mixer, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(x), mixer(x), atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        _, state = mixer.prefill(x[:, :-1], mixer.init_state(2, LENGTH))
        step = torch.compile(mixer.step, fullgraph=True, dynamic=False, backend="aot_eager")
        torch.testing.assert_close(step(x[:, -1], state)[0], mixer(x)[:, -1], atol=1e-5, rtol=1e-5)
