"""Linear attention that writes the mean of two tokens: the trapezoidal rule, the core of Mamba-3.

    S_t = decay_t (S_{t-1} + before_t k_{t-1} v_{t-1}^T) + now_t k_t v_t^T          (K, V)
    o_t = S_t^T q_t                                                                 (V,)

q, k: (B, H, T, K), v: (B, H, T, V); the log decay, never positive, and the weights now and before: (B, H, T). This is
the exponential-trapezoidal rule of Lahoti et al. 2026 (arXiv:2603.15569). States, decays and all products run in
float32 or wider, also under autocast.

Legend: B batch, H heads, T positions, K and V widths of a key and of a value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.ops.chunks import wide
from arch_bench.ops.linear_attention import linear_attention


class Inputs(NamedTuple):
    """Inputs of all positions; of one token without T."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    now: Tensor
    before: Tensor


def trapezoid(inputs: Inputs, *, kernel: str) -> tuple[Tensor, Tensor]:
    """Process all positions from a zero state: o in v's dtype and the last state (B, H, K, V), without gradient."""
    with torch.autocast(inputs.v.device.type, enabled=False):
        if kernel == "reference":
            o, last = _reference(Inputs(*(wide(x) for x in inputs)))
            return o.to(inputs.v.dtype), last.detach()
    return _shifted(inputs, kernel)


def trapezoid_step(inputs: Inputs, k_before: Tensor, v_before: Tensor, *, state: Tensor) -> Tensor:
    """Compute o of one token, given the previous key and value. Updates the state (B, H, K, V) in place."""
    with torch.autocast(inputs.v.device.type, enabled=False):
        q, k, v, log_decay, now, before = (wide(x).unsqueeze(-1) for x in inputs)
        state.add_((before * wide(k_before)).unsqueeze(-1) * wide(v_before).unsqueeze(-2))
        state.mul_(log_decay.exp().unsqueeze(-1)).add_(now.unsqueeze(-1) * k * v.mT)
        return (q.mT @ state).squeeze(-2).to(inputs.v.dtype)


@torch.compiler.disable  # a loop that tracing would only unroll
def _reference(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run the recurrence as written. `unbind`, because the backward of indexing in a loop is O(T^2)."""
    q, k, v, log_decay, now, before = inputs
    last = state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    rows = (x.unsqueeze(-2).unbind(2) for x in (q, k, v))
    weights = (x[..., None, None].unbind(2) for x in (log_decay.exp(), now, before))
    outputs = []
    for q_t, k_t, v_t, decay_t, now_t, before_t in zip(*rows, *weights, strict=True):
        write = k_t.mT @ v_t
        state = decay_t * (state + before_t * last) + now_t * write
        last = write
        outputs.append((q_t @ state).squeeze(-2))
    return torch.stack(outputs, 2), state


def _shifted(inputs: Inputs, kernel: str) -> tuple[Tensor, Tensor]:
    """Compute by linear attention, once.

    S'_t = S_t + before_{t+1} k_t v_t^T = decay_t S'_{t-1} + (now_t + before_{t+1}) k_t v_t^T, so that

        o_t = now_t (q_t^T k_t) v_t + decay_t S'_{t-1}^T q_t

    of which the second part is what position t - 1 reads by the query after it: no sum has a part that is later than t.
    """
    q, k, v, log_decay, now, before = inputs
    q, k, now = wide(q), wide(k), wide(now)
    weight = (now + _next(wide(before))).unsqueeze(-1)
    read, last = linear_attention(
        _next(q * wide(log_decay).exp().unsqueeze(-1)), k * weight, v, log_decay, kernel=kernel
    )
    o = (now * (q * k).sum(-1)).unsqueeze(-1) * v + F.pad(read[:, :, :-1], (0, 0, 1, 0))
    return o.to(v.dtype), last


def _next(x: Tensor) -> Tensor:
    """Shift to the values of the next position; zeros at the end. (B, H, T, ...)."""
    return F.pad(x[:, :, 1:], (0, 0) * (x.dim() - 3) + (0, 1))
