"""Softmax attention over the whole past, or over all positions.

Legend: B batch, H heads, T positions, D head width, W window, N blocks. q, k, v and the result are (B, H, T, D), but
full attention takes keys and values of fewer heads, which groups of H share;
`slopes` are the (H,) factors of ALiBi (Press et al. 2022), which lower a score by slope * distance.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

AttentionFn = Callable[..., Tensor]
"""Signature of a kernel: q, k, v, slopes and is_causal."""


def attention_bias(distance: Tensor, reach: int | Tensor, slopes: Tensor | None) -> Tensor:
    """Return the bias that is added to the scores, from query position minus key position.

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
    """Repeat keys or values for each of the query heads that share them: (B, H, T, D)."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)


def reference(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None, *, is_causal: bool = True) -> Tensor:
    """Compute equation 1 of Vaswani et al. 2017, written out."""
    k, v = (for_each_head(x, q.shape[1]) for x in (k, v))
    if is_causal:
        return local_reference(q, k, v, q.shape[-2], slopes)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    scores = scores if slopes is None else scores + _both_ways(q, slopes)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None, *, is_causal: bool = True) -> Tensor:
    """Run PyTorch's fused attention: O(T) memory without slopes, O(H T^2) with them (they need an explicit bias)."""
    is_grouped = q.shape[1] != k.shape[1]
    if slopes is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=is_grouped)
    n = q.shape[-2]
    bias = attention_bias(_distances(n, q.device), n, slopes) if is_causal else _both_ways(q, slopes)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), enable_gqa=is_grouped)


def _both_ways(q: Tensor, slopes: Tensor) -> Tensor:
    """Return ALiBi with a visible future: equal distances are lowered equally, (H, T, T)."""
    return -slopes[:, None, None] * _distances(q.shape[-2], q.device).abs()


SDPA_BACKENDS = {
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""Backends of `sdpa` on CUDA; its own order of preference is not always that of their speed."""


def sdpa_by(backend: SDPBackend) -> AttentionFn:
    """Run `sdpa` with one backend. Raises RuntimeError if that cannot run."""

    def run(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None, *, is_causal: bool = True) -> Tensor:
        if backend == SDPBackend.EFFICIENT_ATTENTION:  # this backend does not support groups
            k, v = (for_each_head(x, q.shape[1]) for x in (k, v))
        with sdpa_kernel(backend):
            return sdpa(q, k, v, slopes, is_causal=is_causal)

    return run


class Heads(NamedTuple):
    """Properties that decide which backends can run and which is the fastest."""

    device: torch.device
    dtype: torch.dtype
    n_heads: int
    n_kv_heads: int
    d_head: int
    with_slopes: bool


def sdpa_obstacles(heads: Heads) -> dict[str, str | None]:
    """Return why each kernel of full attention cannot train, the fastest first: on CUDA measured once per process."""
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
    """Return milliseconds of forward and backward in the trial, or why they cannot run."""
    B, T = SDPA_TRIAL
    rng = torch.Generator(heads.device).manual_seed(0)  # leave the model's own generator alone
    q, k, v = (
        torch.randn(B, n, T, heads.d_head, device=heads.device, dtype=heads.dtype, generator=rng).requires_grad_()
        for n in (heads.n_heads, heads.n_kv_heads, heads.n_kv_heads)
    )
    slopes = torch.ones(heads.n_heads, device=heads.device) if heads.with_slopes else None
    attend = sdpa_by(SDPA_BACKENDS[name])

    def once() -> None:
        torch.autograd.grad(attend(q, k, v, slopes).sum(), (q, k, v))

    try:
        with warnings.catch_warnings(action="ignore"):  # PyTorch warns at length about why it refuses
            once()
    except RuntimeError as error:
        dtype = str(heads.dtype).removeprefix("torch.")
        return f"cannot run here for heads {heads.d_head} wide in {dtype} ({_first_line(error)})"
    return _best_ms(once)


def _best_ms(run: Callable[[], object], n: int = 5) -> float:
    """Return the shortest of a few runs, by the device's clock."""
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
    """Compute softmax over the last `window` positions, with the full T x T matrix of scores."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    bias = attention_bias(_distances(q.shape[-2], q.device), window, slopes)
    scores = scores.masked_fill(~bias, float("-inf")) if slopes is None else scores + bias
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


KERNELS: dict[str, AttentionFn] = {
    "sdpa": sdpa,
    **{name: sdpa_by(backend) for name, backend in SDPA_BACKENDS.items()},
    "reference": reference,
}
