"""Attention over patterns: the tables, the rule for pairs, the kernels against the formula, and what they cost."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from tensor_sizes import largest_tensor
from torch.nn.attention.flex_attention import create_block_mask

from arch_bench.ops import block_sparse
from arch_bench.ops.local_attention import FLEX_BLOCK
from arch_bench.ops.pattern import Stairs, WindowGlobalRandom, recut, tables, tiles
from arch_bench.positions import alibi_slopes

CPU = torch.device("cpu")
PATTERNS = [
    WindowGlobalRandom(block=8, window=8, n_global=3),
    WindowGlobalRandom(block=4, window=1, n_global=0),
    WindowGlobalRandom(block=4, window=6, n_global=5, n_random=2, seed=3),
    WindowGlobalRandom(block=5, window=11, n_global=4, n_random=3, seed=1),
    WindowGlobalRandom(block=4, window=8, n_global=4, n_random=2, seed=1, grain=4),
    Stairs(block=2, n_heads=4),
]


def qkv(length: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(length)
    return tuple(torch.randn(2, 4, length, 8, generator=rng, dtype=dtype, requires_grad=True) for _ in range(3))


def sees(pattern: Any, h: int, i: int, j: int, picks: list[list[int]]) -> bool:
    """The definition, pair by pair."""
    if isinstance(pattern, Stairs):
        return 0 <= i - j <= h
    picked = j // pattern.block in picks[i // pattern.block]
    end = i if pattern.grain == 1 else (i // pattern.grain + 1) * pattern.grain - 1
    return j <= i and (end - j < pattern.window or j < pattern.n_global or picked)


def by_pair(pattern: Any, n: int) -> torch.Tensor:
    picks = pattern.picks(-(-n // pattern.block)).tolist()
    return torch.tensor([[[sees(pattern, h, i, j, picks) for j in range(n)] for i in range(n)] for h in range(4)])


def written_out(inputs: tuple[torch.Tensor, ...], pattern: Any, slopes: torch.Tensor | None) -> torch.Tensor:
    """Softmax row by row over the keys that are seen, and no others."""
    q, k, v = inputs
    n = q.shape[-2]
    seen = by_pair(pattern, n)
    rows = []
    for h in range(4):
        for i in range(n):
            j = seen[h, i].nonzero()[:, 0]
            scores = (q[:, h, i, None] * k[:, h, j]).sum(-1) / 8**0.5
            scores = scores if slopes is None else scores - slopes[h] * (i - j)
            rows.append((scores.softmax(-1)[..., None] * v[:, h, j]).sum(1))
    return torch.stack(rows, 1).unflatten(1, (4, n))


@pytest.mark.parametrize("with_slopes", [False, True])
@pytest.mark.parametrize("length", [1, 4, 9, 37])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_kernels_equal_the_definition(pattern: Any, length: int, with_slopes: bool) -> None:
    slopes = alibi_slopes(4).double() if with_slopes else None
    inputs = qkv(length)
    expected = written_out(inputs, pattern, slopes)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for kernel in ("blocks", "dense", "reference"):
        found = block_sparse.KERNELS[kernel](*inputs, pattern, slopes)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(
            torch.autograd.grad(found.square().sum(), inputs), wanted, atol=1e-6, rtol=1e-6, msg=kernel
        )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_block_meets_every_block_that_it_sees_and_each_once(pattern: Any) -> None:
    n_blocks, S = 13, pattern.block
    table, _ = tables(pattern, n_blocks, CPU)
    seen = by_pair(pattern, n_blocks * S).any(0).view(n_blocks, S, n_blocks, S).any(3).any(1)
    for c, row in enumerate(table.tolist()):
        met = [b for b in row if b >= 0]
        assert len(met) == len(set(met))
        assert set(met) >= set(seen[c].nonzero()[:, 0].tolist())
        assert max(met) == c


@pytest.mark.parametrize("pattern", PATTERNS[:-1])
@pytest.mark.parametrize("length", [1, 7, 8, 30, 61])
def test_pairs_are_counted(pattern: WindowGlobalRandom, length: int) -> None:
    assert pattern.n_pairs(length) == by_pair(pattern, length)[0].sum()


def test_a_table_is_as_wide_as_the_pattern_whatever_the_length() -> None:
    pattern = WindowGlobalRandom(block=64, window=192, n_global=70, n_random=3)
    assert tables(pattern, 10, CPU)[0].shape == (10, 2 + 4 + 3)
    assert tables(pattern, 10_000, CPU)[0].shape == (10_000, 2 + 4 + 3)
    assert tiles(pattern, 64 * 10_000, FLEX_BLOCK, CPU)[1].shape[1] <= 2 * (2 + 4 + 3)


def test_random_blocks_are_kept_when_the_sequence_grows() -> None:
    pattern = WindowGlobalRandom(block=4, window=8, n_global=4, n_random=3, seed=5)
    picks = [pattern.picks(n) for n in (5, 16, 17, 300)]
    for shorter in picks:
        assert torch.equal(shorter, picks[-1][: len(shorter)])
    assert not torch.equal(picks[-1], pattern._replace(seed=6).picks(300))


def test_random_blocks_are_distinct_and_cover_the_past_evenly() -> None:
    pattern = WindowGlobalRandom(block=4, window=5, n_global=4, n_random=3)
    picks = pattern.picks(4000)
    assert [sum(p >= 0 for p in row) for row in picks[:7].tolist()] == [0, 0, 0, 1, 2, 3, 3]
    far = picks[10:]
    assert all(len(set(row)) == 3 for row in far.tolist())
    assert far.min() == 1  # block 0 is global
    assert (far.max(1).values <= torch.arange(10, 4000) - 2).all()  # the window touches the block before
    places = (far - 1).double() / (torch.arange(10, 4000)[:, None] - 2)
    torch.testing.assert_close(places.mean(0), torch.full((3,), 0.5, dtype=torch.float64), atol=0.03, rtol=0)


def largest_of(pattern: Any, length: int) -> int:
    inputs = qkv(length, torch.float32)
    return largest_tensor(lambda: block_sparse.blocks(*inputs, pattern, None))


@pytest.mark.parametrize("pattern", [PATTERNS[0], WindowGlobalRandom(16, 32, 16, 2, grain=16), Stairs(8, 4)])
def test_blocks_cost_what_they_claim(pattern: Any) -> None:
    width = tables(pattern, 64, CPU)[0].shape[1] * pattern.block
    assert largest_of(pattern, 1024) <= 2 * 4 * 1024 * width * max(1, 8 // pattern.block)  # B H T (W S), or with D / S
    assert largest_of(pattern, 1024) <= 2.1 * largest_of(pattern, 512)


def taken(counts: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Which tile takes which other, by a table whose rows must ascend without repeats."""
    found = torch.zeros(len(which), len(which), dtype=torch.bool)
    for i, (count, row) in enumerate(zip(counts.tolist(), which.tolist(), strict=True)):
        assert row[:count] == sorted(set(row[:count]))
        found[i, row[:count]] = True
    return found


