"""The recurrence of sLSTM (Beck et al. 2024, arXiv:2405.04517, equations 8 to 17): exponential gates, stabilised.

    i, f, z, o = x_t + h_{t-1} R                                four gates of each head, before their activation
    m_t = max(log sigmoid(f) + m_{t-1}, i)                      so that no exponential below exceeds 1
    i'  = exp(i - m_t),  f' = exp(log sigmoid(f) + m_{t-1} - m_t)
    c_t = f' c_{t-1} + i' tanh(z),  n_t = f' n_{t-1} + i',  h_t = sigmoid(o) c_t / n_t

h_t goes through R into all gates, so that steps cannot run side by side: every kernel is a loop over time. Before the
first token m is -inf, which makes f' = 0; after it n_t >= 1.

Legend: B batch, T positions, H heads, K head width. Computed in float32 or wider, also under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

OBSTACLES: dict[str, str | None] = {"loop": None, "reference": None}
"""Kernels, the fastest first; both run anywhere."""


class Cell(NamedTuple):
    """State after a token: (B, H, K) each."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


def empty_cell(like: Tensor) -> Cell:
    """Return the state before the first token, of the shape (B, H, K) of `like`."""
    h, c, n = (torch.zeros_like(like) for _ in range(3))
    return Cell(h, c, n, torch.full_like(like, -torch.inf))


@torch.compiler.disable  # loops over time, which tracing would only unroll
def slstm(x: Tensor, R: Tensor, *, kernel: str) -> tuple[Tensor, Cell]:
    """Process all positions from an empty cell: h (B, T, H, K) and the last cell, without gradient.

    x: (B, T, H, 4, K), the tokens' input to the gates. R: (H, K, 4 K), the weights of h in them.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, R = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (x, R))
        if kernel == "reference":
            return _reference(x, R)
        h, *last = _Loop.apply(x.permute(1, 2, 0, 3, 4).contiguous(), R)
        return h.permute(2, 0, 1, 3), Cell(*(each.transpose(0, 1) for each in last))


def slstm_step(x_t: Tensor, cell: Cell, R: Tensor) -> Cell:
    """Process one token. x_t: (B, H, 4, K), in the dtype of the cell."""
    h, c, n, m = cell
    from_h = torch.bmm(h.transpose(0, 1), R).unflatten(-1, (4, -1)).transpose(0, 1)
    i, f, z, o = (x_t + from_h).unbind(2)
    log_f = F.logsigmoid(f) + m
    m = torch.maximum(log_f, i)
    i, f = torch.exp(i - m), torch.exp(log_f - m)
    c, n = f * c + i * torch.tanh(z), f * n + i
    return Cell(torch.sigmoid(o) * c / n, c, n, m)


def _reference(x: Tensor, R: Tensor) -> tuple[Tensor, Cell]:
    cell = empty_cell(x[:, 0, :, 0])
    hs = []
    for x_t in x.unbind(1):
        cell = slstm_step(x_t, cell, R)
        hs.append(cell.h)
    return torch.stack(hs, 1), Cell(*(each.detach() for each in cell))


class _Loop(torch.autograd.Function):
    """Loop without a graph of its steps, with a backward pass in which only the necessary part is sequential.

    m is a scale of c and n that h does not depend on, and has no gradient. Then the gradients of one step are linear
    in those of h, c and n, with factors that are computed for all steps at once; so is the gradient of R afterwards.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, R: Tensor) -> tuple[Tensor, ...]:
        """Map x: (T, H, B, 4, K) to h (T, H, B, K), and the last h, c, n, m (H, B, K)."""
        T, H, B, _, K = x.shape
        gates = x.clone()
        h, m = x.new_zeros(T + 1, H, B, K), x.new_full((T + 1, H, B, K), -torch.inf)
        cn = x.new_zeros(T + 1, 2, H, B, K)
        hs, ms, cns = h.unbind(), m.unbind(), cn.unbind()
        for t, (gates_t, *each_gate) in enumerate(zip(*_steps(gates.flatten(3), *gates.unbind(-2)), strict=True)):
            gates_t.baddbmm_(hs[t], R)
            _advance(each_gate, ms[t], cns[t], (hs[t + 1], ms[t + 1], cns[t + 1]))
        ctx.save_for_backward(R, gates, h, m, cn)
        last = (hs[-1].clone(), *(each.clone() for each in cns[-1].unbind()), ms[-1].clone())
        ctx.mark_non_differentiable(*last)
        return h[1:].clone(), *last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        R, gates, h, m, cn = ctx.saved_tensors
        with torch.autocast(dh.device.type, enabled=False):
            dgates = torch.empty_like(gates)
            T, H, B, _, K = gates.shape
            R_T, dcn, after = R.mT.contiguous(), h.new_zeros(2, H, B, K), h.new_zeros(H, B, 4 * K)
            dc, dn = dcn.unsqueeze(-2).unbind()
            parts = dgates[..., :3, :], dgates[..., :2, :], dgates[..., 3, :], dgates.flatten(3)
            steps = zip(
                *_steps(dh.clone(memory_format=torch.contiguous_format), *parts, *_factors(gates, m, cn)), strict=True
            )
            for total, difz, dif, do, dall, keep, h_to_cn, c_to_ifz, n_to_if, h_to_o in reversed(list(steps)):
                total.baddbmm_(after, R_T)
                dcn.addcmul_(total, h_to_cn)
                torch.mul(c_to_ifz, dc, out=difz)
                dif.addcmul_(n_to_if, dn)
                torch.mul(h_to_o, total, out=do)
                dcn.mul_(keep)
                after = dall
            before = h[:-1].permute(1, 3, 0, 2).reshape(H, K, T * B)
            return dgates, before @ dgates.transpose(0, 1).reshape(H, T * B, 4 * K)


def _steps(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Return views of each, step by step: made here, since making one costs as much as a small operation."""
    return (tensor.unbind() for tensor in tensors)


def _advance(gates: list[Tensor], m_before: Tensor, cn_before: Tensor, out: tuple[Tensor, Tensor, Tensor]) -> None:
    """Write h, m and (c, n) after one step. gates: i, f, z, o, (H, B, K) each."""
    h, m, cn = out
    i, f, z, o = gates
    log_f = F.logsigmoid(f).add_(m_before)
    torch.maximum(log_f, i, out=m)
    write = torch.sub(i, m).exp_()
    torch.mul(cn_before, log_f.sub_(m).exp_(), out=cn)
    c, n = cn.unbind()
    c.addcmul_(write, torch.tanh(z))
    n.add_(write)
    torch.div(c, n, out=h).mul_(torch.sigmoid(o))


def _factors(gates: Tensor, m: Tensor, cn: Tensor) -> tuple[Tensor, ...]:
    """Return all steps' f' and the derivatives of c and n by h's gradient, i, f, z by c's, i, f by n's, o by h's."""
    i, f, z, o = gates.unbind(-2)
    c, n = cn[1:].unbind(1)
    write, keep = torch.exp(i - m[1:]), torch.exp(F.logsigmoid(f) + m[:-1] - m[1:])
    z, o, forget = torch.tanh(z), torch.sigmoid(o), keep * torch.sigmoid(-f)
    c_before, n_before = cn[:-1].unbind(1)
    h_to_cn = torch.stack((o / n, -o * c / n.square()), 1)
    c_to_ifz = torch.stack((write * z, forget * c_before, write * (1 - z.square())), -2)
    n_to_if = torch.stack((write, forget * n_before), -2)
    return keep, h_to_cn, c_to_ifz, n_to_if, c / n * o * (1 - o)
