"""Greedy generation: a model reads a prompt, then continues from its own tokens, one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from arch_bench.backbone import Backbone
from arch_bench.mixers.base import State, tensors
from arch_bench.runtime.decoder import Decoder, EagerDecoder, GraphDecoder
from arch_bench.train.step import Scored
from tasks.base import IGNORE


def is_right(backbone: Backbone, batch: Scored, n_prompt: int) -> Tensor:
    """Check each scored token against greedy generation: (batch, n_scored), False where there is no target.

    The model receives the first `n_prompt` tokens and, unlike under teacher forcing, never sees the right answer: it
    continues from its own mistakes. Raises Unsupported when the backbone does not decode.
    """
    n_tokens = batch.inputs.shape[1] - n_prompt + 1
    written = generate(backbone, batch.inputs[:, :n_prompt], n_tokens)
    positions = batch.positions
    if positions is None:
        positions = torch.arange(batch.targets.shape[1], device=written.device).expand_as(batch.targets)
    found = written.gather(1, (positions - (n_prompt - 1)).clamp(min=0))
    return (found == batch.targets) & (batch.targets != IGNORE)


@torch.no_grad()
def generate(backbone: Backbone, prompt: Tensor, n_tokens: int) -> Tensor:
    """Return the likeliest token after a prompt (batch, n_prompt), then the likeliest after that: (batch, n_tokens).

    On CUDA each step replays one graph, if the backbone can be captured. Raises Unsupported.
    """
    state = backbone.init_state(len(prompt), prompt.shape[1] + n_tokens - 1)  # the last token is never an input
    logits, state = backbone.prefill(prompt, state)
    written = [logits.argmax(-1)]
    decode = _decoder(backbone, state, written[0])
    while len(written) < n_tokens:
        written.append(decode(written[-1]).argmax(-1))
    return torch.stack(written, 1)


def _decoder(backbone: Backbone, state: State, token: Tensor) -> Decoder:
    if not token.is_cuda:
        return EagerDecoder(backbone, state)
    before = [leaf.clone() for leaf in tensors(state)]
    try:
        graph = GraphDecoder(backbone, state, token)
    except RuntimeError:
        return EagerDecoder(backbone, state)
    finally:
        for leaf, value in zip(tensors(state), before, strict=True):  # capturing wrote to the state
            leaf.copy_(value)
    return graph
