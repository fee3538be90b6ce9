"""Sparse attention mixers: states, costs and what is visible, at lengths where every part of a pattern shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensor_sizes import largest_tensor
from torch.utils.flop_counter import FlopCounterMode

from arch_bench.mixers.attention import Attention, LocalAttention
from arch_bench.mixers.base import Mixer, tensors
from arch_bench.mixers.sparse_attention import BigBird, Longformer
from arch_bench.mixers.strided_attention import DilatedAttention, HardAlibi, StridedAttention
from arch_bench.ops.dilated import dilated

D, HEADS, LENGTH = 16, 4, 61
SIZES: dict[type[Mixer], dict[str, Any]] = {
    Longformer: {"window": 5, "n_global": 3},
    BigBird: {"window": 8, "n_global": 4, "n_random": 2, "block": 4, "seed": 1},
    DilatedAttention: {"window": 4, "dilation": 3},
    StridedAttention: {"stride": 7},
    HardAlibi: {"n_window_heads": 3},
}


def build(kind: type[Mixer], **sizes: Any) -> Any:
    torch.manual_seed(0)
    dials: dict[str, Any] = {"d_model": D, "n_heads": HEADS, "scale": True, "qk_norm": False, "kernel": "blocks"}
    if kind is not HardAlibi:
        dials["positions"] = "rotary"
    if kind in (Attention, LocalAttention):
        dials["n_kv_heads"] = HEADS
    return kind(**dials | SIZES.get(kind, {}) | sizes)


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
@pytest.mark.parametrize("kind", SIZES)
def test_steps_equal_forward(kind: type[Mixer], n_prompt: int, positions: str) -> None:
    if kind.takes_relative_positions:
        check_decoding(build(kind, positions=positions), LENGTH, n_prompt, max_len=LENGTH + 2)
    elif positions == "none":
        check_decoding(build(kind), LENGTH, n_prompt, max_len=LENGTH + 2)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", SIZES)
def test_steps_equal_forward_with_room_for_no_more(kind: type[Mixer], length: int) -> None:
    for n_prompt in (0, 1):
        check_decoding(build(kind), length, n_prompt, max_len=length)


def test_what_a_state_holds() -> None:
    shapes = {
        kind: [tuple(t.shape[1:3]) for t in tensors(build(kind).init_state(2, 100)) if t.dim()][::2] for kind in SIZES
    }
    assert shapes == {
        Longformer: [(4, 8)],
        BigBird: [(4, 100)],
        DilatedAttention: [(4, 12)],
        StridedAttention: [(2, 8), (2, 105)],  # whole strides
        HardAlibi: [(3, 3), (1, 100)],
    }


def seen_from(mixer: Mixer, position: int) -> list[int]:
    """Positions that a gradient from `position` reaches, without those that only its own query is made of."""
    x = random().requires_grad_()
    (gradient,) = torch.autograd.grad(mixer(x)[:, position].square().sum(), x)
    return gradient.abs().sum((0, 2)).nonzero()[:, 0].tolist()


def test_what_is_visible() -> None:
    assert seen_from(build(Longformer), 50) == [0, 1, 2, 46, 47, 48, 49, 50]
    assert seen_from(build(Longformer), 4) == [0, 1, 2, 3, 4]
    assert seen_from(build(DilatedAttention), 50) == [41, 44, 47, 50]
    assert seen_from(build(StridedAttention), 50) == [1, 8, 15, 22, 29, 36, *range(43, 51)]
    assert seen_from(build(HardAlibi, n_heads=8), 50) == [*range(51)]
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


@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_without_gaps_each_is_a_window_or_full_attention(positions: str) -> None:
    x, local = random(), build(LocalAttention, window=5, positions=positions)
    ungapped = build(DilatedAttention, window=5, dilation=1, positions=positions)
    torch.testing.assert_close(ungapped(x), local(x), atol=1e-6, rtol=1e-5)
    full = build(Attention, kernel="sdpa", positions=positions)
    torch.testing.assert_close(
        build(StridedAttention, stride=LENGTH, positions=positions)._attend_near(
            *(part[:, :2] for part in full._project(x))
        ),
        full._attend(*full._project(x))[:, :2],
        atol=1e-6,
        rtol=1e-5,
    )


def hard_alibi(mixer: HardAlibi, x: torch.Tensor) -> torch.Tensor:
    """As the authors write it (sjelassi/transformers_ssm_copy): head i sees j = 0 ... i positions back."""
    q, k, v = mixer._project(x)
    scores = q @ k.mT / k.shape[-1] ** 0.5
    i = torch.arange(x.shape[1])
    visible = (i[:, None] >= i).repeat(mixer.n_heads, 1, 1)
    for h in range(mixer.n_near):
        visible[h] &= sum((i[:, None] - i == back for back in range(h + 1)), torch.zeros(1, dtype=torch.bool))
    return mixer._merge(scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v)


def test_hard_alibi_is_that_of_its_authors() -> None:
    x, mixer = random(), build(HardAlibi)
    torch.testing.assert_close(mixer(x), hard_alibi(mixer, x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 12, 13, 37])
def test_dilated_equals_the_definition(length: int, window: int | None) -> None:
    rng = torch.Generator().manual_seed(length)
    shape = (2, HEADS, length, 8)
    q, k, v = inputs = [torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    rows, slopes = [], torch.linspace(0.1, 1, HEADS, dtype=torch.float64)
    for i in range(length):
        j = torch.arange(i, -1, -3)[:window]
        scores = (q[:, :, i, None] * k[:, :, j]).sum(-1) / 8**0.5 - slopes[:, None] * (i - j)
        rows.append((scores.softmax(-1)[..., None] * v[:, :, j]).sum(2))
    expected = torch.stack(rows, 2)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for kernel in ("blocks", "reference"):
        found = dilated(q, k, v, window=window, dilation=3, slopes=slopes, kernel=kernel)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), inputs), wanted, atol=1e-6, rtol=1e-6)


def largest_of(mixer: Mixer, length: int) -> int:
    x = random(length)
    return largest_tensor(lambda: mixer(x))


@pytest.mark.parametrize("kind", [Longformer, BigBird, DilatedAttention])
def test_memory_is_linear_in_the_length(kind: type[Mixer]) -> None:
    assert largest_of(build(kind), 1024) <= 2.1 * largest_of(build(kind), 512)


WEIGHTS = 4 * 2 * D * D
PER_PAIR = 4 * D  # a product of a query with a key, and of a weight with a value


def test_flops_by_hand() -> None:
    # the window shows 1 + 2 + 3 + 4 + 8 * 5; from position 5 on, 1, 2, 3, 3, 3, 3, 3 global ones are beyond it
    assert build(Longformer).flops_per_token(12) == WEIGHTS + PER_PAIR * (50 + 18) / 12
    # each block its own 1 + 2 + 3 + 4, and 4 * 4 with each other: the one before, from block 2 on the global one,
    # in block 3 the one that is left, in block 4 two; of block 5 there is the first position
    whole = 5 * 10 + 16 * (1 + 2 + 3 + 4)
    assert build(BigBird).flops_per_token(21) == WEIGHTS + PER_PAIR * (whole + 1 + 4 * 4) / 21
    # in each of three residue classes of 5, 4 and 4 positions 1 + 2 + 3 + 4, and 4 more in the first
    assert build(DilatedAttention).flops_per_token(13) == WEIGHTS + PER_PAIR * (30 + 4) / 13
    # of four heads two see 1 + ... + 8 + 8 * 2, two see 7 * 1 + 3 * 2
    assert build(StridedAttention).flops_per_token(10) == WEIGHTS + PER_PAIR * (52 + 13) / 2 / 10
    # heads see 5, 1 + 4 * 2, 1 + 2 + 3 * 3, 1 + ... + 5
    assert build(HardAlibi).flops_per_token(5) == WEIGHTS + PER_PAIR * (5 + 9 + 12 + 15) / 4 / 5


@pytest.mark.parametrize("kind", SIZES)
def test_a_counter_sees_the_pairs_that_are_counted(kind: type[Mixer]) -> None:
    """Where nothing is hidden, which is at the first position."""
    mixer = build(kind, kernel="reference")
    with FlopCounterMode(display=False) as counter:
        mixer(random(1))
    assert counter.get_total_flops() / 2 == mixer.flops_per_token(1)


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
        (DilatedAttention, {"dilation": 0}, "dilation=0 must be at least 1"),
        (DilatedAttention, {"window": 0}, "window=0 must be at least 1"),
        (StridedAttention, {"stride": 0}, "stride=0 must be at least 1"),
        (StridedAttention, {"n_heads": 1}, "n_heads=1 must be even"),
        (HardAlibi, {"n_window_heads": 0}, "n_window_heads=0 must be at least 1 and less than n_heads=4"),
        (HardAlibi, {"n_window_heads": 4}, "n_window_heads=4 must be at least 1 and less than n_heads=4"),
    ],
)
def test_bad_values_are_refused(kind: type[Mixer], sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind, **sizes)


@pytest.mark.parametrize("kind", SIZES)
def test_tracing_breaks_no_graph(kind: type[Mixer]) -> None:
    mixer, x = build(kind), random()
    compiled = torch.compile(mixer, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(x), mixer(x), atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        _, state = mixer.prefill(x[:, :-1], mixer.init_state(2, LENGTH))
        step = torch.compile(mixer.step, fullgraph=True, dynamic=False, backend="aot_eager")
        torch.testing.assert_close(step(x[:, -1], state)[0], mixer(x)[:, -1], atol=1e-5, rtol=1e-5)
