"""Multi-head latent attention: keys and values are computed from one short vector per position.

Legend: B batch, H heads, T positions, K head width (d_model / H), R rotated width, C latent width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops
from arch_bench.mixers.sizes import at_least, head_width
from arch_bench.norm import RMSNorm
from arch_bench.ops import attention
from arch_bench.positions import Positions, alibi_slopes, first_waves, rotate, waves


class LatentAttention(Mixer):
    """DeepSeek-V2's attention (DeepSeek-AI 2024, section 2.1), with full-width queries as in its Lite version.

        c_t            = rms_norm(down x_t)                              (C,)
        k_t, v_t       = [key_up c_t, r_t], value_up c_t                 (H, K + R), (H, K)
        r_t, q_t       = rotations of their own projections of x_t       (R,) for all heads, (H, K + R)
        o_t            = softmax(q_t k^T / sqrt(K + R)) v

    State: c and r of every position, T (C + R) numbers. Training costs O(T^2 d_model). A decoded token takes queries
    into the latent space instead of bringing keys and values out of it, O(T H (C + R)).

    Raises ValueError if `n_heads` does not divide `d_model`, `d_latent` < 1, or `d_rope` is odd.
    """

    card = Card("attention", "T (d_latent + d_rope)", "T d", "T n_heads (d_latent + d_rope)", "DeepSeek-AI 2024")
    takes_relative_positions = True
    step_kernel = "absorbed"

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        d_latent: int | Literal["auto"],
        d_rope: int | Literal["auto"],
        positions: Positions,
        kernel: str,
    ) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, head_width(d_model, n_heads)
        self.d_rope = self.d_head // 4 * 2 if d_rope == "auto" else d_rope
        if self.d_rope < 2 or self.d_rope % 2:
            raise ValueError(f"d_rope={self.d_rope} must be even and at least 2")
        self.d_latent = 2 * self.d_head if d_latent == "auto" else d_latent
        at_least(1, d_latent=self.d_latent)
        self.is_rotary = positions == "rotary"
        self.q = nn.Linear(d_model, n_heads * (self.d_head + self.d_rope), bias=False)
        self.down = nn.Linear(d_model, self.d_latent + self.d_rope, bias=False)
        self.latent_norm = RMSNorm(self.d_latent)
        bound = self.d_latent**-0.5
        self.key_up = nn.Parameter(torch.empty(n_heads, self.d_head, self.d_latent).uniform_(-bound, bound))
        self.value_up = nn.Parameter(torch.empty(n_heads, self.d_latent, self.d_head).uniform_(-bound, bound))
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.register_buffer("slopes", alibi_slopes(n_heads) if positions == "alibi" else None, persistent=False)
        self.slopes: Tensor | None
        self.choose(kernel, self._kernels())

    def _kernels(self) -> dict[str, str | None]:
        width, device = self.d_head + self.d_rope, self.out.weight.device
        has_slopes = self.slopes is not None
        return attention.sdpa_obstacles(
            attention.Heads(device, self.cache_dtype(), self.n_heads, self.n_heads, width, has_slopes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._attend(self._queries(x), self._latents(x))

    def _queries(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """Compute queries (B, H, T, K + R), the last R entries rotated."""
        q = self.q(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        return self._rotated(q, self.d_head, position)

    def _latents(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """Compute (B, T, C + R), the stored vector of each position."""
        c, r = self.down(x).split((self.d_latent, self.d_rope), dim=-1)
        latents = torch.cat((self.latent_norm(c), r), dim=-1)
        return self._rotated(latents[:, None], self.d_latent, position)[:, 0]

    def _rotated(self, x: Tensor, start: int, position: Tensor | None) -> Tensor:
        """Rotate the entries of x from `start` on by positions 0 ... T-1, or by the position of a single token."""
        if not self.is_rotary:
            return x
        still, turned = x[..., :start], x[..., start:]
        T, R = turned.shape[-2:]
        sines = first_waves(T, R, x.device) if position is None else waves(position[None], R)
        return torch.cat((still, rotate(turned, sines)), dim=-1)

    def _attend(self, q: Tensor, latents: Tensor) -> Tensor:
        c, r = latents.split((self.d_latent, self.d_rope), dim=-1)
        k, v = (
            F.linear(c, up.flatten(0, 1)).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for up in (self.key_up, self.value_up.mT)
        )
        k = torch.cat((k, r[:, None].expand(-1, self.n_heads, -1, -1)), dim=-1)
        if self.kernel != "reference":
            v = F.pad(v, (0, self.d_rope))  # few kernels take values of another width than keys
        y = attention.KERNELS[self.kernel](q, k, v, self.slopes)[..., : self.d_head]
        return self.out(y.transpose(1, 2).flatten(2))

    def flops_per_token(self, seq_len: int) -> float:
        """Count the projections, and 2 H (2 K + R) per visible pair of positions."""
        weights = count_flops(self.q.weight, self.down.weight, self.key_up, self.value_up, self.out.weight)
        return weights + self.n_heads * (2 * self.d_head + self.d_rope) * (seq_len + 1)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (latents (B, max_len, C + R), position), in the activations' dtype."""
        device, width = self.out.weight.device, self.d_latent + self.d_rope
        latents = torch.zeros(batch_size, max_len, width, device=device, dtype=self.cache_dtype())
        return latents, torch.tensor(position, device=device)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        cache, position = state
        latents = self._latents(x)
        cache[:, : x.shape[1]] = latents.to(cache.dtype)
        return self._attend(self._queries(x), latents), (cache, position + x.shape[1])

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        cache, position = state
        x_t = x_t[:, None]
        cache.index_copy_(1, position[None], self._latents(x_t, position).to(cache.dtype))
        content, turned = self._queries(x_t, position)[:, :, 0].split((self.d_head, self.d_rope), dim=-1)  # (B, H, .)
        into = torch.matmul(content.transpose(0, 1), self.key_up).transpose(0, 1)  # (B, H, C)
        q = torch.cat((into, turned), dim=-1).to(cache.dtype)[:, None]  # all heads query the same latents
        keys, scale = cache[:, None], (self.d_head + self.d_rope) ** -0.5
        bias = self._bias(position, cache.shape[1])
        y = F.scaled_dot_product_attention(q, keys, keys[..., : self.d_latent], attn_mask=bias.to(q), scale=scale)
        y = torch.matmul(y[:, 0].transpose(0, 1).to(x_t.dtype), self.value_up).transpose(0, 1)  # (B, H, K)
        return self.out(y.flatten(1)), (cache, position + 1)

    def _bias(self, position: Tensor, size: int) -> Tensor:
        """Return the bias (1, size) or (H, size) of the scores of the token at `position`."""
        distance = position - torch.arange(size, device=position.device)
        bias = attention.attention_bias(distance[None], position + 1, self.slopes)
        if self.slopes is not None:
            return bias[:, 0]
        return torch.zeros_like(distance, dtype=torch.float32)[None].masked_fill(~bias, float("-inf"))
