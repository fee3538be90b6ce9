"""Blocks of steps inside a Trainer: what Lightning counts, stops, saves and resumes are optimiser steps."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from models import BACKBONES, CORE, depth, on_cpu
from torch import Tensor

from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, cell_of, compose
from arch_bench.train import module
from arch_bench.train.data import Blocks, TaskData, cut
from arch_bench.train.module import LitSequence
from arch_bench.train.step import TrainStep
from tasks import windows
from tasks.base import Split
from tasks.text import Text

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec:"),  # Lightning 2.6 on torch 2.13
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # blocks are made in one call
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual"),  # the state after a step is what we want
]
CPU = torch.device("cpu")
SMALL = ["seq_len=16", "d_model=16", "n_layers=1", "task.n_pairs=2", "task.vocab_size=32", "optim.lr=1e-2"]


def parts(*overrides: str, n_steps: int = 100, val_every: int = 50) -> tuple[LitSequence, TaskData]:
    cell: Cell = cell_of(compose([*SMALL, *overrides]))
    task = build(cell, "task")
    torch.manual_seed(cell.seed)
    backbone = build(cell, "backbone", vocab_size=task.vocab_size)
    step = TrainStep(backbone, cell.optim, max_steps=n_steps, kind="eager", precision="fp32", loss_kernel="full")
    data = TaskData(task, seed=0, batch_size=4, n_steps=n_steps, val_every=val_every, n_val=2, device=CPU)
    return LitSequence(step, precision="fp32", trained_len=16, bytes_per_token=None, tolerance=None), data


def trainer(data: TaskData, folder: Path, *callbacks: Any, n_steps: int = 100, **more: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_steps=n_steps,
        max_epochs=1,
        val_check_interval=data.val_check_interval,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        **({"logger": False, "enable_checkpointing": False} | more),
    )


def parameters(model: LitSequence) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.backbone.named_parameters()}


@pytest.mark.parametrize(("n_steps", "every"), [(100, 50), (100, 30), (7, 7), (1, 1), (64, 1)])
def test_blocks_cover_all_steps_and_end_where_validation_is_due(n_steps: int, every: int) -> None:
    blocks = cut(n_steps, every, 100, CPU)
    assert [step for block in blocks for step in block] == list(range(n_steps))
    assert {block.stop for block in blocks} >= {*range(every, n_steps, every), n_steps}
    assert max(map(len, blocks)) <= 10
    assert max(map(len, cut(n_steps, every, 2**20, CPU))) == 1, "as much as memory allows"


def test_blocks_are_longer_on_a_gpu() -> None:
    cuda = torch.device("cuda")
    assert [len(block) for block in cut(256, 128, 64 * 256, cuda)] == [32] * 8
    assert [len(block) for block in cut(100, 50, 1, cuda)] == [50, 50]


def test_steps_and_validations_are_counted_in_steps(tmp_path: Path) -> None:
    seen = []

    class Note(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(trainer.global_step)

    model, data = parts(n_steps=90, val_every=40)
    run = trainer(data, tmp_path, Note(), n_steps=90)
    run.fit(model, datamodule=data)
    assert run.global_step == 90
    assert seen == [40, 80]


def test_a_curve_has_a_point_for_every_block_at_its_last_step(tmp_path: Path) -> None:
    model, data = parts()
    logger = CSVLogger(tmp_path)
    trainer(data, tmp_path, logger=logger).fit(model, datamodule=data)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        points = list(csv.DictReader(file))
    assert [int(p["step"]) for p in points if p["train/loss"]] == [block.stop for block in data.blocks]
    assert [int(p["step"]) for p in points if p["val/token_accuracy"]] == [50, 100]
    rates = {int(p["step"]): float(p["train/lr"]) for p in points if p["train/lr"]}
    assert rates[10] == pytest.approx(1e-2), "ten steps of warm-up end at the peak"
    assert rates[100] < 0.2 * rates[10]
    assert all(float(p["train/grad_norm"]) > 0 for p in points if p["train/grad_norm"])


def test_a_model_does_not_depend_on_how_often_it_is_validated(tmp_path: Path) -> None:
    found = []
    for every in (40, 20, 7, 1):
        model, data = parts("backbone.dropout=0.1", n_steps=40, val_every=every)
        trainer(data, tmp_path, n_steps=40).fit(model, datamodule=data)
        found.append(parameters(model))
    for other in found[1:]:
        assert all(torch.equal(other[name], p) for name, p in found[0].items())


def test_each_split_is_counted_by_its_own_bytes(tmp_path: Path) -> None:
    model, data = parts(n_steps=10, val_every=10)
    model._bytes_per_token = {"val": 2.0, "test": 3.0}
    run = trainer(data, tmp_path, n_steps=10)
    for split, n_bytes in (("val", 2.0), ("test", 3.0)):
        loaders = data.val_dataloader() if split == "val" else data.test_loader(data._task, 2)
        test = run.validate if split == "val" else run.test
        test(model, dataloaders=loaders, verbose=False)
        found = {name: value.item() for name, value in run.callback_metrics.items()}
        per_token = found[f"{split}/loss_nats"] / math.log(2)
        assert found[f"{split}/bits_per_byte"] == pytest.approx(per_token / n_bytes, rel=1e-6)


def test_early_stopping_ends_at_a_validation(tmp_path: Path) -> None:
    model, data = parts(n_steps=100, val_every=20)
    stop = EarlyStopping("val/token_accuracy", patience=1, min_delta=2.0)  # more than can be gained
    run = trainer(data, tmp_path, stop)
    run.fit(model, datamodule=data)
    assert run.global_step == 40


@pytest.mark.parametrize("stopped_at", [10, 50, 70])
@pytest.mark.parametrize("name", CORE)
def test_resuming_at_any_block_changes_no_bit(name: str, stopped_at: int, tmp_path: Path) -> None:
    resume(name, stopped_at, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [on_cpu(name) for name in BACKBONES if name not in CORE])
def test_resuming_changes_no_bit_of_any_backbone(name: str, tmp_path: Path) -> None:
    resume(name, 50, tmp_path)


def resume(name: str, stopped_at: int, tmp_path: Path) -> None:
    chosen = [f"backbone={name}", depth(name, 1), "backbone.dropout=0.2"]
    whole, data = parts(*chosen)
    trainer(data, tmp_path).fit(whole, datamodule=data)

    first, data = parts(*chosen)
    saved = tmp_path / "stopped.ckpt"
    trainer(data, tmp_path, SaveAndStop(stopped_at, saved)).fit(first, datamodule=data)
    assert not torch.equal(first.backbone.embedding.weight, whole.backbone.embedding.weight)

    torch.manual_seed(123)  # a process that has drawn other numbers before
    second, data = parts(*chosen)
    run = trainer(data, tmp_path)
    run.fit(second, datamodule=data, ckpt_path=saved)
    assert run.global_step == 100
    for key, expected in parameters(whole).items():
        assert torch.equal(parameters(second)[key], expected), key


class SaveAndStop(L.Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def test_a_second_fit_settles_anew(tmp_path: Path) -> None:
    model, data = parts(n_steps=20, val_every=10)
    trainer(data, tmp_path, n_steps=20).fit(model, datamodule=data)
    after_one = parameters(model)
    trainer(data, tmp_path, n_steps=20).fit(model, datamodule=data)
    assert not torch.equal(parameters(model)["embedding.weight"], after_one["embedding.weight"])


def test_checkpoints_are_named_by_steps(tmp_path: Path) -> None:
    model, data = parts()
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=40, save_top_k=-1)
    trainer(data, tmp_path, keep, enable_checkpointing=True).fit(model, datamodule=data)
    saved = {path.name for path in tmp_path.glob("*.ckpt")}
    assert saved >= {"epoch=0-step=40.ckpt", "epoch=0-step=80.ckpt"}
    assert len(saved) <= 4  # and at validations


def test_a_block_holds_the_batches_of_its_steps() -> None:
    _, data = parts()
    task = build(cell_of(compose(SMALL)), "task")
    blocks = Blocks(task, "train", data.blocks, seed=0, batch_size=4, device=CPU)
    assert blocks[1].inputs.shape == (10, 4, 16)
    assert blocks[1].positions is not None
    assert blocks[1].positions.shape == blocks[1].targets.shape == (10, 4, 2)
    assert torch.equal(blocks[1].inputs, blocks[1].inputs)
    assert not torch.equal(blocks[0].inputs, blocks[1].inputs)


def batches(blocks: list[range], batch_size: int = 4) -> Tensor:
    """The inputs of every step: (steps, batch, seq_len)."""
    task = build(cell_of(compose(SMALL)), "task")
    data = Blocks(task, "train", blocks, seed=0, batch_size=batch_size, device=CPU)
    return torch.cat([data[i].inputs for i in range(len(blocks))])


@pytest.mark.parametrize("every", [1, 5, 7, 10, 13, 20, 40, 1000])
def test_the_examples_of_a_step_do_not_depend_on_when_validation_is_due(every: int) -> None:
    want = batches([range(40)])
    assert torch.equal(batches(cut(40, every, 64, CPU)), want)
    assert len(want.flatten(1).unique(dim=0)) == 40, "each step has its own"


def test_the_examples_of_a_step_do_not_depend_on_the_device_or_on_how_many_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    want = batches([range(40)])
    assert torch.equal(batches(cut(40, 20, 64, torch.device("cuda"))), want)
    assert torch.equal(batches(cut(13, 20, 64, CPU)), want[:13])
    monkeypatch.setattr("arch_bench.train.data.MAX_BLOCK", {"cpu": (3, 2**16)})
    assert torch.equal(batches(cut(40, 20, 64, CPU)), want)


def test_blocks_may_be_asked_for_in_any_order() -> None:
    blocks = cut(40, 7, 64, CPU)
    task = build(cell_of(compose(SMALL)), "task")
    data = Blocks(task, "train", blocks, seed=0, batch_size=4, device=CPU)
    backwards = [data[i].inputs for i in reversed(range(len(blocks)))]
    assert torch.equal(torch.cat(backwards[::-1]), batches([range(40)]))


def test_a_group_of_batches_that_several_blocks_share_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    real = Blocks._draw
    monkeypatch.setattr(Blocks, "_draw", lambda self, start: drawn.append(start) or real(self, start))  # type: ignore[func-returns-value]
    batches(cut(40, 1, 64, CPU))
    assert drawn == [0, 10, 20, 30]
    data = Blocks(build(cell_of(compose(SMALL)), "task"), "train", [range(10)], seed=0, batch_size=4, device=CPU)
    assert torch.equal(data[0].inputs, data[0].inputs)
    assert drawn[4:] == [0, 0], "what is done with is not kept"


def test_validation_is_drawn_once_if_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = parts()
    loader = data.val_dataloader()
    first, second = (list(loader) for _ in range(2))
    assert len(first) > 1
    assert all(a.inputs is b.inputs for a, b in zip(first, second, strict=True))
    monkeypatch.setattr("arch_bench.train.data.MAX_KEPT", 0)
    loader = data.val_dataloader()
    third, fourth = (list(loader) for _ in range(2))
    for a, b, c in zip(first, third, fourth, strict=True):
        assert b.inputs is not c.inputs
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, c.targets)


def test_logits_are_made_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = parts()
    block = next(iter(data.val_dataloader())).map(lambda x: x.flatten(0, 1))
    whole = model._losses(block)
    monkeypatch.setattr(module, "MAX_LOGITS", 100)
    for found, expected in zip(model._losses(block), whole, strict=True):
        torch.testing.assert_close(found, expected)


def test_data_that_do_not_fit_the_device_come_from_a_process_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus.txt").write_text("to be or not to be " * 500)
    text = Text(
        seq_len=16,
        path=str(tmp_path / "corpus.txt"),
        glob="*.txt",
        config_name=None,
        text_column="text",
        max_bytes=None,
        cache_dir=str(tmp_path),
        tokenizer="bytes",
        bpe_vocab_size=256,
    )
    gpu = torch.device("cuda")
    assert text.source(gpu) == gpu
    monkeypatch.setattr(windows, "RESIDENT_MAX_BYTES", 10)
    assert text.source(gpu) == CPU
    data = TaskData(text, seed=0, batch_size=4, n_steps=20, val_every=10, n_val=1, device=gpu)
    loader = data.train_dataloader()
    assert (loader.num_workers, loader.pin_memory) == (1, True)
    loader.pin_memory = False  # needs a GPU
    monkeypatch.undo()
    split: Split = "train"
    expected = Blocks(text, split, data.blocks, seed=0, batch_size=4, device=CPU)
    found = list(loader)
    assert len(found) == len(data.blocks)
    for i, block in enumerate(found):
        assert torch.equal(block.inputs, expected[i].inputs)
        assert torch.equal(block.targets, expected[i].targets)
