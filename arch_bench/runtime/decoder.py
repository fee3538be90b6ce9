"""Token-by-token decoding: kernel by kernel, or as the replay of one CUDA graph.

Caches and recurrent states may be written in place. `restart` therefore resets only the position, so that no cache
overflows: the cost of a token does not depend on the other contents.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from arch_bench.backbone import Backbone
from arch_bench.mixers.base import State, tensors
from arch_bench.runtime.cuda_graph import capture


class Decoder(Protocol):
    def restart(self) -> None:
        """Reset the position to that of the initial state."""

    def __call__(self, token: Tensor) -> Tensor:
        """Map one token (batch,) per sequence to logits (batch, vocab_size), valid until the next call."""


class EagerDecoder:
    """A decoder that launches every operation separately."""

    def __init__(self, backbone: Backbone, state: State) -> None:
        self._backbone = backbone
        self._start = self._state = state

    def restart(self) -> None:
        self._state = self._start

    def __call__(self, token: Tensor) -> Tensor:
        logits, self._state = self._backbone.step(token, self._state)
        return logits


class GraphDecoder:
    """A decoder with one launch per token. Its graph reads and writes the tensors of `state`.

    Raises RuntimeError when the step cannot be captured.
    """

    def __init__(self, backbone: Backbone, state: State, token: Tensor) -> None:
        self.state = state
        self._backbone = backbone
        self._token = token.clone()
        self._logits = torch.empty(0)
        positions = [leaf for leaf in tensors(state) if not leaf.is_floating_point()]
        self._start = [(position, position.clone()) for position in positions]
        self._replay = capture(self._once)
        self.restart()

    def _once(self) -> None:
        self._logits, after = self._backbone.step(self._token, self.state)
        for old, new in zip(tensors(self.state), tensors(after), strict=True):
            if old.data_ptr() != new.data_ptr():  # else the step wrote in place
                old.copy_(new)

    def restart(self) -> None:
        for position, start in self._start:
            position.copy_(start)

    def __call__(self, token: Tensor) -> Tensor:
        self._token.copy_(token)
        self._replay()
        return self._logits
