"""arch_bench/train/generation.py: what a model writes by itself, and what of it counts as right."""

from __future__ import annotations

import pytest
import torch
from models import CORE
from torch import Tensor

from arch_bench.backbone import Backbone
from arch_bench.config.instantiate import build
from arch_bench.config.schema import cell_of, compose
from arch_bench.train.generation import generate, is_right
from arch_bench.train.step import list_scored
from tasks.base import IGNORE, Batch

VOCAB = 16


def model(name: str) -> Backbone:
    torch.manual_seed(0)
    made: Backbone = build(cell_of(compose([f"backbone={name}", "d_model=32"])), "backbone", vocab_size=VOCAB)
    torch.nn.init.normal_(made.head.weight)  # far from a tie between the likeliest tokens
    return made.eval()


def prompts() -> Tensor:
    return torch.randint(VOCAB, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CORE)
@torch.no_grad()
def test_each_token_is_the_likeliest_after_all_before(name: str) -> None:
    backbone, tokens = model(name), prompts()
    for _ in range(5):
        likeliest = backbone.head(backbone(tokens))[:, -1].argmax(-1)
        tokens = torch.cat((tokens, likeliest[:, None]), 1)
    assert torch.equal(generate(backbone, prompts(), 5), tokens[:, 7:])


def test_a_mistake_is_gone_on_from() -> None:
    """The right answer is what the model writes, but for one example, of which it is told nothing."""
    backbone = model("lstm")
    written = generate(backbone, prompts(), 4)
    inputs = torch.cat((prompts(), written[:, :-1]), 1)
    targets = torch.full_like(inputs, IGNORE)
    targets[:, 6:] = written
    targets[2, -1] = IGNORE  # a shorter answer
    inputs[1, 7] = targets[1, 6] = (written[1, 0] + 1) % VOCAB  # under teacher forcing the model would see this
    batch = list_scored(Batch(inputs, targets), 4)
    expected = torch.tensor([[True] * 4, [False, True, True, True], [True, True, True, False]])
    assert torch.equal(is_right(backbone, batch, 7), expected)


def test_a_learned_table_is_long_enough_for_its_own_examples() -> None:
    overrides = ["backbone=transformer", "backbone.positions=learned", "seq_len=12", "task.n_pairs=2", "d_model=32"]
    backbone = build(cell_of(compose(overrides)), "backbone", vocab_size=VOCAB).eval()
    assert generate(backbone, prompts(), 12 - 7 + 1).shape == (3, 6), "the last is written behind the last position"


def test_all_positions_may_be_scored() -> None:
    backbone = model("transformer")
    written = generate(backbone, prompts()[:, :1], 6)
    inputs = torch.cat((prompts()[:, :1], written[:, :-1]), 1)
    assert is_right(backbone, list_scored(Batch(inputs, written), 6), 1).all()
