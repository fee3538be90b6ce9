"""A model that decodes token by token from one state: kernel by kernel, or as the replay of one CUDA graph."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from arch_bench.backbone import Backbone
from arch_bench.graph import capture
from arch_bench.mixers.base import State, tensors


class Decoder(Protocol):
    def restart(self) -> None:
        """Go back to the state it was given."""

    def __call__(self, token: Tensor) -> Tensor:
        """One token (batch,) for every sequence -> logits (batch, vocab_size), valid until the next call."""


class EagerDecoder:
    """Every operation is launched by itself."""

    def __init__(self, backbone: Backbone, state: State) -> None:
        self._backbone = backbone
        self._start = self._state = state

    def restart(self) -> None:
        self._state = self._start

    def __call__(self, token: Tensor) -> Tensor:
        logits, self._state = self._backbone.step(token, self._state)
        return logits


class GraphDecoder:
    """One launch a token. The graph reads and writes the tensors of the state it was given.

    Raises RuntimeError when the step cannot be captured; the state is spoilt then.
    """

    def __init__(self, backbone: Backbone, state: State, token: Tensor) -> None:
        self._backbone = backbone
        self._state = state
        self._token = token.clone()
        self._logits = torch.empty(0)
        _, after = backbone.step(token, state)
        pairs = zip(tensors(state), tensors(after), strict=True)
        self._moving = [i for i, (old, new) in enumerate(pairs) if old.data_ptr() != new.data_ptr()]
        leaves = list(tensors(state))
        self._start = {i: leaves[i].clone() for i in self._moving}  # a cache is written in place, and stays
        self._replay = capture(self._once)
        self.restart()

    def _once(self) -> None:
        self._logits, after = self._backbone.step(self._token, self._state)
        olds, news = list(tensors(self._state)), list(tensors(after))
        for i in self._moving:
            olds[i].copy_(news[i])

    def restart(self) -> None:
        leaves = list(tensors(self._state))
        for i, start in self._start.items():
            leaves[i].copy_(start)

    def __call__(self, token: Tensor) -> Tensor:
        self._token.copy_(token)
        self._replay()
        return self._logits
