"""Latent attention against the formula written out with its keys and values in full, and what it saves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arch_bench.config.instantiate import build
from arch_bench.config.schema import ConfigError, cell_of, compose
from arch_bench.mixers.latent_attention import LatentAttention
from arch_bench.positions import rotate, waves

D, H, T, C, R = 32, 4, 12, 10, 6


def mixer(positions: str = "rotary", **dials: object) -> LatentAttention:
    torch.manual_seed(0)
    sizes = {"d_model": D, "n_heads": H, "d_latent": C, "d_rope": R, "kernel": "auto", "positions": positions}
    return LatentAttention(**(sizes | dials))  # type: ignore[arg-type]


def in_full(m: LatentAttention, x: Tensor) -> Tensor:
    """One head and one query after the other."""
    c, r = m.down(x).split((C, R), -1)
    c = m.latent_norm(c)
    sines = waves(torch.arange(T), R)
    r = rotate(r[:, None], sines)[:, 0]
    q = m.q(x).view(len(x), T, H, D // H + R)
    outputs = torch.zeros(len(x), T, H, D // H)
    for h in range(H):
        k, v = c @ m.key_up[h].T, c @ m.value_up[h]
        q_r = rotate(q[:, :, h, D // H :][:, None], sines)[:, 0]
        scores = (q[:, :, h, : D // H] @ k.mT + q_r @ r.mT) / (D // H + R) ** 0.5
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
        outputs[:, :, h] = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    return m.out(outputs.flatten(2))


@pytest.mark.parametrize("kernel", ["sdpa", "reference"])
def test_equals_the_formula(kernel: str) -> None:
    m, x = mixer(kernel=kernel), torch.randn(2, T, D)
    torch.testing.assert_close(m(x), in_full(m, x), atol=1e-5, rtol=1e-4)


def test_the_state_is_the_latents_alone() -> None:
    state = mixer().init_state(3, 100)
    assert state[0].shape == (3, 100, C + R)
    assert mixer().state_bytes(100) == 100 * (C + R) * 4 + 8


def test_a_token_brings_no_key_out_of_the_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    m = mixer()
    monkeypatch.setattr(m, "_attend", None)  # which does that
    y, _ = m.step(torch.randn(2, D), m.init_state(2, 5))
    assert y.shape == (2, D)


def test_sizes_follow_the_heads() -> None:
    m = mixer(d_latent="auto", d_rope="auto")
    assert (m.d_latent, m.d_rope) == (16, 4)


@pytest.mark.parametrize(
    ("dial", "complaint"), [("n_heads=5", "n_heads=5 must divide"), ("d_rope=3", "d_rope=3 must be")]
)
def test_a_wrong_size_is_named(dial: str, complaint: str) -> None:
    cell = cell_of(compose(["backbone=mla", f"backbone.mixer.{dial}"]))
    with pytest.raises(ConfigError, match=complaint):
        build(cell, "backbone", vocab_size=3)


def test_flops_by_hand() -> None:
    projections = 2 * (D * H * (8 + R) + D * (C + R) + 2 * H * C * 8 + D * D)
    assert mixer().flops_per_token(T) == projections + 2 * H * (8 + R + 8) * (T + 1) / 2
