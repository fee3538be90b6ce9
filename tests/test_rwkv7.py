"""RWKV-7: its recurrence in chunks, against flash-linear-attention, its block written out, initialisation, counts."""

from __future__ import annotations

import importlib
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.config.schema import cell_of, compose
from arch_bench.mixers.rwkv7 import RWKV7
from arch_bench.ops.generalised_delta_rule import CHUNK, Inputs, generalised_delta_rule, generalised_delta_rule_step
from arch_bench.train.optimizer import make_optimizer

B, H, K, V, D = 2, 3, 8, 5, 16


def op_inputs(seq_len: int, strongest: float = 20.0, dtype: torch.dtype = torch.float64) -> Inputs:
    """Removals along a direction of length 1, as the mixer makes them, and decays from nearly none to `strongest`."""
    torch.manual_seed(seq_len)
    q, k, a = torch.randn(3, B, H, seq_len, K, dtype=dtype)
    a = F.normalize(a, dim=-1)
    b = -a * torch.rand(B, H, seq_len, K, dtype=dtype)
    log_decay = -strongest * torch.rand(B, H, seq_len, K, dtype=dtype) ** 4
    return Inputs(q, k, torch.randn(B, H, seq_len, V, dtype=dtype), a, b, log_decay)


@pytest.mark.parametrize("seq_len", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 7])
def test_chunks_equal_the_recurrence_with_gradients(seq_len: int) -> None:
    inputs = Inputs(*(x.requires_grad_() for x in op_inputs(seq_len)))
    (o, last), (o_reference, last_reference) = (
        generalised_delta_rule(inputs, kernel=kernel) for kernel in ("chunked", "reference")
    )
    torch.testing.assert_close((o, last), (o_reference, last_reference))
    do = torch.randn_like(o)
    found, expected = (torch.autograd.grad(y, inputs, do) for y in (o, o_reference))
    torch.testing.assert_close(found, expected)


def test_steps_equal_the_parallel_form() -> None:
    inputs = op_inputs(70)
    o, last = generalised_delta_rule(inputs, kernel="chunked")
    state = torch.zeros_like(last)
    for t in range(70):
        o_t = generalised_delta_rule_step(Inputs(*(x[:, :, t] for x in inputs)), state)
        torch.testing.assert_close(o_t, o[:, :, t])
    torch.testing.assert_close(state, last)


def test_decays_of_any_strength_stay_finite() -> None:
    inputs = Inputs(*(x.requires_grad_() for x in op_inputs(100, strongest=1e4, dtype=torch.float32)))
    o, last = generalised_delta_rule(inputs, kernel="chunked")
    assert all(x.isfinite().all() for x in (o, last, *torch.autograd.grad(o.sum(), inputs)))


