"""Causal softmax attention, full and within a window.

Legend: B batch, H heads, T positions, D head width, W window, N blocks. q, k, v and the result are (B, H, T, D), but
full attention takes keys and values of fewer heads, which groups of H share;
`slopes` are the (H,) factors of ALiBi (Press et al. 2022), which lower a score by slope * distance.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

AttentionFn = Callable[..., Tensor]
"""Of q, k, v, slopes and is_causal."""
LocalAttentionFn = Callable[[Tensor, Tensor, Tensor, int, Tensor | None], Tensor]


def attention_bias(distance: Tensor, reach: int | Tensor, slopes: Tensor | None) -> Tensor:
    """What is added to the scores, from query position minus key position.

    distance: (..., queries, keys); visible are 0 <= distance < reach. Returns a boolean mask of that shape, or with
    slopes a float bias of shape (H, ..., queries, keys).
    """
    visible = (distance >= 0) & (distance < reach)
    if slopes is None:
        return visible
    bias = -slopes.view(-1, *[1] * distance.dim()) * distance
    return bias.masked_fill(~visible, float("-inf"))


def _distances(n: int, device: torch.device) -> Tensor:
    positions = torch.arange(n, device=device)
    return positions[:, None] - positions[None, :]


def for_each_head(x: Tensor, n_heads: int) -> Tensor:
    """Keys or values, once for each of the query heads that share them: (B, H, T, D)."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)


def reference(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None, *, is_causal: bool = True) -> Tensor:
    """Vaswani et al. 2017, equation 1, written out."""
    k, v = (for_each_head(x, q.shape[1]) for x in (k, v))
    if is_causal:
        return local_reference(q, k, v, q.shape[-2], slopes)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    scores = scores if slopes is None else scores + _both_ways(q, slopes)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None, *, is_causal: bool = True) -> Tensor:
    """PyTorch's fused attention: O(T) memory without slopes, O(H T^2) with them (they need an explicit bias)."""
    is_grouped = q.shape[1] != k.shape[1]
    if slopes is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=is_grouped)
    n = q.shape[-2]
    bias = attention_bias(_distances(n, q.device), n, slopes) if is_causal else _both_ways(q, slopes)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), enable_gqa=is_grouped)


def _both_ways(q: Tensor, slopes: Tensor) -> Tensor:
    """ALiBi where the future is visible too: what is as far away is lowered as much, (H, T, T)."""
    return -slopes[:, None, None] * _distances(q.shape[-2], q.device).abs()


