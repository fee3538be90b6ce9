"""The generalised delta rule: every channel decays, plus a change of rank one (RWKV-7).

    S_t = diag(exp(log_decay_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T      (K, V)
    o_t = S_t^T q_t                                                             (V,)

q, k, a, b: (B, H, T, K), v: (B, H, T, V), log decay, never positive: (B, H, T, K). With b = -beta k and a = k it is the
delta rule. Equation 17 of Peng et al. 2025 (arXiv:2503.14456) with S transposed. States, decays and all products run in
float32 or wider, also under autocast.

Legend: B batch, H heads, T positions, N chunks, C positions of a chunk, K and V widths of a key and of a value.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from arch_bench.ops.chunks import channel_scores, chunk_length, hand_on, join, split, wide
from arch_bench.ops.fused import TRIAL, cast, heads_last, missing, refusal

CHUNK = 32  # positions: the scores of channels cost log2(C) rounds over all of them


class Inputs(NamedTuple):
    """Inputs of all positions; of one token without T."""

    q: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    log_decay: Tensor


def generalised_delta_rule(inputs: Inputs, *, kernel: str) -> tuple[Tensor, Tensor]:
    """Process all positions from a zero state: o in v's dtype and the last state (B, H, K, V), without gradient."""
    if kernel == "fla":
        return _fla(inputs)
    attend = {"chunked": _chunked, "reference": _reference}[kernel]
    with torch.autocast(inputs.v.device.type, enabled=False):
        o, last = attend(Inputs(*(wide(x) for x in inputs)))
    return o.to(inputs.v.dtype), last.detach()


def generalised_delta_rule_step(inputs: Inputs, state: Tensor) -> Tensor:
    """Compute o of one token. Updates the state (B, H, K, V) in place."""
    with torch.autocast(inputs.v.device.type, enabled=False):
        q, k, v, a, b, log_decay = (wide(x).unsqueeze(-1) for x in inputs)
        removed = a.mT @ state
        state.mul_(log_decay.exp()).add_(b * removed).add_(k * v.mT)
        return (q.mT @ state).squeeze(-2).to(inputs.v.dtype)


@torch.compiler.disable  # a loop that tracing would only unroll
def _reference(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run the recurrence as written. `unbind`, because the backward of indexing in a loop is O(T^2)."""
    q, k, v, a, b, log_decay = inputs
    state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    columns = (x.unsqueeze(-1).unbind(2) for x in (q, k, v, a, b, log_decay.exp()))
    outputs = []
    for q_t, k_t, v_t, a_t, b_t, decay_t in zip(*columns, strict=True):
        state = decay_t * state + b_t @ (a_t.mT @ state) + k_t @ v_t.mT
        outputs.append((q_t.mT @ state).squeeze(-2))
    return torch.stack(outputs, 2), state


def _chunked(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run in chunks, like the delta rule; u_t = S_{t-1}^T a_t solves a triangular system.

    With S the state that entered the chunk, total_t the log decays since then and before_t = total_{t-1}:

        (I - M_ab) u = (a exp(before)) S + M_ak v
        M_xy_ts      = sum_c x_t[c] y_s[c] exp(before_t[c] - total_s[c]) for s < t
        S_end        = exp(total_C) S + sum_s exp(total_C - total_s) (k_s v_s^T + b_s u_s^T)
    """
    seq_len = inputs.v.shape[2]
    length = chunk_length(seq_len, CHUNK)
    q, k, v, a, b, log_decay = (split(x, length) for x in inputs)
    total = log_decay.cumsum(3)
    before = total - log_decay
    columns = torch.stack((k, b))
    q_k, q_b = channel_scores(q.expand_as(columns), columns, total, total, (q * columns).sum(-1))
    a_k, a_b = channel_scores(a.expand_as(columns), columns, before, total, torch.zeros_like(columns[..., 0]))
    mixed = torch.cat((a_k @ v, a * before.exp()), -1)
    solved = torch.linalg.solve_triangular(-a_b, mixed, upper=False, unitriangular=True)
    own, received = solved.split((v.shape[-1], k.shape[-1]), -1)  # u = own + received S
    end = total[..., -1:, :]
    k, b = ((x * (end - total).exp()).mT for x in (k, b))
    kept = torch.diag_embed(end.squeeze(-2).exp()) + b @ received
    entering, last = hand_on(kept, k @ v + b @ own, torch.matmul)
    o = q_k @ v + q_b @ (own + received @ entering) + (q * total.exp()) @ entering
    return join(o, seq_len), last


@torch.compiler.disable
def _fla(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run `chunk_rwkv7` of flash-linear-attention, in one dtype, with decays in float32."""
    dtype = cast(inputs.v).dtype
    q, k, v, a, b = (heads_last(x.to(dtype)) for x in inputs[:5])
    attend = importlib.import_module("fla.ops.rwkv7").chunk_rwkv7
    decay = heads_last(wide(inputs.log_decay))
    o, last = attend(r=q, w=decay, k=k, v=v, a=a, b=b, scale=1.0, output_final_state=True)
    return o.transpose(1, 2).to(inputs.v.dtype), wide(last).detach()


class Heads(NamedTuple):
    """Properties that decide which kernel can run."""

    device: torch.device
    dtype: torch.dtype
    n_heads: int
    d_head: int


def obstacles(heads: Heads) -> dict[str, str | None]:
    """Return why each kernel cannot run here, the fastest first; on CUDA by trial, once per process."""
    return {"fla": missing(heads.device, "fla") or _fla_refusal(heads), "chunked": None, "reference": None}


@cache
def _fla_refusal(heads: Heads) -> str | None:
    (B, T), H, K = TRIAL, heads.n_heads, heads.d_head
    k = torch.full((B, H, T, K), K**-0.5, device=heads.device, dtype=heads.dtype)
    log_decay = torch.full_like(k, -0.1, dtype=torch.float32)

    def by(kernel: str) -> Callable[..., Tensor]:
        return lambda *inputs: generalised_delta_rule(Inputs(*inputs), kernel=kernel)[0]

    return refusal("fla", by("fla"), (k, k, k, -k, k / 2, log_decay), heads, truth=by("chunked"))
