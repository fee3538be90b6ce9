"""Attention ops against a mask written out, and what a window really costs and sees."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensor_sizes import largest_tensor

from arch_bench.ops import attention, local_attention
from arch_bench.positions import alibi_slopes, first_waves, rotate, waves


def qkv(length: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(length)
    return tuple(torch.randn(2, 4, length, 8, generator=rng, dtype=dtype, requires_grad=True) for _ in range(3))


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, slopes: torch.Tensor | None) -> torch.Tensor:
    """The definition, position by position."""
    n = q.shape[-2]
    rows = []
    for i in range(n):
        low = max(0, i - window + 1)
        scores = (q[:, :, i : i + 1] @ k[:, :, low : i + 1].transpose(-1, -2)) / 8**0.5
        if slopes is not None:
            scores = scores - slopes.view(1, -1, 1, 1) * (i - torch.arange(low, i + 1))
        rows.append(scores.softmax(-1) @ v[:, :, low : i + 1])
    return torch.cat(rows, dim=2)


@pytest.mark.parametrize("with_slopes", [False, True])
@pytest.mark.parametrize("length", [1, 5, 16, 37])
@pytest.mark.parametrize("window", [1, 4, 16, 64])
@pytest.mark.parametrize("kernel", ["blocks", "reference"])
def test_local_attention(kernel: str, window: int, length: int, with_slopes: bool) -> None:
    slopes = alibi_slopes(4).double() if with_slopes else None
    q, k, v = qkv(length)
    expected = dense(q, k, v, window, slopes)
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    found = local_attention.KERNELS[kernel](q, k, v, window, slopes)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    for got, want in zip(torch.autograd.grad(found.square().sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("with_slopes", [False, True])
@pytest.mark.parametrize("kernel", [name for name in attention.KERNELS if name not in attention.SDPA_BACKENDS])
def test_full_attention(kernel: str, with_slopes: bool) -> None:
    slopes = alibi_slopes(4).double() if with_slopes else None
    q, k, v = qkv(19)
    expected = dense(q, k, v, 19, slopes)
    found = attention.KERNELS[kernel](q, k, v, slopes)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    for got, want in zip(torch.autograd.grad(found.square().sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


def test_attention_equals_torch_multi_head_attention() -> None:
    q, k, v = qkv(12)
    torch.testing.assert_close(attention.reference(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True))


def largest_of(length: int) -> int:
    q, k, v = qkv(length, torch.float32)
    return largest_tensor(lambda: local_attention.blocks(q, k, v, 16, None))


def test_a_window_is_linear_in_length() -> None:
    assert largest_of(1024) <= 2.1 * largest_of(512)


def taken(mask: Any, name: str, n: int) -> torch.Tensor:
    """How often each block takes each other, by one pair of a mask's tables: (n, n)."""
    counts, which = getattr(mask, f"{name}_num_blocks")[0, 0], getattr(mask, f"{name}_indices")[0, 0]
    found = torch.zeros(n, n, dtype=torch.int)
    for i in range(n):
        for j in which[i, : counts[i]].tolist():
            found[i, j] += 1
    return found


def test_the_tables_of_a_long_band_are_small() -> None:
    mask = local_attention._flex_mask(256, 2**20, torch.device("meta"))
    assert mask.kv_indices.numel() == 8192 * 2


@pytest.mark.parametrize("window", [1, 2, 32, 128, 129, 130, 255, 256, 257, 300, 1000])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 640, 700])
def test_the_band_of_blocks_is_the_one_torch_finds_by_trying_every_position(length: int, window: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(_b: torch.Tensor, _h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (i >= j) & (i - j < window)

    found = local_attention._flex_mask(window, length, torch.device("cpu"))
    expected = create_block_mask(visible, None, None, length, length, device="cpu")
    n = -(-length // local_attention.FLEX_BLOCK)
    for side, wanted in {"kv": expected.to_dense()[0, 0], "q": expected.to_dense()[0, 0].T}.items():
        tables = [taken(found, name, n) for name in (side, f"full_{side}")]
        assert (tables[0] + tables[1] == wanted).all(), "every block once"
    assert found.shape == expected.shape
    assert found.BLOCK_SIZE == expected.BLOCK_SIZE
    ragged = length % local_attention.FLEX_BLOCK > 0  # torch never calls the last, half-empty blocks full
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        if not ragged:
            assert (getattr(found, name) == getattr(expected, name)).all(), name
            assert getattr(found, name).dtype == getattr(expected, name).dtype


def test_the_band_is_never_full_where_a_position_is_hidden() -> None:
    mask = local_attention._flex_mask(300, 700, torch.device("cpu"))
    for i in range(6):
        for j in mask.full_kv_indices[0, 0, i, : mask.full_kv_num_blocks[0, 0, i]].tolist():
            assert (i + 1) * 128 - 1 - j * 128 < 300
            assert j < i


@pytest.mark.parametrize(("length", "window"), [(200, 32), (700, 300), (640, 1000)])
def test_the_blocks_of_a_row_ascend(length: int, window: int) -> None:
    """The CUDA kernels check for the end of the sequence in the last one, and stop after as many as it has."""
    mask = local_attention._flex_mask(window, length, torch.device("cpu"))
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, which = getattr(mask, f"{name}_num_blocks")[0, 0], getattr(mask, f"{name}_indices")[0, 0]
        for count, row in zip(counts.tolist(), which.tolist(), strict=True):
            assert row[:count] == sorted(set(row[:count]))


@pytest.mark.slow  # it compiles, for some 20 s
@pytest.mark.skipif(shutil.which("gcc") is None, reason="flex attention is compiled, which takes a C compiler")
@pytest.mark.filterwarnings("default")  # what the compiler warns of differs between versions of torch
@pytest.mark.parametrize(("length", "window", "with_slopes"), [(300, 32, False), (700, 300, True), (512, 129, False)])
def test_flex_runs_on_that_band(length: int, window: int, with_slopes: bool) -> None:
    q, k, v = (x.detach().repeat(1, 1, 1, 2) for x in qkv(length, torch.float32))
    slopes = alibi_slopes(4) if with_slopes else None
    with torch.no_grad():
        found = local_attention.flex(q, k, v, window, slopes)
    torch.testing.assert_close(found, attention.local_reference(q, k, v, window, slopes), atol=1e-5, rtol=1e-5)


def test_rotation_depends_on_distance_only() -> None:
    q, k, _ = qkv(1)
    scores = [
        (rotate(q, waves(torch.tensor([i]), 8)) * rotate(k, waves(torch.tensor([j]), 8))).sum(-1)
        for i, j in [(5, 2), (105, 102), (3, 0)]
    ]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores[0], scores[2], atol=1e-4, rtol=1e-4)


def test_alibi_slopes_are_those_of_the_paper() -> None:
    torch.testing.assert_close(alibi_slopes(8), torch.tensor([2.0**-h for h in range(1, 9)]))


def test_kept_waves_are_those_of_the_first_positions() -> None:
    for kept, made in zip(first_waves(7, 8, torch.device("cpu")), waves(torch.arange(7), 8), strict=True):
        assert torch.equal(kept, made)
