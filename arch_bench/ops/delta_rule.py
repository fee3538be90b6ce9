"""The delta rule: a state that erases the value under a key before writing there (DeltaNet, Gated DeltaNet).

    S_t = decay_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T         (K, V)
    o_t = S_t^T q_t                                                         (V,)

q, k: (B, H, T, K), keys of length 1; v: (B, H, T, V); beta: (B, H, T), in (0, 2) for a stable state; the log decay,
never positive, is None or (B, H, T). This is equation 10 of Yang et al. 2025 (arXiv:2412.06464) with S transposed,
and without a decay Schlag et al. 2021. States, decays and all products run in float32 or wider, also under autocast.

Legend: B batch, H heads, T positions, N chunks, C positions of a chunk, K and V widths of a key and of a value.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from arch_bench.ops.chunks import chunk_length, decays, hand_on, join, split, wide
from arch_bench.ops.fused import TRIAL, cast, heads_last, missing, refusal

CHUNK = 64  # positions


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, *, kernel: str
) -> tuple[Tensor, Tensor]:
    """Process all positions from a zero state: o in v's dtype and the last state (B, H, K, V), without gradient."""
    if kernel == "fla":
        return _fla(q, k, v, beta, log_decay)
    attend = {"chunked": _chunked, "reference": _reference}[kernel]
    with torch.autocast(v.device.type, enabled=False):
        log_decay = None if log_decay is None else wide(log_decay)
        o, last = attend(wide(q), wide(k), wide(v), wide(beta), log_decay)
    return o.to(v.dtype), last.detach()


def delta_rule_step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, *, state: Tensor
) -> Tensor:
    """Compute o of one token; all inputs without T. Updates the state (B, H, K, V) in place."""
    with torch.autocast(v.device.type, enabled=False):
        if log_decay is not None:
            state.mul_(wide(log_decay).exp()[..., None, None])
        k = wide(k).unsqueeze(-2)
        error = wide(v).unsqueeze(-2) - k @ state
        state.add_(k.mT * (wide(beta)[..., None, None] * error))
        return (wide(q).unsqueeze(-2) @ state).squeeze(-2).to(v.dtype)


@torch.compiler.disable  # a loop that tracing would only unroll
def _reference(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run the recurrence: beta corrects the state's error at the key. `unbind`, as indexing costs O(T^2) backward."""
    decay = (torch.zeros_like(beta) if log_decay is None else log_decay).exp()
    state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    rows, columns = (x.unsqueeze(-2).unbind(2) for x in (q, k)), (x[..., None, None].unbind(2) for x in (beta, decay))
    outputs = []
    for q_t, k_t, beta_t, decay_t, v_t in zip(*rows, *columns, v.unsqueeze(-2).unbind(2), strict=True):
        state = decay_t * state
        state = state + k_t.mT @ (beta_t * (v_t - k_t @ state))
        outputs.append((q_t @ state).squeeze(-2))
    return torch.stack(outputs, 2), state


def _chunked(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run in chunks (Yang et al. 2024, arXiv:2406.06484, 3.2 and 3.3; with decays Yang et al. 2025, section 3.3).

    With total_t the log decay since the chunk began, and S the state that entered it, a chunk is linear attention over
    corrected values u, which solve a triangular system:

        (I + L) u = beta (v - exp(total) k S),      L_ts = beta_t exp(total_t - total_s) k_t^T k_s for s < t
        S_end     = exp(total_C) S + sum_s exp(total_C - total_s) k_s u_s^T

    so that S_end is a (K, K) matrix times S, plus a state: handed on by products of such matrices.
    """
    seq_len = v.shape[2]
    length = chunk_length(seq_len, CHUNK)
    log_decay = torch.zeros_like(beta) if log_decay is None else log_decay
    q, k, v, beta, total = (split(x, length) for x in (q, k, v, beta.unsqueeze(-1), log_decay))
    total = total.cumsum(3)
    within, since, until = decays(total), total.exp().unsqueeze(-1), (total[..., -1:] - total).exp().unsqueeze(-1)
    # solve_triangular takes the diagonal as ones and does not read above it
    system = beta * (k @ k.mT) * within
    solved = torch.linalg.solve_triangular(
        system, beta * torch.cat((v, since * k), -1), upper=False, unitriangular=True
    )
    own, received = solved.split((v.shape[-1], k.shape[-1]), -1)  # u = own - received S
    writes = (until * k).mT
    eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    entering, last = hand_on(since[..., -1:, :] * eye - writes @ received, writes @ own, torch.matmul)
    u = own - received @ entering
    return join((q @ k.mT * within) @ u + (since * q) @ entering, seq_len), last


@torch.compiler.disable
def _fla(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run flash-linear-attention's `chunk_delta_rule` or `chunk_gated_delta_rule`, in one dtype, decays in float32."""
    values = cast(v)
    q, k, values, beta = (heads_last(x.to(values.dtype)) for x in (q, k, values, beta))
    name = "delta_rule" if log_decay is None else "gated_delta_rule"
    decay = {} if log_decay is None else {"g": heads_last(wide(log_decay))}
    attend = getattr(importlib.import_module(f"fla.ops.{name}"), f"chunk_{name}")
    o, last = attend(q, k, values, beta=beta, **decay, scale=1.0, output_final_state=True)
    return o.transpose(1, 2).to(v.dtype), wide(last).detach()


class Heads(NamedTuple):
    """Properties that decide which kernel can run."""

    device: torch.device
    dtype: torch.dtype
    n_heads: int
    d_key: int
    d_value: int
    is_gated: bool


def obstacles(heads: Heads) -> dict[str, str | None]:
    """Return why each kernel cannot run here, the fastest first; on CUDA by trial, once per process."""
    return {"fla": missing(heads.device, "fla") or _fla_refusal(heads), "chunked": None, "reference": None}


@cache
def _fla_refusal(heads: Heads) -> str | None:
    B, T = TRIAL
    shape = (B, heads.n_heads, T)
    k, v = (
        torch.full((*shape, d), d**-0.5, device=heads.device, dtype=heads.dtype) for d in (heads.d_key, heads.d_value)
    )
    beta = torch.full(shape, 0.5, device=heads.device)
    inputs = (k, k, v, beta, torch.full_like(beta, -0.1)) if heads.is_gated else (k, k, v, beta)

    def by(kernel: str) -> Callable[..., Tensor]:
        return lambda q, k, v, beta, decay=None: delta_rule(q, k, v, beta, decay, kernel=kernel)[0]

    return refusal("fla", by("fla"), inputs, heads, truth=by("chunked"))