@pytest.mark.parametrize(
    "pattern",
    [
        WindowGlobalRandom(block=32, window=32, n_global=4),
        WindowGlobalRandom(block=300, window=300, n_global=130),
        WindowGlobalRandom(block=48, window=96, n_global=40, n_random=2),
        WindowGlobalRandom(block=128, window=256, n_global=128, n_random=2),
        WindowGlobalRandom(block=64, window=192, n_global=64, n_random=2, grain=64),
        WindowGlobalRandom(block=256, window=256, n_global=0, n_random=1),
        Stairs(block=64, n_heads=4),
    ],
)
@pytest.mark.parametrize("length", [1, 128, 129, 700, 1920])
def test_tiles_hold_what_torch_finds_by_trying_every_position(pattern: Any, length: int) -> None:
    _, picks = tables(pattern, -(-length // pattern.block), CPU)
    expected = create_block_mask(
        lambda _b, h, i, j: pattern.visible(h, i, j, picks), None, 4, length, length, device="cpu"
    )
    wanted = expected.to_dense()[0].any(0)
    n_kv, kv, n_q, queries = tiles(pattern, length, FLEX_BLOCK, CPU)
    found = taken(n_kv, kv)
    assert torch.equal(found.T, taken(n_q, queries))
    assert (found >= wanted).all()
    if FLEX_BLOCK % pattern.block == 0 and length % FLEX_BLOCK == 0:
        assert torch.equal(found, wanted.bool())


def test_a_table_cut_into_its_own_blocks_is_the_same() -> None:
    pattern = WindowGlobalRandom(block=4, window=6, n_global=5, n_random=2)
    table, _ = tables(pattern, 20, CPU)
    cut = recut(table, 4, 20, 4)
    for row, same in zip(table.tolist(), cut.tolist(), strict=True):
        assert sorted(b for b in row if b >= 0) == [b for b in same if b < 20]


@pytest.mark.slow  # it compiles, for some 20 s
@pytest.mark.skipif(shutil.which("gcc") is None, reason="flex attention is compiled, which takes a C compiler")
@pytest.mark.filterwarnings("default")  # what the compiler warns of differs between versions of torch
@pytest.mark.parametrize("with_slopes", [False, True])
@pytest.mark.parametrize(
    "pattern", [WindowGlobalRandom(32, 32, 4), WindowGlobalRandom(16, 40, 20, 2), Stairs(block=64, n_heads=4)]
)
def test_flex_runs_on_those_tiles(pattern: Any, with_slopes: bool) -> None:
    inputs = [x.detach().repeat(1, 1, 1, 2) for x in qkv(700, torch.float32)]
    slopes = alibi_slopes(4) if with_slopes else None
    with torch.no_grad():
        found = block_sparse.flex(*inputs, pattern, slopes)
        expected = block_sparse.reference(*inputs, pattern, slopes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="flex attention is compiled, which takes a C compiler")
@pytest.mark.filterwarnings("default")
def test_flex_runs_inside_what_is_compiled_around_it() -> None:
    pattern = WindowGlobalRandom(16, 48, 16, 2, grain=16)
    inputs = [x.detach().repeat(1, 1, 1, 2) for x in qkv(300, torch.float32)]
    compiled = torch.compile(lambda *x: block_sparse.flex(*x, pattern, None), fullgraph=True, dynamic=False)
    with torch.no_grad():
        expected = block_sparse.reference(*inputs, pattern, None)
        torch.testing.assert_close(compiled(*inputs), expected, atol=1e-5, rtol=1e-5)
