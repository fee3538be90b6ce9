"""DeltaNet and Gated DeltaNet: against flash-linear-attention, initialisation, counts, and what the rule is for."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.mixers.delta import A_RANGE, DeltaNet, GatedDeltaNet
from arch_bench.mixers.mamba2 import DT_RANGE
from arch_bench.ops.delta_rule import delta_rule

D, T = 16, 70
BY_HAND = {  # multiply-adds: projections, convolution, state
    "deltanet": 16 * 48 + 16 * 2 + 16 * 16 + 48 * 4 + 3 * 2 * 8 * 8,
    "gated_deltanet": 16 * (12 + 12 + 24) + 16 * 2 + 16 * 2 + 2 * 16 * 24 + 48 * 4 + 3 * 2 * 6 * 12,
}
STATES = {"deltanet": 4 * (3 * 48 + 2 * 8 * 8), "gated_deltanet": 4 * (3 * 48 + 2 * 6 * 12)}


def build(name: str, kernel: str = "chunked", d_conv: int = 4, negative: bool = False, d_model: int = D) -> Any:
    torch.manual_seed(0)
    common: dict[str, Any] = {"n_heads": 2, "d_conv": d_conv, "negative_eigenvalues": negative, "kernel": kernel}
    if name == "deltanet":
        return DeltaNet(d_model=d_model, **common)
    return GatedDeltaNet(d_model=d_model, expand_k=0.75, expand_v=1.5, **common)


def x(seq_len: int = T) -> Tensor:
    return torch.randn(2, seq_len, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_by_hand(name: str) -> None:
    mixer = build(name)
    assert mixer.flops_per_token(8) == mixer.flops_per_token(8000) == 2 * BY_HAND[name]
    assert mixer.state_bytes(8) == mixer.state_bytes(8000) == STATES[name]


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("d_conv", [0, 4])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65])
def test_steps_equal_the_parallel_form(name: str, d_conv: int, length: int) -> None:
    mixer = build(name, d_conv=d_conv)
    with torch.no_grad():
        expected = mixer(x(66))
        y, state = mixer.prefill(x(66)[:, :length], mixer.init_state(2, 66))
        y_t, _ = mixer.step(x(66)[:, length], state)
    torch.testing.assert_close(torch.cat((y, y_t[:, None]), 1), expected[:, : length + 1], rtol=1e-4, atol=1e-5)


def recurred(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], Tensor, Tensor]:
    """Inputs of the recurrence, its o and its last state, heads before widths."""
    seen: list[Any] = []
    recur = mixer._recur
    monkeypatch.setattr(mixer, "_recur", lambda inputs, state: seen.append(inputs) or recur(inputs, state))
    mixer(x())
    o, last = recur(seen[0], None)
    return [each for each in seen[0] if each is not None], o, last


@pytest.mark.parametrize("negative", [False, True])
def test_beta_stays_in_its_range(negative: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = build("deltanet", negative=negative)
    with torch.no_grad():
        mixer.beta.weight.mul_(100)
    (q, k, _, beta), _, _ = recurred(mixer, monkeypatch)
    limit = 2.0 if negative else 1.0
    assert 0 <= beta.min() < 0.1
    assert limit - 0.1 < beta.max() <= limit
    for each in (q, k):
        torch.testing.assert_close(each.norm(dim=-1), torch.ones(2, T, 2))


def test_initial_rates_and_flags() -> None:
    mixer = build("gated_deltanet", d_model=64)
    dt = F.softplus(mixer.dt_bias)
    assert ((DT_RANGE[0] * 0.999 <= dt) & (dt <= DT_RANGE[1] * 1.001)).all()
    assert ((A_RANGE[0] < mixer.A_log.exp()) & (mixer.A_log.exp() <= A_RANGE[1])).all()
    flagged = {name for name, p in mixer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert flagged == {"A_log", "dt_bias"}


def test_the_rule_rewrites_where_a_sum_would_add() -> None:
    """The same key three times: what is read is the value that was written last."""
    k = F.normalize(torch.ones(1, 1, 3, 4), dim=-1)
    v = torch.randn(1, 1, 3, 5)
    o, _ = delta_rule(k, k, v, torch.ones(1, 1, 3), None, kernel="chunked")
    torch.testing.assert_close(o, v)


def test_doubled_beta_reflects() -> None:
    """With beta = 2 a key turns its direction around: the state counts parity."""
    k = torch.ones(1, 1, 6, 1)
    v = torch.tensor([1.0, 0, 0, 0, 0, 0]).view(1, 1, 6, 1)
    beta = torch.tensor([1.0, 2, 2, 2, 2, 2]).view(1, 1, 6)
    o, _ = delta_rule(k, k, v, beta, None, kernel="chunked")
    torch.testing.assert_close(o.flatten(), torch.tensor([1.0, -1, 1, -1, 1, -1]))


@pytest.mark.parametrize("name", BY_HAND)
def test_trains_under_autocast(name: str) -> None:
    mixer = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x())
        y.float().square().sum().backward()
    torch.testing.assert_close(y.float(), mixer(x()), rtol=0.1, atol=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize("name", BY_HAND)
def test_equals_flash_linear_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU
        pytest.importorskip("fla", exc_type=ImportError)
        module = importlib.import_module(f"fla.ops.{'gated_delta_rule' if 'gated' in name else 'delta_rule'}.naive")
    inputs, o, last = recurred(build(name, negative=True), monkeypatch)
    inputs[0] = inputs[0] * inputs[0].shape[-1] ** 0.5  # they scale by themselves
    if name == "deltanet":
        expected, state = module.delta_rule_recurrence(*(each.transpose(1, 2) for each in inputs))
        expected = expected.transpose(1, 2)
    else:
        expected, state = module.naive_recurrent_gated_delta_rule(*inputs, output_final_state=True)
    torch.testing.assert_close((o, last), (expected, state), rtol=1e-4, atol=1e-5)
