"""The block around every mixer: norms, short convolution and MLP, each a setting shared by all mixers."""

from __future__ import annotations

from typing import Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Mixer, State, count_flops
from arch_bench.norm import Norm, make_norm
from arch_bench.ops.causal_conv import causal_conv, causal_conv_step, causal_window

NormAt = Literal["pre", "post"]
ChannelMixer = Literal["gelu", "swiglu", "none"]


class ShortConvolution(nn.Module):
    """A depthwise causal convolution over the last `width` positions, added to its input (zoology's Based, H3).

    It lets a block see the previous tokens, which recall needs. It is a setting, so that no family has it silently.
    """

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model, 1, width).uniform_(-1, 1) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + causal_conv(x, self.weight)

    def init_state(self, batch_size: int) -> State:
        d_model, _, width = self.weight.shape
        return (self.weight.new_zeros(batch_size, width - 1, d_model),)

    def prefill(self, x: Tensor) -> tuple[Tensor, State]:
        return self(x), (causal_window(x, self.weight.shape[-1]),)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        y_t, window = causal_conv_step(x_t, state[0], self.weight)
        return x_t + y_t, (window,)


class GELU(nn.Module):
    """Two linear maps with a GELU between, per position (Vaswani et al. 2017, equation 2; GELU as in GPT)."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden)
        self.down = nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), without biases (Shazeer 2020, equation 6): 3 matrices where GELU has 2."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


RESIDUAL_WEIGHTS = frozenset({"mixer.out.weight", "mixer.out_proj.weight", "mlp.down.weight"})
"""The last linear map of each half, by the names that all mixers use."""
CHANNEL_MIXERS = {"gelu": GELU, "swiglu": SwiGLU}


class BlockDials(TypedDict):
    """Settings of every block of a backbone, documented in `Block`."""

    norm: Norm
    norm_at: NormAt
    mlp: ChannelMixer
    mlp_ratio: float
    d_conv: int
    dropout: float


class Block(nn.Module):
    """A residual block: a sequence mixer, then a channel mixer.

        pre:   x = x + mixer(conv(norm x));   x = x + mlp(norm x)        (Xiong et al. 2020)
        post:  x = norm(x + mixer(conv x));   x = norm(x + mlp x)        (Vaswani et al. 2017)

    Args:
        mixer: of the width d_model.
        norm: layer | rms.
        norm_at: pre | post.
        mlp: gelu | swiglu | none.
        mlp_ratio: hidden width of the MLP over d_model.
        d_conv: width of the short convolution; 0 leaves it out.
        dropout: on what each half adds.

    Raises ValueError for an MLP without a hidden unit, and a convolution of negative width.
    """

    def __init__(
        self,
        mixer: Mixer,
        *,
        d_model: int,
        norm: Norm,
        norm_at: NormAt,
        mlp: ChannelMixer,
        mlp_ratio: float,
        d_conv: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if mlp != "none" and mlp_ratio * d_model < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} leaves the MLP no hidden unit; mlp=none leaves out the MLP")
        if d_conv < 0:
            raise ValueError(f"d_conv={d_conv}: needs 0 (none) or more")
        self.mixer = mixer
        self.is_pre = norm_at == "pre"
        self.norm = make_norm(norm, d_model)
        self.conv = ShortConvolution(d_model, d_conv) if d_conv else None
        self.mlp = None if mlp == "none" else CHANNEL_MIXERS[mlp](d_model, int(mlp_ratio * d_model))
        self.mlp_norm = make_norm(norm, d_model) if self.mlp else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        """Apply the block. given: additional inputs of the mixer, such as the source of cross attention."""
        h = self._enter(x)
        return self._finish(x, self.mixer(self.conv(h) if self.conv else h, *given))

    def flops_per_token(self, seq_len: int) -> float:
        """Return the FLOPs as `Mixer.flops_per_token`; outside the mixer, each parameter except vectors multiplies each
        token."""
        extras = [p for part in (self.conv, self.mlp) if part for p in part.parameters() if p.dim() > 1]
        return self.mixer.flops_per_token(seq_len) + count_flops(*extras)

    @property
    def n_sums(self) -> int:
        """Number of additions to the residual stream."""
        return 1 if self.mlp is None else 2

    @torch.no_grad()
    def damp(self, factor: float) -> None:
        """Multiply the weights whose products are added to the residual stream, and set an MLP's biases to zero."""
        for name, weight in self.named_parameters():
            if name in RESIDUAL_WEIGHTS:
                weight.mul_(factor)
            elif name.startswith("mlp.") and name.endswith(".bias"):
                weight.zero_()

    def _enter(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.is_pre else x

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        x = self._add(x, y, self.norm)
        if self.mlp is None or self.mlp_norm is None:
            return x
        return self._add(x, self.mlp(self.mlp_norm(x) if self.is_pre else x), self.mlp_norm)

    def _add(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        x = x + self.dropout(y)
        return x if self.is_pre else norm(x)

    def init_state(self, batch_size: int, max_len: int, position: int) -> State:
        """Return (the mixer's state, the convolution's state)."""
        conv = self.conv.init_state(batch_size) if self.conv else ()
        return self.mixer.init_state(batch_size, max_len, position), conv

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        mixer_state, conv_state = state
        h = self._enter(x)
        if self.conv:
            h, conv_state = self.conv.prefill(h)
        y, mixer_state = self.mixer.prefill(h, mixer_state)
        return self._finish(x, y), (mixer_state, conv_state)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        mixer_state, conv_state = state
        h = self._enter(x_t)
        if self.conv:
            h, conv_state = self.conv.step(h, conv_state)
        y, mixer_state = self.mixer.step(h, mixer_state)
        return self._finish(x_t, y), (mixer_state, conv_state)
