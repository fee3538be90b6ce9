"""The encoder-decoder network: an encoder reads the whole source, which a causal decoder attends to at each step."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Protocol, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.backbone import Backbone
from arch_bench.block import Block, BlockDials
from arch_bench.mixers.base import Card, Mixer, State
from arch_bench.positions import Positions


class CrossMixer(Protocol):
    """Additional interface of a `Mixer` that attends to a source: `forward(x, source)`; its state is the encoded
    source."""

    def read(self, source: Tensor) -> tuple[Tensor, ...]:
        """Map (batch, n_source, d_model) to the state's tensors, each (batch, n_heads, n_source, width)."""

    def flops_per_source_token(self) -> float:
        """Return the FLOPs of `read`; `flops_per_token(n_source)` counts those of one token that attends."""

    def reading(self) -> list[nn.Parameter]:
        """Return the weights of `read`, which decoded tokens do not use."""


class LayerMixers(Protocol):
    """Builder of the mixers of one layer in both halves."""

    def encoder(self, *, d_model: int) -> Mixer: ...

    def decoder(self, *, d_model: int) -> Mixer: ...

    def cross(self, *, d_model: int) -> Mixer:
        """Build a mixer that is also a `CrossMixer`."""


class EncoderDecoder(Backbone):
    """The Transformer of Vaswani et al. 2017, figure 1: n_layers of the encoder beside n_layers of the decoder.

        source:  x = block(x), later positions visible too
        target:  x = block(x) without an MLP, causally; then x = block(x, source), which attends to the encoder's last x

    A decoder layer is thus two of our blocks, whose three residual sums and norms are those of the paper. Both halves
    count positions from 0 and share one embedding. Unlike the paper, but as in all our blocks: GELU, and linear maps of
    attention without biases.

    Word embeddings start with a standard deviation of 1 beside the waves, as in the paper. Within 400 steps of 64
    examples at 1e-3 (d_model=64, 32 tokens) the model solves copying and reversal with either norm_at. Recall is
    harder, because the encoder has to bring each key to its value before the decoder can attend to it: MQAR with 4
    pairs and d_conv=4 takes 700 steps with norm_at=pre; with norm_at=post, 3,000 steps at a constant rate did not get
    beyond guessing among the values.

    State: keys and values of all positions, those of the source for cross attention, those of the target for
    self-attention: as many numbers as for a decoder of the same depth.

    Args:
        mixer: builds the three mixers of a layer.
        n_source: maps a sequence length to its number of leading source positions. At lengths too short for an example
            of the task, each half still gets a position, the source first.
        others: as in `Backbone`, with pattern null; d_conv applies to self-attention only.

    Raises as `Backbone`.
    """

    card = Card("attention", "2 T d n_kv_heads / n_heads", "(T + n_source^2 / T) d", "T d", "Vaswani et al. 2017")
    is_causal = True

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        max_len: int,
        mixer: LayerMixers,
        pattern: None,
        positions: Positions,
        tie_embeddings: bool,
        n_source: Callable[[int], int],
        **dials: Unpack[BlockDials],
    ) -> None:
        n = _at_most(n_source(max_len), max_len)
        super().__init__(
            vocab_size=vocab_size,
            d_model=d_model,
            n_layers=n_layers,
            max_len=max(n, max_len - n),  # of each half; else training would not reach a table's last rows
            mixer=mixer.encoder,
            pattern=pattern,
            positions=positions,
            tie_embeddings=tie_embeddings,
            **dials,
        )
        self.source_norm = deepcopy(self.norm)
        for _ in range(n_layers):
            self.blocks.append(Block(mixer.decoder(d_model=d_model), d_model=d_model, **dials | {"mlp": "none"}))
            self.blocks.append(Block(mixer.cross(d_model=d_model), d_model=d_model, **dials | {"d_conv": 0}))
        self._n_layers = n_layers
        self._n_source = n_source

    @property
    def _encoder(self) -> list[Block]:
        return self._stack[: self._n_layers]

    @property
    def _decoder(self) -> list[Block]:
        """The self-attention and cross attention blocks in turn."""
        return self._stack[self._n_layers :]

    def stepping(self) -> list[nn.Parameter]:
        reading = {id(weight) for _, cross in self._layers for weight in _reader(cross).reading()}
        met = nn.ModuleList([self.embedding_norm, *self._decoder, self.norm, self.head])
        return [weight for weight in met.parameters() if id(weight) not in reading]

    @property
    def _layers(self) -> list[tuple[Block, Block]]:
        """The pair of blocks in each layer of the decoder."""
        return [*zip(self._decoder[0::2], self._decoder[1::2], strict=True)]

    def n_source(self, seq_len: int) -> int:
        return _at_most(self._n_source(seq_len), seq_len)

    def _block_flops(self, seq_len: int) -> float:
        n_source = self.n_source(seq_len)
        n_target = seq_len - n_source
        total = n_source * sum(block.flops_per_token(n_source) for block in self._encoder)
        for own, cross in self._layers if n_target else ():
            total += n_source * _reader(cross).flops_per_source_token()
            total += n_target * (own.flops_per_token(n_target) + cross.flops_per_token(n_source))
        return total / seq_len

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, seq_len) token ids to (batch, seq_len, d_model), zeros at the source, which is never scored."""
        n_source = self.n_source(tokens.shape[1])
        source = self._encode(tokens[:, :n_source])
        if n_source == tokens.shape[1]:
            return torch.zeros_like(source)
        x = self._embed(tokens[:, n_source:])
        for own, cross in self._layers:
            x = cross(own(x), source)
        return F.pad(self.norm(x), (0, 0, n_source, 0))

    def _encode(self, source: Tensor) -> Tensor:
        x = self._embed(source)
        for block in self._encoder:
            x = block(x)
        return self.source_norm(x)

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        """Return (position, one state per block of the decoder); `max_len` determines the length of the source.

        Raises ValueError for a position inside the source.
        """
        n_source = self.n_source(max_len)
        n_target = max_len - n_source
        if 0 < position < n_source:
            raise ValueError(f"position={position} is inside the source: needs 0, or position >= {n_source}")
        if self.positions is not None:
            self.positions.check(max(n_source, n_target))
        states: list[State] = []
        for own, cross in self._layers:
            states.append(own.init_state(batch_size, n_target, max(0, position - n_source)))
            states.append(cross.init_state(batch_size, n_source, position))
        return torch.tensor(position, device=self.embedding.weight.device), *states

    def prefill(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read a prompt as in `Backbone`. Raises ValueError for a prompt shorter than the source."""
        position, *states = state
        n_source = _source_len(state)
        if tokens.shape[1] < n_source:
            raise ValueError(f"a prompt of {tokens.shape[1]} tokens does not hold the source: needs {n_source} or more")
        source = self._encode(tokens[:, :n_source])
        for (_, cross), (kept, _) in zip(self._layers, states[1::2], strict=True):
            for old, new in zip(kept, _reader(cross).read(source), strict=True):
                old.copy_(new)
        read = position + n_source, *states
        if n_source == tokens.shape[1]:
            return self.head(torch.zeros_like(source[:, -1])), read
        return super().prefill(tokens[:, n_source:], read)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """Decode a token as in `Backbone`, after a prompt."""
        position, *states = state
        n_source = _source_len(state)
        logits, (position, *states) = super().step(token, (position - n_source, *states))
        return logits, (position + n_source, *states)


def _at_most(n_source: int, seq_len: int) -> int:
    """Clamp the source's length so that each half has a token, the source first."""
    return max(1, min(n_source, seq_len - 1))


def _reader(block: Block) -> CrossMixer:
    return cast("CrossMixer", block.mixer)


def _source_len(state: State) -> int:
    """Return the source's length, read from the keys of the first layer's cross attention."""
    _, _, ((keys, *_), _), *_ = state
    n_source: int = keys.shape[2]
    return n_source
