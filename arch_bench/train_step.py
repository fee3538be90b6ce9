"""One optimiser step: the loss on scored positions, parameter groups, AdamW, and the schedule of its rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.config import Optim
from tasks.base import IGNORE, Batch

Forward = Callable[[Tensor], Tensor]
"""(batch, seq_len) tokens -> (batch, seq_len, d_model)."""


def scored_logits(forward: Forward, head: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits and targets at the scored positions only, (n_scored, vocab_size) and (n_scored,).

    Gathering before the head is what keeps a vocabulary of 8,192 affordable when 1 position in 8 is scored.
    """
    is_scored = batch.targets != IGNORE
    return head(forward(batch.inputs)[is_scored]), batch.targets[is_scored]


def masked_loss(forward: Forward, head: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the scored positions, in nats."""
    logits, targets = scored_logits(forward, head, batch)
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def make_optimizer(model: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW that decays matrices only: norms, biases, embeddings and what a mixer flagged are left alone."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        is_exempt = getattr(parameter, "_no_weight_decay", False) or id(parameter) in embeddings
        groups[parameter.dim() >= 2 and not is_exempt].append(parameter)
    decayed = {"params": groups[True], "weight_decay": optim.weight_decay}
    exempt = {"params": groups[False], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, exempt], lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), fused=True)


def rate_factor(step: int, max_steps: int, optim: Optim) -> float:
    """What the peak rate is multiplied with at a step: linear warm-up, then the schedule.

    `cosine` falls to a tenth at `max_steps` (Loshchilov & Hutter 2017); `inverse_sqrt` is Vaswani et al. 2017,
    equation 3, scaled to meet the peak at the end of the warm-up.
    """
    n_warmup = max(1, round(optim.warmup * max_steps)) if optim.warmup else 0
    if step < n_warmup:
        return (step + 1) / n_warmup
    match optim.schedule:
        case "cosine":
            progress = min(1.0, (step - n_warmup) / max(1, max_steps - n_warmup))
            return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        case "inverse_sqrt":
            return math.sqrt(max(1, n_warmup) / (step + 1))
        case _:
            return 1.0
