"""The optimiser's recipe: what is decayed, how the rate moves, which positions count."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from arch_bench.config import CONF, Optim, build, cell_of, compose
from arch_bench.train_step import make_optimizer, masked_loss, rate_factor, scored_logits
from arch_bench.usage import options
from tasks.base import IGNORE, Batch

OPTIM = Optim(
    lr=0.1, weight_decay=0.5, betas=[0.9, 0.95], schedule="cosine", warmup=0.1, clip_norm=1.0, label_smoothing=0.0
)


def factor(step: int, schedule: str, warmup: float = 0.1) -> float:
    return rate_factor(step, 1000, OPTIM.model_copy(update={"schedule": schedule, "warmup": warmup}))


@pytest.mark.parametrize("schedule", ["cosine", "inverse_sqrt", "constant"])
def test_warm_up_is_linear_and_ends_at_the_peak(schedule: str) -> None:
    assert factor(0, schedule) == pytest.approx(0.01)
    assert factor(49, schedule) == pytest.approx(0.5)
    assert factor(99, schedule) == pytest.approx(1.0)
    assert factor(100, schedule) == pytest.approx(1.0, abs=0.01)


def test_schedules_after_the_warm_up() -> None:
    assert factor(550, "cosine") == pytest.approx(0.55)
    assert factor(1000, "cosine") == pytest.approx(0.1)
    assert factor(399, "inverse_sqrt") == pytest.approx(math.sqrt(100 / 400))
    assert factor(999, "constant") == 1.0
    assert factor(0, "constant", warmup=0.0) == 1.0


@pytest.mark.parametrize("name", options(CONF, "backbone"))
def test_only_matrices_decay(name: str) -> None:
    model = build(cell_of(compose([f"backbone={name}"])), "backbone", vocab_size=11)
    decayed, exempt = make_optimizer(model, OPTIM).param_groups
    names = {id(p): key for key, p in model.named_parameters()}
    assert len(decayed["params"]) + len(exempt["params"]) == len(names)
    assert decayed["weight_decay"] == 0.5
    assert exempt["weight_decay"] == 0.0
    assert all(p.dim() >= 2 for p in decayed["params"])
    kept = {names[id(p)] for p in exempt["params"]}
    assert {"embedding.weight", "norm.weight", "norm.bias"} <= kept
    assert not any(key.endswith(("A_log", ".D", "bias")) for key in map(names.get, map(id, decayed["params"])) if key)


def test_loss_counts_scored_positions_only() -> None:
    torch.manual_seed(0)
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5)
    inputs, targets = torch.randint(5, (3, 6)), torch.randint(5, (3, 6))
    targets[:, ::2] = IGNORE
    batch = Batch(inputs, targets)
    expected = F.cross_entropy(head(embedding(inputs)).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(masked_loss(embedding, head, batch), expected)
    logits, scored = scored_logits(embedding, head, batch)
    assert logits.shape == (9, 5)
    assert (scored == targets[targets != IGNORE]).all()


def test_label_smoothing_is_passed_on() -> None:
    torch.manual_seed(0)
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5)
    batch = Batch(torch.tensor([[1, 2]]), torch.tensor([[IGNORE, 3]]))
    expected = F.cross_entropy(head(embedding(torch.tensor([2]))), torch.tensor([3]), label_smoothing=0.2)
    torch.testing.assert_close(masked_loss(embedding, head, batch, label_smoothing=0.2), expected)
