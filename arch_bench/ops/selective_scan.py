"""The selective scan, the core of Mamba (Gu & Dao 2023, arXiv:2312.00752, Algorithm 2 and eq. 2a-2b).

    delta_t = softplus(raw_t + delta_bias)                      (D,)    step size, > 0
    h_t     = exp(delta_t A) h_{t-1} + delta_t u_t B_t          (D, N)  A < 0, so every decay is in (0, 1)
    y_t     = (h_t C_t + skip * u_t) * silu(z_t)                (D,)

The input is discretised by delta_t B_t, an Euler step, as in the authors' code; the paper's eq. 4 is exact instead.
Everything from softplus to y runs in float32 or wider, also under autocast.

Legend: L seq_len, D d_inner, N d_state, G rows (batch x chunks), T steps per chunk.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from math import isqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_CHUNK = 16  # steps: in a shorter chunk, handing the states on costs more than the scan
MIN_SEGMENT = 8  # steps: two such tensors of 2^17 states are 8 MiB, which the allocator reuses without page faults
WIDTH_CPU = 2**17  # states per operation: enough to hide its dispatch, little enough for two cores' L2 caches
WIDTH_CUDA = 2**20  # states per kernel: enough to fill the device


class ScanInputs(NamedTuple):
    """Inputs of all positions; of one token without L."""

    u: Tensor  # (batch, L, D)
    delta: Tensor  # (batch, L, D), before its bias and softplus
    A: Tensor  # (D, N)
    B: Tensor  # (batch, L, N)
    C: Tensor  # (batch, L, N)
    skip: Tensor  # (D,)
    z: Tensor  # (batch, L, D)
    delta_bias: Tensor  # (D,)


@torch.compiler.disable  # loops that tracing would only unroll, and an extension that it cannot see into
def selective_scan(inputs: ScanInputs, *, kernel: str) -> tuple[Tensor, Tensor]:
    """Scan all positions from a zero state: y in u's dtype and the last state (batch, D, N), without gradient."""
    if kernel == "mamba_ssm":
        return _mamba_ssm(inputs)
    scan = {"chunked": _chunked, "reference": _reference}[kernel]
    with torch.autocast(inputs.u.device.type, enabled=False):
        u, delta, A, B, C, skip, z, delta_bias = (_wide(x) for x in inputs)
        y, last = scan(u, F.softplus(delta + delta_bias), A, B, C)
        return ((y + skip * u) * F.silu(z)).to(inputs.u.dtype), last


def selective_scan_step(inputs: ScanInputs, h: Tensor) -> Tensor:
    """Compute y of one token. Updates the state h (batch, D, N) in place."""
    with torch.autocast(inputs.u.device.type, enabled=False):
        u, delta, A, B, C, skip, z, delta_bias = (_wide(x) for x in inputs)
        delta = F.softplus(delta + delta_bias)
        h.mul_(torch.exp(delta.unsqueeze(-1) * A)).add_((delta * u).unsqueeze(-1) * B.unsqueeze(1))
        y = torch.bmm(h, C.unsqueeze(-1)).squeeze(-1)
        return ((y + skip * u) * F.silu(z)).to(inputs.u.dtype)


