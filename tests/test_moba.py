"""Mixture of block attention against its definition, its state, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensor_sizes import largest_tensor

from arch_bench.mixers.attention import Attention
from arch_bench.mixers.base import tensors
from arch_bench.mixers.moba import Moba
from arch_bench.ops import moba
from arch_bench.positions import alibi_slopes

D, HEADS, S = 16, 4, 4
HEAD_DIALS: Any = {"d_model": D, "n_heads": HEADS, "scale": True, "qk_norm": False}


def build(positions: str = "rotary", kernel: str = "blocks", block: int = S, top_k: int = 2) -> Moba:
    torch.manual_seed(0)
    return Moba(block=block, top_k=top_k, positions=positions, kernel=kernel, **HEAD_DIALS)


def random(length: int) -> torch.Tensor:
    return 3 * torch.randn(2, length, D, generator=torch.Generator().manual_seed(1))


def qkv(length: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(length)
    shape = (2, HEADS, length, 8)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(3)]


def naive(inputs: list[torch.Tensor], n_chosen: int, slopes: torch.Tensor | None) -> torch.Tensor:
    """As the authors' moba_naive: a query's own block scores infinitely, later ones not; n_chosen with its own."""
    q, k, v = inputs
    n = q.shape[2]
    means = torch.stack([k[:, :, start : start + S].mean(2) for start in range(0, n, S)], 2)
    gate = torch.einsum("bhsd,bhnd->bhsn", q, means)
    for block in range(gate.shape[-1]):
        gate[:, :, : block * S, block] = -torch.inf
        gate[:, :, block * S : (block + 1) * S, block] = torch.inf
    which = gate.topk(min(n_chosen, gate.shape[-1]), -1).indices
    chosen = torch.zeros_like(gate).scatter(-1, which, 1.0) * (gate > -torch.inf)
    visible = chosen.repeat_interleave(S, -1)[..., :n] * torch.ones(n, n).tril()
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5
    if slopes is not None:
        scores = scores - slopes[:, None, None] * (torch.arange(n)[:, None] - torch.arange(n))
    return scores.masked_fill(visible == 0, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("with_slopes", [False, True])
@pytest.mark.parametrize("top_k", [0, 2, 20])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 33])
def test_equals_the_authors_definition(length: int, top_k: int, with_slopes: bool) -> None:
    slopes = alibi_slopes(HEADS).double() if with_slopes else None
    inputs = qkv(length)
    expected = naive(inputs, top_k + 1, slopes)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for kernel in moba.KERNELS.values():
        found = kernel(*inputs, moba.Choice(S, top_k), slopes)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), inputs), wanted, atol=1e-6, rtol=1e-6)


def test_a_query_chooses_the_block_that_suits_it() -> None:
    q, k = torch.zeros(2, 1, 1, 10, 4)
    k[0, 0, 4:8, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    q[0, 0, 9, 0], q[0, 0, 8, 0] = 1.0, -1.0
    met, _ = moba._choose_all(q, k, moba.Choice(S, 1))
    assert met[0, 0, 8:].tolist() == [[0, 2], [1, 2]]
    assert met[0, 0, :4].tolist() == [[-1, 0]] * 4


@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
@pytest.mark.parametrize("n_prompt", [1, 3, 4, 17, 36])
@torch.no_grad()
def test_steps_equal_forward(n_prompt: int, positions: str) -> None:
    mixer, x = build(positions), random(37)
    y, state = mixer.prefill(x[:, :n_prompt], mixer.init_state(2, 38))
    found = [*y.unbind(1)]
    for x_t in x[:, n_prompt:].unbind(1):
        y_t, state = mixer.step(x_t, state)
        found.append(y_t)
    torch.testing.assert_close(torch.stack(found, 1), mixer(x), atol=1e-5, rtol=1e-5)


def test_one_block_or_all_blocks_are_full_attention() -> None:
    x = random(37)
    torch.manual_seed(0)
    full = Attention(n_kv_heads=HEADS, positions="rotary", kernel="sdpa", **HEAD_DIALS)
    for mixer in (build(block=64), build(top_k=10)):
        torch.testing.assert_close(mixer(x), full(x), atol=1e-5, rtol=1e-5)


def test_the_state_has_a_sum_for_each_block() -> None:
    shapes = [tuple(t.shape[1:]) for t in tensors(build().init_state(2, 10))]
    assert shapes == [(4, 12, 4), (4, 12, 4), (4, 3, 4), ()]  # whole blocks


def test_flops_by_hand() -> None:
    # positions of three blocks of four, the last with two: their own 10 + 10 + 3, of others 4 * 4 and 2 * 8;
    # blocks to score, half a pair each: 4 * 1 and 2 * 2
    expected = 4 * 2 * D * D + 4 * D * (23 + 16 + 16 + (4 + 4) / 2) / 10
    assert build().flops_per_token(10) == expected
    # with no more than one to meet, the fourth block still has three to score
    expected = 4 * 2 * D * D + 4 * D * (40 + 3 * 16 + (4 + 8 + 12) / 2) / 16
    assert build(top_k=1).flops_per_token(16) == expected


def largest_of(length: int) -> int:
    inputs = [x.detach().float().requires_grad_() for x in qkv(length)]
    return largest_tensor(lambda: moba.blocks(*inputs, moba.Choice(16, 2)))


def test_gathering_is_linear_in_the_length() -> None:
    assert largest_of(512) == 2 * HEADS * 512 * (2 + 1) * 16 * 8  # B H T W S D
    assert largest_of(1024) == 2 * largest_of(512)


@pytest.mark.parametrize(("key", "message"), [("block", "block=0 must be at least 1"), ("top_k", "top_k=-1 must be")])
def test_bad_values_are_refused(key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**{key: -1 if key == "top_k" else 0})


@torch.no_grad()
def test_tracing_breaks_no_graph() -> None:
    mixer, x = build(), random(21)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(x), mixer(x), atol=1e-5, rtol=1e-5)
    _, state = mixer.prefill(x[:, :-1], mixer.init_state(2, 21))
    step = torch.compile(mixer.step, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(step(x[:, -1], state)[0], mixer(x)[:, -1], atol=1e-5, rtol=1e-5)
