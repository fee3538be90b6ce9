"""Selective attention against the listing of its paper, its state, and its cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from arch_bench.mixers.base import tensors
from arch_bench.mixers.selective_attention import SelectiveAttention
from arch_bench.ops import selective_attention as op
from arch_bench.positions import alibi_slopes

D, HEADS = 16, 4


def build(positions: str = "rotary", kernel: str = "sdpa") -> SelectiveAttention:
    torch.manual_seed(0)
    return SelectiveAttention(
        d_model=D,
        n_heads=HEADS,
        positions=positions,  # type: ignore[typeddict-item]
        scale=True,
        qk_norm=False,
        kernel=kernel,
    )


def qkv(length: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(length)
    shape = (2, HEADS, length, 8)
    return [(2 * torch.randn(shape, generator=rng, dtype=torch.float64)).requires_grad_() for _ in range(3)]


def listing(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor | None) -> torch.Tensor:
    """The paper's, line by line: select head 0, relu, not oneself, not <BOS>, roll, accumulate, subtract."""
    n = q.shape[2]
    logits = torch.einsum("bhnd,bhmd->bhnm", q, k) / 8**0.5
    if slopes is not None:
        logits = logits - slopes[:, None, None] * (torch.arange(n)[:, None] - torch.arange(n))
    logits = torch.where(torch.ones(n, n).tril() > 0, logits, -1e9)
    selection = F.relu(logits[:, 0]) * (1 - torch.eye(n, dtype=q.dtype))
    selection = selection * (torch.arange(n) > 0)
    selection = selection.roll(1, -2) * (torch.arange(n) > 0)[:, None]
    logits = logits - selection.cumsum(-2)[:, None]
    return torch.einsum("bhnm,bhmd->bhnd", logits.softmax(-1), v)


@pytest.mark.parametrize("with_slopes", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 33])
@pytest.mark.parametrize("kernel", op.KERNELS)
def test_equals_the_listing_with_gradients(kernel: str, length: int, with_slopes: bool) -> None:
    slopes = alibi_slopes(HEADS).double() if with_slopes else None
    inputs = qkv(length)
    expected = listing(*inputs, slopes)
    found, _ = op.KERNELS[kernel](*inputs, slopes)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), inputs), wanted, atol=1e-6, rtol=1e-6)


def test_a_key_that_nothing_votes_for_is_left_alone_and_others_fade() -> None:
    """Keys alike for head 1, of which head 0 of query 2 votes against key 1: from query 3 on it weighs e^-8 less."""
    q, k = torch.zeros(2, 1, 2, 5, 4)
    v = torch.eye(5).expand(1, 2, 5, 5)
    k[0, 0, 1], q[0, 0, 2] = 2.0, 2.0  # 4 * 2 * 2 / sqrt(4) = 8
    weights, total = op.sdpa(q, k, v)
    torch.testing.assert_close(weights[0, 1, 2], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0]))
    faded = torch.exp(torch.tensor(-8.0))
    torch.testing.assert_close(weights[0, 1, 4], torch.tensor([1, faded, 1, 1, 1]) / (4 + faded))
    assert total.tolist() == [[0, 8, 0, 0, 0]]


@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
@pytest.mark.parametrize("n_prompt", [1, 2, 20, 36])
@torch.no_grad()
def test_steps_equal_forward(n_prompt: int, positions: str) -> None:
    mixer, x = build(positions), 3 * torch.randn(2, 37, D, generator=torch.Generator().manual_seed(1))
    y, state = mixer.prefill(x[:, :n_prompt], mixer.init_state(2, 40))
    found = [*y.unbind(1)]
    for x_t in x[:, n_prompt:].unbind(1):
        y_t, state = mixer.step(x_t, state)
        found.append(y_t)
    torch.testing.assert_close(torch.stack(found, 1), mixer(x), atol=1e-5, rtol=1e-5)
    assert state[2].max() > 1, "something is masked"


def test_the_state_has_a_number_more_per_key() -> None:
    assert [tuple(t.shape) for t in tensors(build().init_state(2, 10))] == [(2, 4, 10, 4), (2, 4, 10, 4), (2, 10), ()]
    assert build().state_bytes(10) == 4 * (2 * 10 * D + 10) + 8


def test_masking_is_float32_under_autocast() -> None:
    mixer, x = build(), torch.randn(2, 9, D, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, (keys, _, penalty, _) = mixer.prefill(x, mixer.init_state(2, 9))
    assert (keys.dtype, penalty.dtype) == (torch.bfloat16, torch.float32)
    assert (penalty[:, 0] == 0).all()


def test_flops_are_those_of_full_attention() -> None:
    assert build().flops_per_token(12) == 4 * 2 * D * D + 4 * D * (12 * 13 / 2) / 12


@torch.no_grad()
def test_tracing_breaks_no_graph() -> None:
    mixer, x = build(), torch.randn(2, 21, D, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(mixer, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(x), mixer(x), atol=1e-6, rtol=1e-5)
    _, state = mixer.prefill(x[:, :-1], mixer.init_state(2, 21))
    step = torch.compile(mixer.step, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(step(x[:, -1], state)[0], mixer(x)[:, -1], atol=1e-5, rtol=1e-5)
