"""Mixers on linear attention: each against its paper's formula, its initialisation, its count."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.mixers.gated_linear_attention import GAIN, GLA, OUT_GAIN, RetNet
from arch_bench.mixers.linear_attention import LinearAttention, LinearMixer, TaylorAttention

D, T = 16, 70
BUILDERS: dict[str, Callable[..., LinearMixer]] = {
    "linear_attention": lambda **k: LinearAttention(d_model=D, n_heads=2, **k),
    "taylor": lambda **k: TaylorAttention(d_model=D, n_heads=2, d_feature=3, **k),
    "retnet": lambda **k: RetNet(d_model=D, n_heads=2, expand=2, **k),
    "gla": lambda **k: GLA(d_model=D, n_heads=2, expand_k=0.5, expand_v=1.0, d_gate=3, **k),
}
BY_HAND = {  # multiply-adds: projections, then k v^T and S^T q
    "linear_attention": 3 * 16 * 16 + 16 * 16 + 2 * 2 * 8 * 9,
    "taylor": 2 * 16 * 6 + 16 * 16 + 16 * 16 + 2 * 2 * (1 + 3 + 6) * 9,
    "retnet": 2 * 16 * 16 + 2 * 16 * 32 + 32 * 16 + 2 * 2 * 8 * 16,
    "gla": 2 * 16 * 8 + 2 * 16 * 16 + 16 * 16 + 16 * 3 + 3 * 8 + 2 * 2 * 4 * 8,
}
STATES = {
    "linear_attention": 4 * 2 * 8 * 9,
    "taylor": 4 * 2 * 10 * 9,
    "retnet": 4 * 2 * 8 * 16 + 8,  # and the position
    "gla": 4 * 2 * 4 * 8,
}


def build(name: str, kernel: str = "chunked") -> Any:
    torch.manual_seed(0)
    return BUILDERS[name](kernel=kernel)


def x(seq_len: int = T) -> Tensor:
    return torch.randn(2, seq_len, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BUILDERS)
def test_counts_by_hand(name: str) -> None:
    assert build(name).flops_per_token(8) == build(name).flops_per_token(8000) == 2 * BY_HAND[name]
    assert build(name).state_bytes(8) == build(name).state_bytes(8000) == STATES[name]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("length", [1, 63, 64, 65])
def test_at_the_edge_of_a_chunk_steps_equal_the_parallel_form(name: str, length: int) -> None:
    mixer = build(name)
    with torch.no_grad():
        expected = mixer(x(66))
        y, state = mixer.prefill(x(66)[:, :length], mixer.init_state(2, 66))
        y_t, _ = mixer.step(x(66)[:, length], state)
    torch.testing.assert_close(torch.cat((y, y_t[:, None]), 1), expected[:, : length + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_heads_that_do_not_fit_are_refused(name: str) -> None:
    mixer = type(build(name))
    sizes: dict[Any, dict[str, Any]] = {
        TaylorAttention: {"d_feature": 3},
        RetNet: {"expand": 2},
        GLA: {"expand_k": 0.5, "expand_v": 1.0, "d_gate": 3},
    }
    with pytest.raises(ValueError, match=r"n_heads=5 must divide .*d_model=\d+"):
        mixer(d_model=D, n_heads=5, kernel="auto", **sizes.get(mixer, {}))


def heads(mixer: Any, y: Tensor) -> list[Tensor]:
    """(B, T, ...) -> (B, H, T, ...) of q, k and v."""
    return [each.unflatten(-1, (2, -1)).transpose(1, 2) for each in mixer.qkv(y).split(mixer._widths, -1)]


def test_linear_attention_is_attention_by_its_feature_map() -> None:
    mixer = build("linear_attention")
    q, k, v = heads(mixer, x())
    scores = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
    o = (scores / scores.sum(-1, keepdim=True)) @ v
    torch.testing.assert_close(mixer(x()), mixer.out(o.transpose(1, 2).flatten(2)))


def test_taylor_is_attention_by_the_series_of_the_exponential() -> None:
    mixer = build("taylor")
    q, k, v = heads(mixer, x())
    s = q @ k.mT * 3**-0.5
    scores = (1 + s + s**2 / 2).tril()
    o = (scores / scores.sum(-1, keepdim=True)) @ v
    torch.testing.assert_close(mixer(x()), mixer.out(o.transpose(1, 2).flatten(2)))


def test_taylor_at_its_own_width_has_153_features() -> None:
    assert TaylorAttention(d_model=32, n_heads=4, d_feature=16, kernel="auto").d_key == 153


def test_retention_falls_by_the_paper_s_factors() -> None:
    mixer = RetNet(d_model=64, n_heads=4, expand=2, kernel="auto")
    torch.testing.assert_close(mixer.log_decay.exp(), torch.tensor([31 / 32, 63 / 64, 127 / 128, 255 / 256]))


def check_uniform(weight: Tensor, limit: float) -> None:
    assert 0.98 * limit < weight.abs().max() <= limit
    assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)


def xavier(weight: Tensor, gain: float = 1.0) -> float:
    return gain * (6 / sum(weight.shape)) ** 0.5


def test_retnet_starts_as_its_authors_do() -> None:
    torch.manual_seed(0)
    mixer = RetNet(d_model=128, n_heads=4, expand=2, kernel="auto")
    for weight in (*mixer.qkv.weight.split(mixer._widths), mixer.gate.weight):
        check_uniform(weight, xavier(weight, GAIN))
    check_uniform(mixer.out.weight, xavier(mixer.out.weight, OUT_GAIN))
    assert (GAIN, OUT_GAIN, mixer.norm.eps) == (2**-2.5, 0.5, 1e-6)
    o = torch.randn(3, 64) + 5  # an RMS norm does not take the mean away
    torch.testing.assert_close(mixer.norm(o), o / o.square().mean(-1, keepdim=True).sqrt(), atol=1e-5, rtol=1e-5)
    assert not [*mixer.norm.parameters()]


def test_gla_starts_as_its_authors_do() -> None:
    torch.manual_seed(0)
    mixer = GLA(d_model=128, n_heads=4, expand_k=0.5, expand_v=2.0, d_gate=16, kernel="auto")
    q, k, v = mixer.qkv.weight.split(mixer._widths)
    for weight in (q, k, *(p for p in mixer.decay_proj.parameters() if p.dim() > 1)):
        check_uniform(weight, xavier(weight, GAIN))
    for weight in (v, mixer.gate.weight, mixer.out.weight):
        check_uniform(weight, weight.shape[1] ** -0.5)  # nn.Linear's own
    assert mixer.norm.eps == 1e-5


def test_gla_starts_with_long_memory() -> None:
    log_decay = build("gla")._inputs(x()).log_decay
    assert log_decay.shape == (2, T, 2, 4)
    assert (log_decay.exp() > 0.9).all()


@pytest.mark.parametrize("name", BUILDERS)
def test_trains_under_autocast(name: str) -> None:
    mixer = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x())
        y.float().square().sum().backward()
    torch.testing.assert_close(y.float(), mixer(x()), rtol=0.1, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


# --- against flash-linear-attention ----------------------------------------------------------------------------------


def naive(module: str, function: str) -> Callable[..., Any]:
    """A function of fla that is plain PyTorch, on a CPU too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU
        pytest.importorskip("fla", exc_type=ImportError)
        found: Callable[..., Any] = getattr(importlib.import_module(f"fla.ops.{module}"), function)
    return found


def of_op(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Tensor]:
    """The inputs that a mixer makes, and the o that it makes of them, both (B, T, H, ...)."""
    seen: list[Tensor] = []
    monkeypatch.setattr(mixer, "_output", lambda o, x: seen.append(o) or x)
    mixer(x())
    return mixer._inputs(x()), seen[0]


def test_retnet_equals_flash_linear_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, o = of_op(build("retnet"), monkeypatch)
    q, k, v = (each.transpose(1, 2) for each in inputs[:3])
    expected = naive("retention.naive", "naive_retention")(q, k * 8**0.5, v)  # it scales by itself
    torch.testing.assert_close(o, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_gla_equals_flash_linear_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, o = of_op(build("gla"), monkeypatch)
    expected, _ = naive("gla.naive", "naive_recurrent_gla")(inputs.q * 2, *inputs[1:])  # it scales by itself
    torch.testing.assert_close(o, expected, rtol=1e-4, atol=1e-5)


def test_taylor_equals_flash_linear_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = build("taylor")
    _, o = of_op(mixer, monkeypatch)
    expected = naive("based.naive", "naive_parallel_based")(*heads(mixer, x()))
    torch.testing.assert_close((o[..., :-1] / o[..., -1:]).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
