"""AdamW with its parameter groups, and the learning rate schedule as a function of a step tensor."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from arch_bench.config.schema import Optim


def _is_news(record: logging.LogRecord) -> bool:
    """Drop a warning users cannot act on: compiling `AdamW.step` omits PyTorch's own profiler mark."""
    return not record.msg.startswith("Profiler")


for _name in ("torch._dynamo.variables.torch", "torch._dynamo.variables.ctx_manager"):
    logging.getLogger(_name).addFilter(_is_news)


def make_optimizer(model: nn.Module, optim: Optim, lr: Tensor) -> torch.optim.AdamW:
    """Build an AdamW that decays matrices only: norms, biases, embeddings and weights flagged by a mixer are exempt.

    lr: a scalar on the model's device that both groups read at every step, so a captured step sees it change.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        is_exempt = getattr(parameter, "_no_weight_decay", False) or id(parameter) in embeddings
        groups[parameter.dim() >= 2 and not is_exempt].append(parameter)
    decayed = {"params": groups[True], "weight_decay": optim.weight_decay}
    exempt = {"params": groups[False], "weight_decay": 0.0}
    betas = (optim.betas[0], optim.betas[1])
    return torch.optim.AdamW([decayed, exempt], lr=lr, betas=betas, fused=True, capturable=True)


def set_form(optimizer: torch.optim.AdamW, *, is_compiled: bool) -> None:
    """Select the fused kernel, or the form that torch.compile turns into kernels of its own.

    The fused kernel runs a tensor of half a million numbers on 8 of an H200's 132 multiprocessors.
    """
    for group in optimizer.param_groups:
        group |= {"fused": not is_compiled, "foreach": is_compiled, "capturable": True}


def rate_factor(step: Tensor, max_steps: int, optim: Optim) -> Tensor:
    """Return the factor on the peak rate at each `step`, counted from 0: linear warm-up, then the schedule.

    `cosine` falls to a tenth at `max_steps` (Loshchilov & Hutter 2017); `inverse_sqrt` is Vaswani et al. 2017,
    equation 3, scaled to meet the peak at the end of the warm-up.
    """
    n_warmup = max(1, round(optim.warmup * max_steps)) if optim.warmup else 0
    match optim.schedule:
        case "cosine":
            progress = ((step - n_warmup) / max(1, max_steps - n_warmup)).clamp(max=1.0)
            factor = 0.1 + 0.45 * (1 + torch.cos(math.pi * progress))
        case "inverse_sqrt":
            factor = torch.sqrt(max(1, n_warmup) / (step + 1))
        case _:
            factor = torch.ones_like(step, dtype=torch.float32)
    return torch.where(step < n_warmup, (step + 1) / n_warmup, factor) if n_warmup else factor