@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_equals_flash_linear_attention(kernel: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU
        pytest.importorskip("fla", exc_type=ImportError)
        naive = importlib.import_module("fla.ops.generalized_delta_rule.dplr.naive")
    inputs = op_inputs(100, strongest=3.0, dtype=torch.float32)
    o, last = generalised_delta_rule(inputs, kernel=kernel)
    q, k, v, a, b, log_decay = inputs
    expected, state = naive.dplr_recurrence(q * K**0.5, k, v, a, b, log_decay)  # it scales by itself
    torch.testing.assert_close((o, last), (expected, state), rtol=1e-4, atol=1e-5)


def build(kernel: str = "chunked", d_model: int = D) -> RWKV7:
    """With loras that see the token, as they do not at first."""
    torch.manual_seed(0)
    mixer = RWKV7(d_model=d_model, n_heads=2, kernel=kernel)
    for lora in (mixer.w, mixer.a, mixer.g):
        torch.nn.init.normal_(lora.get_parameter("0.weight"))
    return mixer


def x(seq_len: int = 70) -> Tensor:
    return torch.randn(2, seq_len, D, generator=torch.Generator().manual_seed(1))


def as_written(mixer: RWKV7, x: Tensor) -> Tensor:
    """As the authors' reference has it, token by token (RWKV-LM, rwkv_v7_demo.py), S as (values, keys)."""
    H, K = mixer.n_heads, mixer.d_head
    S, before = torch.zeros(2, H, K, K), torch.zeros(2, D)
    ys = []
    for x_t in x.unbind(1):
        xx = before - x_t
        xr, xw, xk, xv, xa, xg = (x_t + xx * mu for mu in mixer.shift)
        r, k, v, g = mixer.r(xr), mixer.k(xk), mixer.v(xv), mixer.g(xg)
        w = torch.exp(-torch.exp(-F.softplus(-mixer.w(xw)) - 0.5)).view(2, H, 1, K)
        a = torch.sigmoid(mixer.a(xa))
        kk = F.normalize((k * mixer.xi).view(2, H, K), dim=-1)
        k = k * (1 + (a - 1) * mixer.alpha)
        removal = -kk.unsqueeze(-1) @ (kk * a.view(2, H, K)).unsqueeze(-2)
        S = S * w + S @ removal + v.view(2, H, K, 1) @ k.view(2, H, 1, K)
        y = F.group_norm((S @ r.view(2, H, K, 1)).view(2, D), H, mixer.norm.weight, mixer.norm.bias, eps=1e-5 * K)
        bonus = (r.view(2, H, K) * k.view(2, H, K) * mixer.rho.view(H, K)).sum(-1, keepdim=True) * v.view(2, H, K)
        ys.append(mixer.out((y + bonus.view(2, D)) * g))
        before = x_t
    return torch.stack(ys, 1)


@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_the_block_equals_the_authors_with_gradients(kernel: str) -> None:
    mixer = build(kernel)
    found, expected = mixer(x()), as_written(mixer, x())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    parameters = list(mixer.parameters())
    gradients = (torch.autograd.grad(y.square().sum(), parameters) for y in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33])
def test_prefill_then_a_step_equals_the_parallel_form(length: int) -> None:
    mixer = build()
    with torch.no_grad():
        expected = mixer(x())
        y, state = mixer.prefill(x()[:, :length], mixer.init_state(2, 70))
        y_t, _ = mixer.step(x()[:, length], state)
    torch.testing.assert_close(torch.cat((y, y_t[:, None]), 1), expected[:, : length + 1], rtol=1e-3, atol=1e-4)


def test_initialisation() -> None:
    torch.manual_seed(0)
    mixer = RWKV7(d_model=64, n_heads=2, kernel="auto")
    inputs, _ = mixer._inputs(torch.randn(2, 9, 64), torch.zeros(2, 9, 64))
    decay = inputs.log_decay.exp()
    assert math.exp(-math.exp(-0.5)) < decay.min() < 0.6
    assert 0.99 < decay.max() < 1
    torch.testing.assert_close(decay[0, 0], decay[1, 8])  # not yet of the token
    torch.testing.assert_close(inputs.a.norm(dim=-1), torch.ones(2, 9, 2))
    assert (mixer.shift[:, 0] == 1).all()
    assert (mixer.shift[:, -1] < 0.02).all()
    for projection, gain in ((mixer.r, 1.0), (mixer.k, 0.1), (mixer.v, 1.0)):
        torch.testing.assert_close(projection.weight @ projection.weight.T, gain**2 * torch.eye(64), atol=1e-5, rtol=0)
    assert 0 < mixer.out.weight.abs().max() <= 0.5 * 64**-0.5
    torch.testing.assert_close(mixer.norm.weight, torch.full((64,), 0.5**0.7))


def test_large_projections_alone_are_decayed() -> None:
    """As in configure_optimizers of the authors' train_temp."""
    mixer = build()
    decayed, exempt = make_optimizer(mixer, cell_of(compose([])).optim, torch.tensor(1e-3)).param_groups
    assert decayed["weight_decay"] > exempt["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in mixer.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {f"{name}.weight" for name in ("r", "k", "v", "out")}


def test_counts_by_hand() -> None:
    mixer = build()
    multiply_adds = 4 * 16 * 16 + 3 * 2 * 16 * 32 + 4 * 2 * 8 * 8  # projections, loras of rank 32, state
    assert mixer.flops_per_token(8) == mixer.flops_per_token(8000) == 2 * multiply_adds
    assert mixer.state_bytes(8) == mixer.state_bytes(8000) == 4 * (16 + 2 * 8 * 8)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="n_heads=3 must divide d_model=16"):
        RWKV7(d_model=D, n_heads=3, kernel="auto")
