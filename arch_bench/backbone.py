"""The network around every mixer: embedding -> blocks -> norm -> head, in parallel and step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack, cast

import torch
from torch import Tensor, nn

from arch_bench.block import Block, BlockDials
from arch_bench.mixers.base import Card, Mixer, State, count_bytes, count_flops
from arch_bench.norm import make_norm
from arch_bench.positions import RELATIVE, Positions, SinusoidalPositions, absolute_positions

TRAIN_PER_FORWARD = 3
"""Ratio of a training step's FLOPs to its forward pass's: each product has two more in the backward pass, one for the
gradient of each factor. Recomputed activations and the optimiser do not count."""


class Backbone(nn.Module):
    """A sequence model over tokens, the same around every mixer: a decoder, or an encoder if a mixer is not causal.

    Args:
        vocab_size: number of tokens in the task's vocabulary.
        d_model: width of the residual stream.
        n_layers: number of blocks.
        max_len: length of a learned position table; the other positions ignore it.
        mixer: builds one sequence mixer when called with d_model; with a pattern, a mapping from names to such
            builders.
        pattern: names of mixers, which the blocks use in turn.
        positions: none | learned | sinusoidal (added to the embedding) | rotary | alibi (inside attention).
        tie_embeddings: the head shares the embedding's matrix.
        dials: the arguments of `Block`; norm_at=pre adds a final norm, norm_at=post an initial one, as in BERT, unless
            sinusoidal positions scale the embeddings. Dropout also applies to the embeddings.

    Raises:
        ValueError: the mixer does not fit the width, or cannot apply the positions; the pattern is longer than
            n_layers.
        Unsupported: the requested kernel cannot run here.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        max_len: int,
        mixer: Callable[..., Mixer] | dict[str, Callable[..., Mixer]],
        pattern: list[str] | None,
        positions: Positions,
        tie_embeddings: bool,
        **dials: Unpack[BlockDials],
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = absolute_positions(positions, max_len, d_model)
        is_scaled = isinstance(self.positions, SinusoidalPositions)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5 if is_scaled else 0.02)
        needs_norm = dials["norm_at"] == "post" and not is_scaled
        self.embedding_norm = make_norm(dials["norm"], d_model) if needs_norm else nn.Identity()
        self.dropout = nn.Dropout(dials["dropout"])
        mixers = [mixer[name] for name in pattern or ()] if isinstance(mixer, dict) else [mixer]
        if not 1 <= len(mixers) <= n_layers:
            raise ValueError(
                f"backbone.pattern has {len(mixers)} mixers for n_layers={n_layers}: "
                f"needs n_layers >= {max(1, len(mixers))}, or a pattern of 1 to {n_layers}"
            )
        self.blocks = nn.ModuleList(
            Block(mixers[i % len(mixers)](d_model=d_model), d_model=d_model, **dials) for i in range(n_layers)
        )
        if positions in RELATIVE and not any(block.mixer.takes_relative_positions for block in self._stack):
            raise ValueError(f"positions={positions} works inside attention only; choose none, learned or sinusoidal")
        if dials["norm_at"] == "pre" and any(block.mixer.damps_with_depth for block in self._stack):
            self._damp()
        self.norm = make_norm(dials["norm"], d_model) if dials["norm_at"] == "pre" else nn.Identity()
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        if tie_embeddings:
            self.head.weight = self.embedding.weight

    def _damp(self) -> None:
        """Divide the blocks' additions to the residual stream by the square root of the number of sums (GPT-2's rule).

        mamba_ssm and Samba's code do so in every layer, MLPs and attention included, and initialise biases to zero.
        Neither has a rule for a post-norm, after which sums do not grow with depth. Jamba's training code is not
        public; here it follows Mamba.
        """
        factor = sum(block.n_sums for block in self._stack) ** -0.5
        for block in self._stack:
            block.damp(factor)

    @property
    def _stack(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    @property
    def _decoder(self) -> list[Block]:
        """The blocks that a token passes through when it is decoded."""
        return self._stack

    @property
    def mixer(self) -> Mixer:
        """The mixer of the first block."""
        return self._stack[0].mixer

    @property
    def card(self) -> Card | None:
        """The entry in the table of backbones."""
        return self.mixer.card

    @property
    def kernel(self) -> str:
        """The implementations that run, as the mixers report them."""
        return "+".join(dict.fromkeys(block.mixer.kernel for block in self._stack))

    @property
    def step_kernel(self) -> str:
        """The implementations that run in `step`, as the mixers report them."""
        return "+".join(dict.fromkeys(block.mixer.step_kernel for block in self._stack))

    @property
    def is_causal(self) -> bool:
        """True if no position sees a later one, as a decoder requires."""
        return all(block.mixer.is_causal for block in self._stack)

    def stepping(self) -> list[nn.Parameter]:
        """Return the weights used to decode a token after its embedding; of the embedding tables a step reads one row
        only."""
        return [*nn.ModuleList([self.embedding_norm, *self.blocks, self.norm, self.head]).parameters()]

    @property
    def keeps_precision(self) -> bool:
        """True if a mixer computes in its weights' precision even under autocast."""
        return any(block.mixer.keeps_precision for block in self._stack)

    @property
    def reads_whole_state(self) -> bool:
        """True if each step reads all of its state."""
        return all(block.mixer.reads_whole_state for block in self._stack)

    @property
    def counts_all_flops(self) -> bool:
        """True if `flops_per_token` counts all of the mixers' operations."""
        return all(block.mixer.counts_all_flops for block in self._stack)

    @property
    def picks_by_score(self) -> bool:
        """True if a mixer selects the visible positions by comparing scores."""
        return any(block.mixer.picks_by_score for block in self._stack)

    @property
    def has_reference(self) -> bool:
        """True if every mixer has a readable reference version to compare with."""
        return all("reference" in block.mixer.kernels for block in self._stack)

    def n_source(self, seq_len: int) -> int:
        """Return the number of leading positions, of `seq_len`, that form an encoder's source: given whole, without
        output.

        Decoding starts after them, and `forward` returns zeros there.
        """
        return 0

    def n_params(self) -> int:
        """Return the number of trained parameters; a tied matrix counts once."""
        return sum(p.numel() for p in self.parameters())

    def state_bytes(self, max_len: int) -> int:
        """Return the bytes of state for decoding one sequence of up to `max_len` tokens, counted from the tensors."""
        return count_bytes(self.init_state(1, max_len))

    def flops_per_token(self, seq_len: int, n_scored: float) -> float:
        """Return the forward pass's floating-point operations per token, averaged over a sequence of `seq_len` tokens.

        The count includes blocks as in `Mixer.flops_per_token`, and the head at the `n_scored` positions of a sequence,
        or their mean over sequences. Look-ups (embedding, positions), norms and activations are free. Training takes
        TRAIN_PER_FORWARD times as many.
        """
        return self._block_flops(seq_len) + count_flops(self.head.weight) * n_scored / seq_len

    def _block_flops(self, seq_len: int) -> float:
        return sum(block.flops_per_token(seq_len) for block in self._stack)

    def elementwise_flops_per_token(self, seq_len: int) -> float:
        """Return the mixers' operations outside matrix products, counted separately from `flops_per_token`."""
        return sum(block.mixer.elementwise_flops_per_token(seq_len) for block in self._stack)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, seq_len) token ids to (batch, seq_len, d_model), ready for `head`."""
        x = self._embed(tokens)
        for block in self._stack:
            x = block(x)
        return self.norm(x)

    def _embed(self, tokens: Tensor, position: Tensor | None = None) -> Tensor:
        """Embed tokens. position: that of the single token of each sequence; None for sequences from their start."""
        x = self.embedding(tokens)
        if isinstance(self.positions, SinusoidalPositions):
            # Vaswani et al. 2017, section 3.4; tables start at d_model^-1/2, so that words have the waves' size
            x = x * x.shape[-1] ** 0.5
        if self.positions is not None:
            positions = torch.arange(tokens.shape[1], device=x.device) if position is None else position[None]
            self.positions.check(len(positions))
            x = x + self.positions(positions)
        return self.dropout(self.embedding_norm(x))

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (position, one state per block) for sequences of up to `max_len` tokens."""
        if self.positions is not None:
            self.positions.check(max_len)
        states = [block.init_state(batch_size, max_len, position) for block in self._stack]
        return torch.tensor(position, device=self.embedding.weight.device), *states

    def prefill(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read a prompt (batch, seq_len) into an empty state; return logits of the last position (batch, vocab_size),
        state."""
        position, *states = state
        x = self._embed(tokens)
        for i, block in enumerate(self._decoder):
            x, states[i] = block.prefill(x, states[i])
        return self.head(self.norm(x[:, -1])), (position + tokens.shape[1], *states)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """Map one token (batch,) to logits (batch, vocab_size), state."""
        position, *states = state
        x = self._embed(token, position)
        for i, block in enumerate(self._decoder):
            x, states[i] = block.step(x, states[i])
        return self.head(self.norm(x)), (position + 1, *states)
