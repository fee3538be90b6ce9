"""Mamba-2: against the listing of its paper and its own block written out, initialisation, parameters, counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.mixers.base import tensors
from arch_bench.mixers.mamba2 import A_RANGE, DT_RANGE, Mamba2
from arch_bench.ops.kernel import Unsupported
from arch_bench.ops.linear_attention import linear_attention


def build(kernel: str = "chunked", **sizes: Any) -> Mamba2:
    torch.manual_seed(0)
    return Mamba2(**{"d_model": 16, "d_state": 6, "d_head": 8, "d_conv": 4, "expand": 2, **sizes}, kernel=kernel)


def segsum(x: Tensor) -> Tensor:
    total = x.cumsum(-1)
    between = total[..., :, None] - total[..., None, :]
    return between.masked_fill(~torch.ones(2 * x.shape[-1:], dtype=torch.bool).tril(), -torch.inf)


def ssd_minimal(X: Tensor, A: Tensor, B: Tensor, C: Tensor, block_len: int) -> tuple[Tensor, Tensor]:
    """Dao & Gu 2024, listing 1. X: (b, length, h, p), A: (b, length, h), B and C: (b, length, h, n)."""
    X, A, B, C = (x.unflatten(1, (-1, block_len)) for x in (X, A, B, C))
    A = A.permute(0, 3, 1, 2)
    A_cumsum = A.cumsum(-1)
    Y_diag = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, torch.exp(segsum(A)), X)
    decay_states = torch.exp(A_cumsum[:, :, :, -1:] - A_cumsum)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, decay_states, X)
    states = torch.cat((torch.zeros_like(states[:, :1]), states), 1)
    decay_chunk = torch.exp(segsum(F.pad(A_cumsum[:, :, :, -1], (1, 0))))
    new_states = torch.einsum("bhzc,bchpn->bzhpn", decay_chunk, states)
    Y_off = torch.einsum("bclhn,bchpn,bhcl->bclhp", C, new_states[:, :-1], torch.exp(A_cumsum))
    return (Y_diag + Y_off).flatten(1, 2), new_states[:, -1]


@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_the_op_equals_listing_1(kernel: str) -> None:
    torch.manual_seed(0)
    X, delta = torch.randn(2, 192, 3, 4, dtype=torch.float64), F.softplus(torch.randn(2, 192, 3, dtype=torch.float64))
    B, C = torch.randn(2, 2, 192, 1, 5, dtype=torch.float64)
    expected, last = ssd_minimal(X, -delta, B.expand(-1, -1, 3, -1), C.expand(-1, -1, 3, -1), block_len=32)
    heads = [x.transpose(1, 2) for x in (C, B, X, -delta)]
    found = linear_attention(*heads, kernel=kernel)
    torch.testing.assert_close(found, (expected.transpose(1, 2), last.mT))


def block(mixer: Mamba2, inputs: Tensor) -> Tensor:
    """The block written out as the paper has it, with listing 1 inside. inputs: (b, length, d_model)."""
    H, N, P = mixer.state_shape
    z, xBC, dt = mixer.in_proj(inputs).split((H * P, H * P + 2 * N, H), -1)
    assert mixer.conv1d is not None
    taps = mixer.conv1d.kernel_size[0]
    xBC = F.silu(mixer.conv1d(F.pad(xBC.mT, (taps - 1, 0))).mT)
    x, B, C = xBC.split((H * P, N, N), -1)
    x, dt = x.unflatten(-1, (H, P)), F.softplus(dt + mixer.dt_bias)
    B, C = (each.unsqueeze(2).expand(-1, -1, H, -1) for each in (B, C))
    y, _ = ssd_minimal(x * dt.unsqueeze(-1), -mixer.A_log.exp() * dt, B, C, block_len=16)
    y = ((y + mixer.D[:, None] * x).flatten(2)) * F.silu(z)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * mixer.norm.weight
    return mixer.out_proj(y)


@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_the_block_equals_the_paper_s(kernel: str) -> None:
    mixer, x = build(kernel), torch.randn(2, 96, 16)
    found, expected = mixer(x), block(mixer, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    parameters = list(mixer.parameters())
    gradients = (torch.autograd.grad(y.square().sum(), parameters) for y in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("d_conv", [0, 1, 4])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65])
def test_steps_equal_the_parallel_form(d_conv: int, length: int) -> None:
    mixer, x = build(d_conv=d_conv), torch.randn(2, 66, 16)
    with torch.no_grad():
        expected = mixer(x)
        y, state = mixer.prefill(x[:, :length], mixer.init_state(2, 66))
        y_t, _ = mixer.step(x[:, length], state)
    torch.testing.assert_close(torch.cat((y, y_t[:, None]), 1), expected[:, : length + 1], rtol=1e-4, atol=1e-5)


def test_initial_rates_and_flags() -> None:
    mixer = build(d_model=256, d_head=4)
    dt, A = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert DT_RANGE[0] * 0.999 <= dt.min() < 2 * DT_RANGE[0] < DT_RANGE[1] / 2 < dt.max() <= DT_RANGE[1] * 1.001
    assert A_RANGE[0] <= A.min() < A_RANGE[0] + 1
    assert A_RANGE[1] - 1 < A.max() <= A_RANGE[1] * 1.001
    assert (mixer.D == 1).all()
    flagged = {name for name, p in mixer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert flagged == {"A_log", "D", "dt_bias"}


def test_parameters_match_mamba_ssm() -> None:
    assert {name: tuple(p.shape) for name, p in build().state_dict().items()} == {
        "in_proj.weight": (2 * 32 + 2 * 6 + 4, 16),
        "conv1d.weight": (32 + 2 * 6, 1, 4),
        "conv1d.bias": (32 + 2 * 6,),
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "norm.weight": (32,),
        "out_proj.weight": (16, 32),
    }


def test_counts_by_hand() -> None:
    mixer = build()
    projections = 16 * (2 * 32 + 2 * 6 + 4) + 44 * 4 + 32 * 16
    assert mixer.flops_per_token(8) == mixer.flops_per_token(8000) == 2 * (projections + 2 * 32 * 6)
    assert mixer.state_bytes(10) == mixer.state_bytes(100_000) == 4 * (3 * 44 + 32 * 6)
    assert [tuple(t.shape) for t in tensors(mixer.init_state(5, 10, position=9))] == [(5, 3, 44), (5, 4, 6, 8)]


def test_trains_under_autocast() -> None:
    mixer, x = build(), torch.randn(2, 70, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
        y.float().square().sum().backward()
        _, (window, last) = mixer.prefill(x, mixer.init_state(2, 70))
    assert (window.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y.float(), mixer(x), rtol=0.1, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_sizes_and_kernels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"d_head=5 must divide expand \* d_model=32"):
        build(d_head=5)
    with pytest.raises(ValueError, match="d_conv=-1 must be at least 0"):
        build(d_conv=-1)
    with pytest.raises(Unsupported, match="kernel=mamba_ssm: needs a CUDA device, not cpu"):
        build("mamba_ssm")
