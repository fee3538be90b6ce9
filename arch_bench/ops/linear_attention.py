"""Linear attention with a decaying state, the core of linear transformers, RetNet, GLA, Mamba-2 and mLSTM.

    S_t = decay_t S_{t-1} + k_t v_t^T           (K, V)
    o_t = S_t^T q_t                             (V,)

q, k: (B, H, T, K), or (B, 1, T, K) for one of each that all heads share; v: (B, H, T, V). The log decay, never
positive, is None, (H,) of a head, (B, H, T) of a head and token, or (B, H, T, K) of a channel too, which then decays
its row of S. States, decays and all products run in float32 or wider, also under autocast.

Legend: B batch, H heads, T positions, N chunks, C positions of a chunk, K and V widths of a key and of a value.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Literal, NamedTuple

import torch
from packaging.version import Version
from torch import Tensor

from arch_bench.ops.chunks import channel_scores, chunk_length, decays, hand_on, join, split, wide
from arch_bench.ops.fused import TRIAL, cast, heads_last, missing, refusal

CHUNK = 64
"""Positions: a pair of them costs as much as the state does, at heads about as wide."""


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, *, kernel: str
) -> tuple[Tensor, Tensor]:
    """Process all positions from a zero state: o in v's dtype and the last state (B, H, K, V), without gradient."""
    if kernel == "fla":
        return _fla(q, k, v, log_decay)
    attend = {"chunked": _chunked, "reference": _reference}[kernel]
    with torch.autocast(v.device.type, enabled=False):
        o, last = attend(wide(q), wide(k), wide(v), _per_channel(log_decay, v))
    return o.to(v.dtype), last.detach()


def linear_attention_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, *, state: Tensor) -> Tensor:
    """Compute o of one token; all inputs without T. Updates the state (B, H, K, V) in place."""
    with torch.autocast(v.device.type, enabled=False):
        if log_decay is not None:
            state.mul_(wide(log_decay).exp().view(*log_decay.shape, *[1] * (state.dim() - max(2, log_decay.dim()))))
        state.add_(wide(k).unsqueeze(-1) * wide(v).unsqueeze(-2))
        return (wide(q).unsqueeze(-2) @ state).squeeze(-2).to(v.dtype)


def _per_channel(log_decay: Tensor | None, v: Tensor) -> Tensor | None:
    """Reshape to (B, H, T, 1 or K)."""
    if log_decay is None:
        return None
    if log_decay.dim() == 1:
        log_decay = log_decay.unsqueeze(-1).expand(v.shape[:3])
    return wide(log_decay if log_decay.dim() == 4 else log_decay.unsqueeze(-1))


@torch.compiler.disable  # a loop that tracing would only unroll
def _reference(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run the recurrence as written. `unbind`, because the backward of indexing in a loop is O(T^2)."""
    q, k = (x.expand(-1, v.shape[1], -1, -1) for x in (q, k))
    decay = (v.new_zeros(1, 1, v.shape[2], 1) if log_decay is None else log_decay).exp()
    state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for q_t, k_t, v_t, decay_t in zip(*(x.unbind(2) for x in (q, k, v, decay)), strict=True):
        state = decay_t.unsqueeze(-1) * state + k_t.unsqueeze(-1) @ v_t.unsqueeze(-2)
        outputs.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 2), state


def _chunked(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute scores within a chunk and states between chunks: O(T) time and memory, with one state per chunk."""
    seq_len = v.shape[2]
    length = chunk_length(seq_len, CHUNK)
    q, k, v = (split(x, length) for x in (q, k, v))
    if log_decay is None:
        scores, kept = (q @ k.mT).tril(), v.new_ones(1, 1, v.shape[2], 1, 1)
    else:
        total = split(log_decay, length).cumsum(3)  # (B, H, N, C, 1 or K)
        if total.shape[-1] == 1:
            scores = (q @ k.mT) * decays(total.squeeze(-1))
        else:
            scores = channel_scores(q, k, total, total, (q * k).sum(-1))
        end = total[..., -1:, :]
        q, k, kept = q * total.exp(), k * (end - total).exp(), end.exp().mT
    entering, last = hand_on(kept, k.mT @ v)
    return join(scores @ v + q @ entering, seq_len), last


@torch.compiler.disable
def _fla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run `chunk_simple_gla` or `chunk_gla` of flash-linear-attention, in one dtype, with decays in float32."""
    values = cast(v)
    q, k = (x.expand(-1, v.shape[1], -1, -1) for x in (q, k))
    heads = [heads_last(x.to(values.dtype)) for x in (q, k, values)]
    decay = {}
    name = "simple_gla"
    if log_decay is not None and log_decay.dim() == 1:
        decay = {"g_gamma": wide(log_decay)}
    elif log_decay is not None:
        decay = {"g": heads_last(wide(log_decay))}
        name = "gla" if log_decay.dim() == 4 else name
    attend = getattr(importlib.import_module(f"fla.ops.{name}"), f"chunk_{name}")
    o, last = attend(*heads, **decay, scale=1.0, output_final_state=True)
    return o.transpose(1, 2).to(v.dtype), wide(last).detach()


Decay = Literal["none", "head", "token", "channel"]
"""Scope of one decay: a head, a token or a channel."""


class Heads(NamedTuple):
    """Properties that decide which kernel can run."""

    device: torch.device
    dtype: torch.dtype
    n_heads: int
    d_key: int
    d_value: int
    decay: Decay


def obstacles(heads: Heads) -> dict[str, str | None]:
    """Return why each kernel cannot run here, the fastest first; on CUDA by trial, once per process."""
    return {"fla": missing(heads.device, "fla") or _fla_refusal(heads), "chunked": None, "reference": None}


@cache
def _fla_refusal(heads: Heads) -> str | None:
    (B, T), H, K = TRIAL, heads.n_heads, heads.d_key
    q, v = (torch.ones(B, H, T, d, device=heads.device, dtype=heads.dtype) for d in (K, heads.d_value))
    shapes: dict[Decay, tuple[int, ...]] = {"head": (H,), "token": (B, H, T), "channel": (B, H, T, K)}
    shared: tuple[Tensor | None, ...] = ()
    inputs = [q, q, v]
    if heads.decay == "none":
        shared = (None,)
    elif heads.decay == "head":  # without a gradient, which the library lacks
        shared = (torch.full(shapes["head"], -0.1, device=heads.device),)
    else:
        inputs.append(torch.full(shapes[heads.decay], -0.1, device=heads.device))
    if heads.decay == "head" and is_miscompiled(heads.device):
        return MISCOMPILED

    def by(kernel: str) -> Callable[..., Tensor]:
        return lambda *inputs: linear_attention(*inputs, *shared, kernel=kernel)[0]

    return refusal("fla", by("fla"), inputs, heads, truth=by("chunked"))


MISCOMPILED = (
    "Triton 3.4 to 3.7.0 miscompiles fla's backward pass with one decay of each head on Hopper; use kernel=chunked, or "
    "a later Triton"
)
"""Obstacle of fla: assembled by Triton's ptxas 12.8 for 4 warps, chunk_bwd_kernel_dqkwg addresses k and q by a
register that nothing sets. fla refuses it for decays of tokens only (its issue 640)."""


def is_miscompiled(device: torch.device) -> bool:
    """Return True if fla's kernel `chunk_bwd_kernel_dqkwg` is miscompiled on this device."""
    release = Version(metadata.version("triton"))
    return torch.cuda.get_device_capability(device)[0] == 9 and Version("3.4") <= release < Version("3.7.1")