def obstacles(device: torch.device, d_state: int) -> dict[str, str | None]:
    """Return why each kernel cannot run on this device; the fastest comes first."""
    missing = f"needs a CUDA device, not {device.type}" if device.type != "cuda" else _extension_obstacle()
    too_wide = f"takes d_state <= 256, not {d_state}" if d_state > 256 else None
    return {"mamba_ssm": missing or too_wide, "chunked": None, "reference": None}


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Run the recurrence as written. `unbind`, because the backward of indexing in a loop is O(L^2)."""
    decay = torch.exp(delta.unsqueeze(-1) * A)  # (batch, L, D, N)
    drive = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    h = torch.zeros_like(decay[:, 0])
    ys = []
    for decay_t, drive_t, C_t in zip(decay.unbind(1), drive.unbind(1), C.unbind(1), strict=True):
        h = decay_t * h + drive_t
        ys.append((h * C_t.unsqueeze(1)).sum(-1))
    return torch.stack(ys, 1), h.detach()


def _chunked(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    n_chunks = _n_chunks(u.shape[0], u.shape[1], A.numel(), u.is_cuda)
    y, last = _ChunkedScan.apply(n_chunks, torch.is_grad_enabled(), u, delta, A, B, C)
    return y, last


def _n_chunks(batch: int, seq_len: int, n_states: int, is_cuda: bool) -> int:
    """Return how many chunks fill one operation. Fewer than 4 are not worth the second pass that passes states on."""
    n_chunks = min((WIDTH_CUDA if is_cuda else WIDTH_CPU) // (batch * n_states), seq_len // MIN_CHUNK)
    return n_chunks if n_chunks >= 4 else 1


class _ChunkedScan(torch.autograd.Function):
    """Scan in which all chunks of all sequences advance together, one step at a time, on states (G, N, D).

    Several chunks take two passes: the first, from zero states, finds what each chunk adds to the state; this is
    handed on from chunk to chunk; the second starts from the right states. The backward pass does the same in
    reverse. The forward pass keeps one state per segment of max(8, sqrt(T)) steps, and the backward pass recomputes
    the others, a segment at a time: nothing of size (batch, L, D, N) is ever in memory. Decays are multiplied, never
    divided by.
    """

    @staticmethod
    def forward(ctx: Any, n_chunks: int, has_grad: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        u, delta, A, B, C = inputs
        A_T = A.T.contiguous()
        rows = [_rows(x, n_chunks) for x in (delta, delta * u, B, C)]
        ys = _empty_steps(rows[0])
        steps = [_Step(*step) for step in zip(*(x.unbind() for x in (*rows, ys)), strict=True)]
        h = _entering_states(steps, A_T, n_chunks)
        segment = max(MIN_SEGMENT, isqrt(len(steps))) if has_grad else len(steps)
        saved = h.new_empty(-(-len(steps) // segment), *h.shape)
        decay = torch.empty_like(h)
        for t, step in enumerate(steps):
            if t % segment == 0:
                saved[t // segment] = h
            _advance(h, step, A_T, decay, out=h)
            torch.bmm(step.C, h, out=step.y)
        last = h[n_chunks - 1 :: n_chunks].mT.contiguous()
        ctx.save_for_backward(u, delta, A_T, B, C, saved)
        ctx.segment = segment
        ctx.mark_non_differentiable(last)
        return _sequences(ys, u), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A_T, B, C, saved = ctx.saved_tensors
        n_chunks = saved.shape[1] // len(u)
        with torch.autocast(dy.device.type, enabled=False):
            rows = [_rows(x, n_chunks) for x in (delta, delta * u, B, C, dy.contiguous())]
            steps = [_Step(*step) for step in zip(*(x.unbind() for x in rows), strict=True)]
            gradients = [_empty_steps(x) for x in rows[:4]]
            gradient_steps = list(zip(*(x.unbind() for x in gradients), strict=True))
            scan = _ReverseScan(A_T, _leaving_gradients(steps, A_T, n_chunks), ctx.segment)
            for i in reversed(range(len(saved))):
                part = slice(i * ctx.segment, (i + 1) * ctx.segment)
                scan.segment(saved[i], steps[part], gradient_steps[part])
            ddelta, ddrive, dB, dC = (_sequences(x, u) for x in gradients)
        return None, None, ddrive * delta, ddelta + ddrive * u, scan.dA_T.sum(0).T, dB, dC


class _Step(NamedTuple):
    """One step of every chunk of every sequence: (G, 1, D), or (G, 1, N) for B and C."""

    delta: Tensor
    drive: Tensor  # delta u
    B: Tensor
    C: Tensor
    y: Tensor  # written by the forward pass; in the backward pass, its gradient


class _ReverseScan:
    """The gradients of a scan, segment by segment from the last to the first."""

    def __init__(self, A_T: Tensor, g: Tensor, n_steps: int) -> None:
        self.A_T, self.g = A_T, g  # g: dL/dh at the end of the segment to come, from everything after it
        self.dA_T = torch.zeros_like(g)
        self.states = g.new_empty(n_steps + 1, *g.shape).unbind()
        self.decays = g.new_empty(n_steps, *g.shape).unbind()

    def segment(self, h: Tensor, steps: Sequence[_Step], gradients: Sequence[tuple[Tensor, ...]]) -> None:
        """Write the gradients of delta (through the decay), drive, B, C. h: the state that enters the segment."""
        self.states[0].copy_(h)
        for i, step in enumerate(steps):
            _advance(self.states[i], step, self.A_T, self.decays[i], out=self.states[i + 1])
        for i in reversed(range(len(steps))):
            self._step(steps[i], gradients[i], self.decays[i], *self.states[i : i + 2])

    def _step(self, step: _Step, gradient: tuple[Tensor, ...], decay: Tensor, h_before: Tensor, h: Tensor) -> None:
        g, dy = self.g, step.y
        ddelta, ddrive, dB, dC = gradient
        g.addcmul_(step.C.mT, dy)
        torch.bmm(dy, h.mT, out=dC)
        torch.bmm(step.drive, g.mT, out=dB)
        torch.bmm(step.B, g, out=ddrive)
        g.mul_(decay)
        dlog_decay = torch.mul(g, h_before, out=h)  # log decay = delta A; h has served
        self.dA_T.addcmul_(dlog_decay, step.delta)
        torch.sum(dlog_decay.mul_(self.A_T), 1, keepdim=True, out=ddelta)


def _advance(h: Tensor, step: _Step, A_T: Tensor, decay: Tensor, out: Tensor) -> None:
    """Compute decay = exp(delta A); out = decay h + drive B. h: (G, N, D), where matmul and broadcasts are fast."""
    torch.mul(step.delta, A_T, out=decay).exp_()
    torch.mul(decay, h, out=out).addcmul_(step.drive, step.B.mT)


def _entering_states(steps: Sequence[_Step], A_T: Tensor, n_chunks: int) -> Tensor:
    """Return the state (G, N, D) at the start of each chunk."""
    h, decay = A_T.new_zeros(2, len(steps[0].B), *A_T.shape)
    if n_chunks > 1:
        for step in steps:
            _advance(h, step, A_T, decay, out=h)
        _hand_on(h, steps, A_T, n_chunks)
    return h


def _leaving_gradients(steps: Sequence[_Step], A_T: Tensor, n_chunks: int) -> Tensor:
    """Return dL/dh (G, N, D) at the end of each chunk, from all later chunks."""
    g, decay = A_T.new_zeros(2, len(steps[0].B), *A_T.shape)
    if n_chunks > 1:
        for step in reversed(steps):
            torch.mul(step.delta, A_T, out=decay).exp_()
            g.addcmul_(step.C.mT, step.y).mul_(decay)
        _hand_on(g, steps, A_T, n_chunks, reverse=True)
    return g


def _hand_on(x: Tensor, steps: Sequence[_Step], A_T: Tensor, n_chunks: int, reverse: bool = False) -> None:
    """Replace each chunk's own contribution by the state it receives from all chunks before it. x: (G, N, D)."""
    decay = torch.exp(torch.stack([step.delta for step in steps]).sum(0) * A_T)
    chunks = [(x[i::n_chunks], decay[i::n_chunks]) for i in range(n_chunks)]
    received = torch.zeros_like(chunks[0][0])
    for own, kept in reversed(chunks) if reverse else chunks:
        passed_on = torch.addcmul(own, kept, received)
        own.copy_(received)
        received = passed_on