SDPA_BACKENDS = {
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""What `sdpa` chooses from on CUDA, by an order of its own, which is not always that of their speed."""


def sdpa_by(backend: SDPBackend) -> AttentionFn:
    """`sdpa` by one backend. Raises RuntimeError where that cannot run."""

    def run(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None, *, is_causal: bool = True) -> Tensor:
        if backend == SDPBackend.EFFICIENT_ATTENTION:  # which knows no groups
            k, v = (for_each_head(x, q.shape[1]) for x in (k, v))
        with sdpa_kernel(backend):
            return sdpa(q, k, v, slopes, is_causal=is_causal)

    return run


class Heads(NamedTuple):
    """What decides which backend can run, and which is the fastest."""

    device: torch.device
    dtype: torch.dtype
    n_heads: int
    n_kv_heads: int
    d_head: int
    with_slopes: bool


def sdpa_obstacles(heads: Heads) -> dict[str, str | None]:
    """Why each kernel of full attention cannot train, the fastest first: on CUDA as measured, once in a process."""
    if heads.device.type != "cuda":
        no_cuda = dict.fromkeys(SDPA_BACKENDS, f"needs a CUDA device, not {heads.device.type}; use kernel=sdpa")
        return {"sdpa": None, **no_cuda, "reference": None}
    found = {name: _sdpa_speed(name, heads) for name in SDPA_BACKENDS}
    times = {name: speed for name, speed in found.items() if isinstance(speed, float)}
    refused = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    return {**dict.fromkeys(sorted(times, key=times.__getitem__)), "sdpa": None, **refused, "reference": None}


SDPA_TRIAL = 4, 8192
"""Sequences and positions that decide between the backends: enough to hide the launch of their kernels. On an H200 the
fastest of them leads from 256 to 65,536 positions."""


@cache
@torch.inference_mode(False)
@torch.enable_grad()
def _sdpa_speed(name: str, heads: Heads) -> float | str:
    """Milliseconds of forward and backward of the trial, or why they cannot run."""
    B, T = SDPA_TRIAL
    rng = torch.Generator(heads.device).manual_seed(0)  # not the numbers that initialise the model
    q, k, v = (
        torch.randn(B, n, T, heads.d_head, device=heads.device, dtype=heads.dtype, generator=rng).requires_grad_()
        for n in (heads.n_heads, heads.n_kv_heads, heads.n_kv_heads)
    )
    slopes = torch.ones(heads.n_heads, device=heads.device) if heads.with_slopes else None
    attend = sdpa_by(SDPA_BACKENDS[name])

    def once() -> None:
        torch.autograd.grad(attend(q, k, v, slopes).sum(), (q, k, v))

    try:
        with warnings.catch_warnings(action="ignore"):  # PyTorch tells at length why it refuses
            once()
    except RuntimeError as error:
        dtype = str(heads.dtype).removeprefix("torch.")
        return f"cannot run here for heads {heads.d_head} wide in {dtype} ({_first_line(error)})"
    return _best_ms(once)


def _best_ms(run: Callable[[], object], n: int = 5) -> float:
    """The shortest of a few runs, by the device's clock."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return min(start.elapsed_time(end) for start, end in pairwise(marks))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def local_reference(q: Tensor, k: Tensor, v: Tensor, window: int, slopes: Tensor | None = None) -> Tensor:
    """Softmax over the last `window` positions, with the full T x T matrix of scores."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    bias = attention_bias(_distances(q.shape[-2], q.device), window, slopes)
    scores = scores.masked_fill(~bias, float("-inf")) if slopes is None else scores + bias
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


def local_blocks(q: Tensor, k: Tensor, v: Tensor, window: int, slopes: Tensor | None = None) -> Tensor:
    """The same in O(T W): blocks of W queries meet the W keys before them and their own W; runs and trains anywhere."""
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
    """(B, H, (N + 1) W, D), one block of padding in front -> (B, H N, 2 W, D)."""
    B, H, _, D = x.shape
    blocks = x.view(B, H, n_blocks + 1, window, D)
    return torch.cat((blocks[:, :, :-1], blocks[:, :, 1:]), dim=3).flatten(1, 2)


def local_varlen(q: Tensor, k: Tensor, v: Tensor, window: int, slopes: Tensor | None = None) -> Tensor:
    """The same by FlashAttention, as PyTorch offers it (CUDA, half precision, without slopes)."""
    from torch.nn.attention.varlen import varlen_attn

    assert slopes is None
    B, _, T, _ = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    ends = torch.arange(0, B * T + 1, T, device=q.device, dtype=torch.int32)
    y: Any = varlen_attn(q, k, v, ends, ends, T, T, window_size=(window - 1, 0))
    return y.unflatten(0, (B, T)).transpose(1, 2)


def varlen_obstacle(heads: Heads) -> str | None:
    """Why FlashAttention with a window cannot train here, or None."""
    if heads.device.type != "cuda":
        return f"needs a CUDA device, not {heads.device.type}; use kernel=blocks"
    if heads.dtype not in (torch.bfloat16, torch.float16):
        return "FlashAttention takes half precision; use kernel=flex, or precision=bf16"
    if heads.d_head % 8 or heads.d_head > 256:
        return f"FlashAttention takes heads up to 256 wide, in steps of 8, not {heads.d_head}; use kernel=blocks"
    if heads.with_slopes:
        return "FlashAttention as PyTorch offers it takes no ALiBi slopes; use kernel=flex"
    return None


def local_flex(q: Tensor, k: Tensor, v: Tensor, window: int, slopes: Tensor | None = None) -> Tensor:
    """The same by PyTorch's block-sparse flex attention (CUDA: its backward does not exist on a CPU)."""

    def lower_far_scores(score: Tensor, _b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert slopes is not None
        return score - slopes[h] * (i - j)

    mask = _flex_mask(window, q.shape[-2], q.device)
    return compiled_flex()(q, k, v, score_mod=None if slopes is None else lower_far_scores, block_mask=mask)


FLEX_BLOCK = 128
"""Positions per block of flex attention's mask."""


@cache
@torch.inference_mode(False)  # the first to ask may be a test, the next one trains
def _flex_mask(window: int, n: int, device: torch.device) -> Any:
    """The band as a block mask, by arithmetic: `create_block_mask` makes all n x n entries, and sorts (n / 128)^2.

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
    """For each block how many others it meets, and which, `steps` away from itself, as (1, 1, ...).

    In ascending order: the CUDA kernels look for the end of the sequence in the last block of a row.
    """
    nowhere = [n_blocks] * (width - len(steps))
    which = torch.arange(n_blocks, device=device)[:, None] + torch.tensor([*sorted(steps), *nowhere], device=device)
    which = which.where(which >= 0, n_blocks).sort(-1).values  # what is not there comes last
    return (which < n_blocks).sum(-1).int()[None, None], which.clamp(max=n_blocks - 1).int()[None, None]


def flex_obstacle(heads: Heads) -> str | None:
    """Why flex attention cannot train here, or None."""
    if heads.device.type != "cuda":
        return "flex attention trains on CUDA only; use kernel=blocks"
    if heads.d_head < 16:
        return f"flex attention takes heads at least 16 wide, not {heads.d_head}; use kernel=blocks"
    if find_spec("triton") is None:
        return "flex attention needs triton, which is not installed; use kernel=blocks"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "flex attention is compiled, and there is no C compiler; use kernel=blocks"
    return None


@cache
def compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


KERNELS: dict[str, AttentionFn] = {
    "sdpa": sdpa,
    **{name: sdpa_by(backend) for name, backend in SDPA_BACKENDS.items()},
    "reference": reference,
}
LOCAL_KERNELS: dict[str, LocalAttentionFn] = {
    "varlen": local_varlen,
    "flex": local_flex,
    "blocks": local_blocks,
    "reference": local_reference,
}
