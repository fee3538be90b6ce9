"""Masked text: what is shown at the scored positions, and who may learn from which objective."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from arch_bench.cell import run
from arch_bench.config.instantiate import build
from arch_bench.config.schema import ConfigError, cell_of, compose
from tasks.base import IGNORE, stream
from tasks.masked_text import MaskedText
from tasks.text import Text
from tasks.tokens import Tokenizer

CPU = torch.device("cpu")


@pytest.fixture(params=get_args(Tokenizer))
def task(request: pytest.FixtureRequest, tmp_path: Path) -> MaskedText:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(30):
        Path(folder, f"{i}.txt").write_text("".join(chr(97 + (i + j * j) % 26) for j in range(3000)))
    return MaskedText(
        seq_len=100,
        mask_rate=0.15,
        tokenizer=request.param,
        bpe_vocab_size=300,
        path=str(folder),
        glob="*.txt",
        config_name=None,
        text_column="text",
        max_bytes=None,
        cache_dir=str(tmp_path / "cache"),
    )


def test_eight_in_ten_show_the_mask_one_a_random_token_and_one_itself(task: MaskedText) -> None:
    inputs, targets = task.sample(4000, stream(0, "train", 0, CPU), CPU)
    scored = targets != IGNORE
    assert (scored.sum(1) == 15).all()
    shown, answers = inputs[scored], targets[scored]
    assert (shown == task.mask).float().mean() == pytest.approx(0.8, abs=0.01)
    assert (shown == answers).float().mean() == pytest.approx(0.1, abs=0.01)
    assert ((shown != task.mask) & (shown != answers)).float().mean() == pytest.approx(0.1, abs=0.01)
    assert (inputs[~scored] < task.mask).all()
    assert scored.float().mean(0).std() < 0.01, "every position is scored as often"


def test_the_answers_are_the_text(task: MaskedText) -> None:
    inputs, targets = task.sample(8, stream(0, "train", 0, CPU), CPU)
    restored = torch.where(targets != IGNORE, targets, inputs)
    start, end = task.tokens.ranges["train"]
    (text,) = task.tokens.windows("train", 1, end - start, stream(0, "train", 0, CPU), CPU).long().unfold(1, 100, 1)
    assert all((text == row).all(1).any() for row in restored)


def test_the_mask_is_one_more_token(task: MaskedText) -> None:
    assert task.mask == task.tokens.vocab_size == task.vocab_size - 1
    assert task.word(task.mask) not in {task.word(token) for token in range(task.mask)}
    for name in task.baselines():
        assert task.guess(name, torch.zeros(1, 100))[task.mask] == 0
    unmasked = Text(seq_len=100, tokenizer=task.tokenizer, bpe_vocab_size=300, **task.corpus.knobs)
    assert task.baselines() == unmasked.baselines()
    assert task.bytes_per_token == unmasked.bytes_per_token


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    cell = cell_of(compose(["task=masked_text", f"task.mask_rate={rate}"]))
    with pytest.raises(ConfigError, match=f"mask_rate={rate} must be greater than 0 and less than 1"):
        build(cell, "task")


def test_an_encoder_is_not_trained_on_a_task_that_shows_the_answers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words " * 200)
    text = ["task=text", f"task.path={tmp_path / 'a.txt'}", f"task.cache_dir={tmp_path / 'cache'}"]
    small = ["isolate=false", "logger=none", "phases=[quality]", f"results_dir={tmp_path}", "d_model=16", "n_layers=1"]
    cell = cell_of(compose(["backbone=bert", *text, "eval_scales=[1]", "seq_len=16", *small]))
    (row,) = run.run_cell(cell, say=lambda row: None)
    assert (row.status, row.reason) == (
        "unsupported",
        "task=text shows its answers one position later, and an encoder would read them",
    )


def test_the_encoder_is_that_of_pytorch() -> None:
    """Against `nn.TransformerEncoderLayer` with copied weights: post-norm, GELU, no mask."""
    cell = cell_of(compose(["backbone=bert", "backbone.positions=none", "d_model=32", "n_layers=1"]))
    torch.manual_seed(0)
    block = build(cell, "backbone", vocab_size=5).eval().blocks[0]
    layer = nn.TransformerEncoderLayer(32, 4, 128, dropout=0.0, activation="gelu", batch_first=True)
    layer.self_attn.in_proj_weight.data = block.mixer.qkv.weight.data
    layer.self_attn.out_proj.weight.data = block.mixer.out.weight.data
    layer.linear1, layer.linear2, layer.norm1, layer.norm2 = block.mlp.up, block.mlp.down, block.norm, block.mlp_norm
    x = torch.randn(2, 20, 32)
    torch.testing.assert_close(block(x), layer(x), atol=1e-5, rtol=1e-5)