def _rows(x: Tensor, n_chunks: int) -> Tensor:
    """View (batch, L, K) as (T, G, 1, K). Padding has delta = 0, which leaves a state unchanged."""
    batch, seq_len, width = x.shape
    padding = -seq_len % n_chunks
    x = F.pad(x, (0, 0, 0, padding)) if padding else x
    return x.reshape(batch * n_chunks, -1, 1, width).transpose(0, 1)


def _empty_steps(like: Tensor) -> Tensor:
    """Allocate (T, G, 1, K), each step contiguous: `bmm` is slow when its output is not."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _sequences(x: Tensor, like: Tensor) -> Tensor:
    """Convert back from (T, G, 1, K) to (batch, L, K)."""
    batch, seq_len, _ = like.shape
    return x.transpose(0, 1).reshape(batch, -1, x.shape[-1])[:, :seq_len]


@cache
def _extension_obstacle() -> str | None:
    try:
        importlib.import_module("selective_scan_cuda")
    except ImportError as error:
        return f"mamba-ssm's CUDA extension does not import: {error}"
    return None


def _mamba_ssm(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    u, delta, B, C, z = (
        _along_time(x.to(inputs.u.dtype)) for x in (inputs.u, inputs.delta, inputs.B, inputs.C, inputs.z)
    )
    A, skip, delta_bias = (x.float().contiguous() for x in (inputs.A, inputs.skip, inputs.delta_bias))
    y, last = _ExtensionScan.apply(u, delta, A, B.unsqueeze(1), C.unsqueeze(1), skip, z, delta_bias)
    return y.mT, last


def _along_time(x: Tensor) -> Tensor:
    """Transpose (batch, L, K) to (batch, K, L), contiguous over L."""
    return x.mT if x.mT.stride(-1) == 1 else x.mT.contiguous()


class _ExtensionScan(torch.autograd.Function):
    """mamba-ssm's CUDA kernels without its package, whose import needs transformers. B, C: (batch, 1, N, L).

    As `mamba_ssm.ops.selective_scan_interface.SelectiveScanFn` (2.3.2) calls them, with z and softplus.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        extension = importlib.import_module("selective_scan_cuda")
        y, states, y_gated = extension.fwd(*inputs, True)
        ctx.save_for_backward(*inputs, states, y)
        last = states[:, :, -1, 1::2].contiguous()  # (batch, D, blocks of L, decay and state of each N)
        ctx.mark_non_differentiable(last)
        return y_gated, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        *inputs, states, y = ctx.saved_tensors
        extension = importlib.import_module("selective_scan_cuda")
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        *gradients, dbias, dz = extension.bwd(*inputs, dy, states, y, None, True, False)
        return *gradients, dz, dbias
