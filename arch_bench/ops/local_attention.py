"""Causal softmax attention within a window: the last W positions, the own one included.

Legend: B batch, H heads, T positions, D head width, W window, N blocks. q, k, v and the result are (B, H, T, D);
`slopes` as in `ops/attention.py`, where the reference is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arch_bench.ops.attention import Heads, attention_bias, local_reference

LocalAttentionFn = Callable[[Tensor, Tensor, Tensor, int, Tensor | None], Tensor]


def blocks(q: Tensor, k: Tensor, v: Tensor, window: int, slopes: Tensor | None = None) -> Tensor:
    """Attend in O(T W): blocks of W queries meet the W keys before them and their own W; runs and trains anywhere."""
    B, H, T, D = q.shape
    W = min(window, T)
    N = -(-T // W)
    tail = N * W - T
    q = F.pad(q, (0, 0, 0, tail)).reshape(B, H * N, W, D)
    k, v = (_with_previous_block(F.pad(x, (0, 0, W, tail)), N, W) for x in (k, v))
    offsets = torch.arange(W, device=q.device)[:, None] + W - torch.arange(2 * W, device=q.device)[None, :]
    distance = offsets.repeat(N, 1, 1)  # (N, W, 2W)
    distance[0, :, :W] = -1  # nothing precedes the first block
    bias = attention_bias(distance, W, slopes)
    bias = bias.repeat(H, 1, 1) if slopes is None else bias.flatten(0, 1).to(q.dtype)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return y.reshape(B, H, N * W, D)[:, :, :T]


def _with_previous_block(x: Tensor, n_blocks: int, window: int) -> Tensor:
    """Join each block with the one before: (B, H, (N + 1) W, D), padded by one in front -> (B, H N, 2 W, D)."""
    B, H, _, D = x.shape
    blocks = x.view(B, H, n_blocks + 1, window, D)
    return torch.cat((blocks[:, :, :-1], blocks[:, :, 1:]), dim=3).flatten(1, 2)


def varlen(q: Tensor, k: Tensor, v: Tensor, window: int, slopes: Tensor | None = None) -> Tensor:
    """Run FlashAttention, as in PyTorch (CUDA, half precision, without slopes)."""
    from torch.nn.attention.varlen import varlen_attn

    assert slopes is None
    B, _, T, _ = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    ends = torch.arange(0, B * T + 1, T, device=q.device, dtype=torch.int32)
    y: Any = varlen_attn(q, k, v, ends, ends, T, T, window_size=(window - 1, 0))
    return y.unflatten(0, (B, T)).transpose(1, 2)


def varlen_obstacle(heads: Heads) -> str | None:
    """Return why FlashAttention with a window cannot train here, or None."""
    if heads.device.type != "cuda":
        return f"needs a CUDA device, not {heads.device.type}; use kernel=blocks"
    if heads.dtype not in (torch.bfloat16, torch.float16):
        return "FlashAttention takes half precision; use kernel=flex, or precision=bf16"
    if heads.d_head % 8 or heads.d_head > 256:
        return f"FlashAttention takes heads up to 256 wide, in steps of 8, not {heads.d_head}; use kernel=blocks"
    if heads.with_slopes:
        return "FlashAttention as PyTorch offers it takes no ALiBi slopes; use kernel=flex"
    return None


def flex(q: Tensor, k: Tensor, v: Tensor, window: int, slopes: Tensor | None = None) -> Tensor:
    """Run PyTorch's block-sparse flex attention (CUDA: its backward does not exist on a CPU)."""

    def lower_far_scores(score: Tensor, _b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert slopes is not None
        return score - slopes[h] * (i - j)

    mask = _flex_mask(window, q.shape[-2], q.device)
    return run_flex(q, k, v, score_mod=None if slopes is None else lower_far_scores, block_mask=mask)


FLEX_BLOCK = 128
"""Positions per block of flex attention's mask."""


@cache
@torch.inference_mode(False)  # the first call may come from a test, the next from training
def _flex_mask(window: int, n: int, device: torch.device) -> Any:
    """Build the band as a block mask, by arithmetic: `create_block_mask` makes all n x n entries, sorts (n / 128)^2.

    A pair of blocks is full where every pair of its positions is visible, partial where some are.
    """
    from torch.nn.attention.flex_attention import BlockMask

    reach = torch.tensor(window, device=device)  # captured as a tensor: one compiled kernel serves every window

    def visible(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j < reach)

    n_blocks = -(-n // FLEX_BLOCK)
    n_full = max(0, window // FLEX_BLOCK - 1)  # blocks behind that are full: their farthest pair is visible
    farthest = min((window - 2) // FLEX_BLOCK + 1, n_blocks - 1)  # the last behind whose nearest pair is visible
    partial = [0, *range(n_full + 1, farthest + 1)]
    full = [*range(1, min(n_full, farthest) + 1)]
    width = max(len(partial), len(full))  # one for all tables: the CUDA kernels read them with the strides of one
    width = n_blocks if device.type == "cpu" else width  # the CPU kernel wants a column for every block
    tables: dict[str, Any] = {}
    for name, sign in {"kv": -1, "q": 1}.items():
        for kind, behind in {name: partial, f"full_{name}": full}.items():
            n_there, which = _band([sign * distance for distance in behind], n_blocks, width, device)
            tables |= {f"{kind}_num_blocks": n_there, f"{kind}_indices": which}
    return BlockMask(seq_lengths=(n, n), **tables, BLOCK_SIZE=(FLEX_BLOCK, FLEX_BLOCK), mask_mod=visible)


def _band(steps: list[int], n_blocks: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return for each block how many others it meets, and which, `steps` away from itself, as (1, 1, ...).

    In ascending order: the CUDA kernels look for the end of the sequence in the last block of a row.
    """
    nowhere = [n_blocks] * (width - len(steps))
    which = torch.arange(n_blocks, device=device)[:, None] + torch.tensor([*sorted(steps), *nowhere], device=device)
    which = which.where(which >= 0, n_blocks).sort(-1).values  # missing blocks come last
    return (which < n_blocks).sum(-1).int()[None, None], which.clamp(max=n_blocks - 1).int()[None, None]


def flex_obstacle(heads: Heads) -> str | None:
    """Return why flex attention cannot train here, or None."""
    if heads.device.type != "cuda":
        return "flex attention trains on CUDA only; use kernel=blocks"
    if heads.d_head < 16:
        return f"flex attention takes heads at least 16 wide, not {heads.d_head}; use kernel=blocks"
    if find_spec("triton") is None:
        return "flex attention needs triton, which is not installed; use kernel=blocks"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "flex attention is compiled, and there is no C compiler; use kernel=blocks"
    return None


def run_flex(*args: Any, **options: Any) -> Tensor:
    """Run PyTorch's flex attention, compiled with its surroundings or by itself.

    Within a trace a compiled function must not be made or called: torch 2.11 breaks off there and then fails.
    """
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling():
        inlined: Any = flex_attention(*args, **options)
        return inlined
    return _compiled_flex()(*args, **options)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


KERNELS: dict[str, LocalAttentionFn] = {
    "varlen": varlen,
    "flex": flex,
    "blocks": blocks,
    "reference": local_reference,
}
