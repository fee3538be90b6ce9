"""The one network around every mixer: embedding -> blocks -> norm -> head, in parallel and step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import Mixer, State, count_bytes, count_flops
from arch_bench.ops.causal_conv import causal_conv, causal_conv_step, causal_window
from arch_bench.positions import RELATIVE, Positions, absolute_positions

TRAIN_PER_FORWARD = 3
"""FLOPs of a training step over those of its forward pass: every product has two more in the backward pass, one for
the gradient of each factor. Recomputed activations and the optimiser do not count."""


class ShortConvolution(nn.Module):
    """A depthwise causal convolution over the last `width` positions, added to its input (zoology's Based, H3).

    It lets a block see the previous tokens, which recall needs; a dial, so that no family has it quietly.
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


class MLP(nn.Module):
    """The channel mixer: two linear maps with a GELU between, per position."""

    def __init__(self, d_model: int, ratio: float) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, int(ratio * d_model))
        self.down = nn.Linear(int(ratio * d_model), d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Pre-norm residual block: x + mixer(conv(norm x)), then x + mlp(norm x); both extras are dials."""

    def __init__(self, mixer: Mixer, *, d_model: int, mlp_ratio: float, d_conv: int, dropout: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = nn.LayerNorm(d_model)
        self.conv = ShortConvolution(d_model, d_conv) if d_conv else None
        self.mlp = nn.Sequential(nn.LayerNorm(d_model), MLP(d_model, mlp_ratio)) if mlp_ratio else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return self._finish(x, self.mixer(self.conv(h) if self.conv else h))

    def flops_per_token(self, seq_len: int) -> float:
        """As `Mixer.flops_per_token`; outside the mixer, all that is no vector is multiplied with each token."""
        extras = [p for part in (self.conv, self.mlp) if part for p in part.parameters() if p.dim() > 1]
        return self.mixer.flops_per_token(seq_len) + count_flops(*extras)

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(x)) if self.mlp else x

    def init_state(self, batch_size: int, max_len: int, position: int) -> State:
        conv = self.conv.init_state(batch_size) if self.conv else ()
        return self.mixer.init_state(batch_size, max_len, position), conv

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        mixer_state, conv_state = state
        h = self.norm(x)
        if self.conv:
            h, conv_state = self.conv.prefill(h)
        y, mixer_state = self.mixer.prefill(h, mixer_state)
        return self._finish(x, y), (mixer_state, conv_state)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        mixer_state, conv_state = state
        h = self.norm(x_t)
        if self.conv:
            h, conv_state = self.conv.step(h, conv_state)
        y, mixer_state = self.mixer.step(h, mixer_state)
        return self._finish(x_t, y), (mixer_state, conv_state)


class Backbone(nn.Module):
    """A causal sequence model over tokens, the same around every mixer.

    Args:
        vocab_size: tokens the task speaks.
        d_model: width of the residual stream.
        n_layers: blocks.
        max_len: length of a learned position table; the other positions ignore it.
        mixer: builds one sequence mixer when called with d_model.
        positions: none | learned | sinusoidal (added to the embedding) | rotary | alibi (inside attention).
        mlp_ratio: hidden width of the MLP over d_model; 0 leaves the MLP out.
        d_conv: width of the short convolution in front of the mixer; 0 leaves it out.
        dropout: on embeddings and on what each half of a block adds.
        tie_embeddings: the head shares the embedding's matrix.

    Raises:
        ValueError: the mixer does not fit the width, or cannot apply the positions.
        Unsupported: the kernel asked for cannot run here.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        max_len: int,
        mixer: Callable[..., Mixer],
        positions: Positions,
        mlp_ratio: float,
        d_conv: int,
        dropout: float,
        tie_embeddings: bool,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = absolute_positions(positions, max_len, d_model)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                _build_mixer(mixer, d_model, positions),
                d_model=d_model,
                mlp_ratio=mlp_ratio,
                d_conv=d_conv,
                dropout=dropout,
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        if tie_embeddings:
            self.head.weight = self.embedding.weight

    @property
    def _stack(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    @property
    def mixer(self) -> Mixer:
        """That of the first block."""
        return self._stack[0].mixer

    @property
    def kernel(self) -> str:
        """The implementations that run, as the mixers report them."""
        return "+".join(dict.fromkeys(block.mixer.kernel for block in self._stack))

    @property
    def step_kernel(self) -> str:
        """The same for `step`."""
        return "+".join(dict.fromkeys(block.mixer.step_kernel for block in self._stack))

    def n_params(self) -> int:
        """Trained numbers; a tied matrix counts once."""
        return sum(p.numel() for p in self.parameters())

    def state_bytes(self, max_len: int) -> int:
        """Bytes that decoding one sequence of up to `max_len` tokens carries, counted from the tensors."""
        return count_bytes(self.init_state(1, max_len))

    def flops_per_token(self, seq_len: int, n_scored: float) -> float:
        """Floating-point operations of the forward pass per token, averaged over a sequence of `seq_len` tokens.

        Counted are blocks as in `Mixer.flops_per_token`, and the head at the `n_scored` positions of a sequence, or
        their mean over sequences. Look-ups (embedding, positions), norms and activations are free.
        Training takes TRAIN_PER_FORWARD times as many.
        """
        blocks = sum(block.flops_per_token(seq_len) for block in self._stack)
        return blocks + count_flops(self.head.weight) * n_scored / seq_len

    def elementwise_flops_per_token(self, seq_len: int) -> float:
        """Those of the mixers that are no matrix products, apart from the rest."""
        return sum(block.mixer.elementwise_flops_per_token(seq_len) for block in self._stack)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, seq_len) token ids -> (batch, seq_len, d_model), ready for `head`."""
        x = self._embed(tokens, torch.arange(tokens.shape[1], device=tokens.device))
        for block in self._stack:
            x = block(x)
        return self.norm(x)

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.positions is not None:
            self.positions.check(len(positions))
            x = x + self.positions(positions)
        return self.dropout(x)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """(position, one state per block) for sequences of up to `max_len` tokens."""
        if self.positions is not None:
            self.positions.check(max_len)
        states = [block.init_state(batch_size, max_len, position) for block in self._stack]
        return torch.tensor(position, device=self.embedding.weight.device), *states

    def prefill(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """A prompt (batch, seq_len) into an empty state -> logits of the last position (batch, vocab_size), state."""
        position, *states = state
        x = self._embed(tokens, torch.arange(tokens.shape[1], device=tokens.device))
        for i, block in enumerate(self._stack):
            x, states[i] = block.prefill(x, states[i])
        return self.head(self.norm(x[:, -1])), (position + tokens.shape[1], *states)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """One token (batch,) -> logits (batch, vocab_size), state."""
        position, *states = state
        x = self._embed(token, position[None])
        for i, block in enumerate(self._stack):
            x, states[i] = block.step(x, states[i])
        return self.head(self.norm(x)), (position + 1, *states)


def _build_mixer(mixer: Callable[..., Mixer], d_model: int, positions: Positions) -> Mixer:
    built = mixer(d_model=d_model)
    if positions in RELATIVE and not built.takes_relative_positions:
        raise ValueError(f"positions={positions} works inside attention only; choose none, learned or sinusoidal")
    return built
