"""One run on several devices, here processes on a CPU: the same numbers as on one, and an end to what goes wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from models import BACKBONES, depth, on_cpu

from arch_bench import results
from arch_bench.cell import run
from arch_bench.cell.shape import Shape
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, ConfigError, cell_of, compose
from arch_bench.results import Row
from arch_bench.runtime import workers
from arch_bench.train import fit as training
from arch_bench.train.distributed import joined, places
from arch_bench.train.module import LitSequence
from arch_bench.train.step import TrainStep, list_scored, pick_step
from arch_bench.train.team import Place, Team
from arch_bench.train.trainer import make_trainer
from tasks.base import IGNORE, stream

CPU = torch.device("cpu")
SMALL = ["logger=none", "device=cpu", "seq_len=16", "d_model=16", "n_layers=2", "optim.lr=1e-2"]
RECALL = ["task=mqar", "task.n_pairs=2", "task.vocab_size=32"]
BATCH = 8


class Trained(NamedTuple):
    parameters: dict[str, np.ndarray]
    curve: list[list[float]]
    """Loss, rate and gradient norm of each step."""
    kind: str
    decayed: list[str]


def train(place: Place | None, strategy: str, overrides: list[str], kind: str, n_steps: int) -> Trained:
    """Steps on batches whose examples have different numbers of targets: none in the first, which are rank 0's."""
    cell = cell_of(compose([*SMALL, *RECALL, *overrides]))
    device = torch.device(cell.device)
    with joined(place, strategy, device) as team:
        torch.manual_seed(team.rank)  # what ranks begin with is that of the first
        task = build(cell, "task")
        with device:
            model = build(cell, "backbone", vocab_size=32)
        step = TrainStep(model, cell.optim, max_steps=50, kind=kind, precision="fp32", loss_kernel="full", team=team)
        curve = []
        for i in range(n_steps):
            batch = list_scored(task.sample(BATCH, stream(0, "train", i, device), device), task.max_scored)
            batch.targets[: BATCH // 2] = IGNORE
            batch.targets[-1, 0] = IGNORE
            step(batch.map(lambda x: team.place.part(x, 0)))
            curve.append(step.figures(1).tolist())
        names = {id(p): name for name, p in model.named_parameters()}
        decayed = [names[id(p)] for p in step.optimizer.param_groups[0]["params"]]
        with team.whole(model):
            parameters = {name: p.detach().clone().cpu().numpy() for name, p in model.named_parameters()}
    return Trained(parameters, curve, step.kind, decayed)


def trained(strategy: str, n: int, *overrides: str, kind: str = "eager", n_steps: int = 20) -> Trained:
    with places(n) as all_places:
        calls = [(place if n > 1 else None, strategy, list(overrides), kind, n_steps) for place in all_places]
        return workers.call_together(train, calls, time_limit_s=600)


def assert_same(found: Trained, expected: Trained, atol: float = 1e-4) -> None:
    """atol: AdamW makes a whole step of rounding where a gradient is nearly nothing; the rate is at most 1e-2."""
    np.testing.assert_allclose(found.curve, expected.curve, rtol=1e-4)
    for name, parameter in expected.parameters.items():
        np.testing.assert_allclose(found.parameters[name], parameter, rtol=1e-3, atol=atol, err_msg=name)
    assert found.decayed == expected.decayed
    assert found.kind == expected.kind


@pytest.fixture(scope="module")
def alone() -> Trained:
    return trained("single", 1)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_devices_train_what_one_does(strategy: str, alone: Trained) -> None:
    assert_same(trained(strategy, 2), alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*map(on_cpu, BACKBONES)])
def test_every_backbone_can_be_sharded(name: str) -> None:
    dials = [f"backbone={name}", depth(name, 2)]
    assert_same(trained("fsdp", 2, *dials, n_steps=3), trained("single", 1, *dials, n_steps=3), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_compiled_step_is_shared_too(strategy: str, alone: Trained) -> None:
    found = trained(strategy, 2, kind="compiled")
    assert found.kind == "compiled"
    assert_same(found, alone._replace(kind="compiled"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("strategy", "kind"), [("ddp", "graph"), ("ddp", "eager"), ("fsdp", "compiled")])
def test_two_gpus_train_what_one_does(strategy: str, kind: str) -> None:
    expected = trained("single", 1, "device=cuda")
    found = trained(strategy, 2, "device=cuda", kind=kind)
    assert found.kind == kind
    np.testing.assert_allclose(found.curve, expected.curve, rtol=2e-3)
    for name, parameter in expected.parameters.items():
        np.testing.assert_allclose(found.parameters[name], parameter, rtol=1e-2, atol=1e-3, err_msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("strategy", "kind"), [("ddp", "graph"), ("fsdp", "compiled")])
def test_a_cell_runs_on_two_gpus(strategy: str, kind: str, tmp_path: Path) -> None:
    longer = ["trainer.max_steps=20", "trainer.val_every=10"]
    rows = measured(cell(tmp_path, strategy, *RECALL, *longer, "device=cuda", "precision=bf16"))
    assert [row.kind for row in rows] == ["speed", "decode", "quality", "quality"]
    for row in rows:
        assert row.status == "ok", row.reason
        if row.kind != "decode":
            assert (row.metrics["step"], row.metrics["step_why"]) == (kind, None)
            assert row.metrics["n_devices"] == 2


def test_parts_are_equal_and_cover_everything() -> None:
    x = torch.arange(12).view(2, 6)
    assert [Place(rank, 3).part(x, 1).tolist() for rank in range(3)] == [
        [[0, 1], [6, 7]],
        [[2, 3], [8, 9]],
        [[4, 5], [10, 11]],
    ]
    found = torch.cat([Place(rank, 4).part(x, 1) for rank in range(4)], 1)
    assert sorted(found.flatten().tolist()) == sorted([*range(12)] * 2), "6 rows on 4 ranks: each on 2 of them"
    assert Place(1, 5).part(x, 1) is x
    assert Place().part(x, 1) is x


def cell(folder: Path, strategy: str, *overrides: str) -> Cell:
    brief = ["trainer.max_steps=4", "trainer.val_every=2", f"trainer.batch_size={BATCH}", "trainer.n_val_batches=2"]
    sizes = [
        "speed.lengths=[16]",
        "speed.tokens_per_step=64",
        "speed.n_steps=3",
        "decode.lengths=[16]",
        "trainer.n_test_batches=2",
    ]
    how = [f"trainer.strategy={strategy}", f"trainer.devices={1 if strategy == 'single' else 2}"]
    return cell_of(compose([*SMALL, *brief, *sizes, *how, f"results_dir={folder}", "eval_scales=[1,2]", *overrides]))


def measured(one: Cell) -> list[Row]:
    rows = run.run_cell(one, say=lambda row: None)
    assert results.load([Path(one.results_dir)])
    return rows


STRING = ["task=string_copy", "task.min_length=2", "seq_len=24", "n_layers=1", "phases=[quality]"]
TIMES = ("_s", "_ms", "_bytes", "_p10", "_p90", "_gb_per_s", "tflops", "share", "n_devices", "strategy")


def test_metrics_are_those_of_one_device(tmp_path: Path) -> None:
    """Of every split, and of what a model generates; the longer test has fewer rows than there are devices' parts."""
    expected = measured(cell(tmp_path / "single", "single", *STRING))
    for strategy in ("ddp", "fsdp"):
        found = measured(cell(tmp_path / strategy, strategy, *STRING))
        assert [row.status for row in found] == ["ok", "ok"], [row.reason for row in found]
        for row, other in zip(found, expected, strict=True):
            assert row.metrics["n_devices"] == 2
            assert row.metrics["strategy"] == strategy
            assert set(row.metrics) == set(other.metrics)
            for name, value in other.metrics.items():
                if not name.endswith(TIMES) and isinstance(value, float):
                    assert row.metrics[name] == pytest.approx(value, rel=1e-4), name


class Save(Callback):
    """After the first of two blocks."""

    def __init__(self, path: str) -> None:
        self._path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self._path)


def resumed(place: Place, strategy: str, path: str) -> tuple[Trained, Trained]:
    """A training at once, and one that goes on from its checkpoint."""
    one = cell(Path(path).parent, strategy, *RECALL, "backbone.dropout=0.2")
    with joined(place, strategy, CPU) as team:
        whole = fit(one, team, [Save(path)], None)
        return fit(one, team, [], path), whole


def fit(one: Cell, team: Team, callbacks: list[Callback], path: str | None) -> Trained:
    torch.manual_seed(0 if path is None else 7)
    task, model = build(one, "task"), build(one, "backbone", vocab_size=32)
    step = TrainStep(model, one.optim, max_steps=8, kind="eager", precision="fp32", loss_kernel="full", team=team)
    lit = LitSequence(step, precision="fp32", trained_len=16, bytes_per_token=None, tolerance=None)
    data = training._data(one, task, CPU, team)
    steps = {"max_steps": one.trainer.max_steps, "val_check_interval": data.val_check_interval}
    make_trainer(team, CPU, callbacks, None, **steps).fit(lit, datamodule=data, ckpt_path=path)
    noise = team.gather(torch.rand(1).item())
    with team.whole(model):
        parameters = {name: p.detach().clone().numpy() for name, p in model.named_parameters()}
    return Trained(parameters, [noise], step.kind, [])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_checkpoint_of_several_is_whole_and_goes_on(strategy: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with places(2) as all_places:
        found, expected = workers.call_together(
            resumed, [(p, strategy, str(path)) for p in all_places], time_limit_s=600
        )
    for name, parameter in expected.parameters.items():
        np.testing.assert_allclose(found.parameters[name], parameter, rtol=1e-5, atol=1e-6, err_msg=name)
    assert found.curve == expected.curve, "every rank goes on with the noise that it had"
    assert len(set(found.curve[0])) == 2, "which is its own: dropout leaves out other units of other rows"
    saved = torch.load(path, weights_only=True)["state_dict"]
    for name, parameter in expected.parameters.items():
        assert saved[f"backbone.{name}"].shape == parameter.shape


def test_slices_that_one_rank_lacks_are_those_of_one_device(tmp_path: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_text("abcd" * 1000 + "".join(np.random.default_rng(0).choice(list("abcd"), 8000)))
    text = ["task=text", f"task.path={corpus}", f"task.cache_dir={tmp_path}", "phases=[quality]"]
    one, two = (measured(cell(tmp_path / s, s, *text, "trainer.batch_size=2")) for s in ("single", "ddp"))
    for row, other in zip(two, one, strict=True):
        assert {name for name in row.metrics if "/" in name} == {name for name in other.metrics if "/" in name}
        for name in filter(lambda name: "/" in name, other.metrics):
            assert row.metrics[name] == pytest.approx(other.metrics[name], rel=1e-4), name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_step_is_timed_on_all_devices(strategy: str, tmp_path: Path) -> None:
    (row,) = measured(cell(tmp_path, strategy, *RECALL, "phases=[speed]"))
    assert row.status == "ok", row.reason
    assert (row.metrics["n_devices"], row.metrics["strategy"]) == (2, strategy)
    assert row.metrics["tokens_per_step"] == 64
    assert row.metrics["n_scored"] == 64 // 16 * 2, "of all devices"
    assert row.metrics["tokens_per_s"] > 0  # type: ignore[operator]
    assert row.metrics["train_step_ms"] >= row.metrics["forward_backward_ms"]  # type: ignore[operator]


def test_a_batch_that_cannot_be_shared_is_a_status(tmp_path: Path) -> None:
    (row,) = measured(cell(tmp_path, "ddp", *RECALL, "phases=[speed]", "speed.batching=single"))
    assert (row.status, row.reason) == ("unsupported", "2 devices cannot share a batch of 1 at 16 tokens")


real_shape = run.run_shape


def killed(one: Cell, shape: Shape, earlier: list[Row], place: Place) -> list[Row]:
    """Rank 1 dies in the middle of training."""
    _in_training(place, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return real_shape(one, shape, earlier, place)


def full(one: Cell, shape: Shape, earlier: list[Row], place: Place) -> list[Row]:
    """Rank 1 runs out of memory in the middle of training."""

    def refuse() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    _in_training(place, refuse)
    return real_shape(one, shape, earlier, place)


def full_in_test(one: Cell, shape: Shape, earlier: list[Row], place: Place) -> list[Row]:
    """Rank 1 runs out of memory at the longer test only."""
    real = training._scores

    def scores(tester: Any, lit: Any, data: Any, task: Any, n: int) -> Any:
        if place.rank and task.seq_len > one.seq_len:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(tester, lit, data, task, n)

    training._scores = scores
    return real_shape(one, shape, earlier, place)


def _in_training(place: Place, happen: Any) -> None:
    def validated(self: Any, trainer: Any, pl_module: Any) -> None:
        if place.rank:
            happen()

    training.Watch.on_validation_end = validated  # type: ignore[method-assign]


@pytest.mark.parametrize(("shape", "status", "reason"), [(killed, "crashed", "rank 1: "), (full, "oom", "CUDA out of")])
def test_a_rank_that_fails_alone_ends_all(
    shape: Any, status: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_shape", shape)
    rows = measured(cell(tmp_path, "ddp", *RECALL, "phases=[quality]"))
    assert [row.status for row in rows] == [status, status]
    assert all(row.reason.startswith(reason) for row in rows), rows[0].reason


def test_a_test_too_long_for_one_rank_is_so_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_shape", full_in_test)
    rows = measured(cell(tmp_path, "ddp", *RECALL, "phases=[quality]"))
    assert [(row.status, row.reason) for row in rows] == [("ok", ""), ("oom", "out of memory on another device")]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["trainer.devices=2"], "trainer.devices=2: trainer.strategy=single has 1"),
        (["trainer.strategy=ddp", "trainer.devices=3"], "trainer.devices=3: does not divide trainer.batch_size=64"),
        (["trainer.strategy=fsdp", "isolate=false"], "isolate=false: trainer.strategy=fsdp needs a process"),
        (["trainer.strategy=ddp", "trainer.devices=0"], "trainer.devices=0: input should be greater"),
        (["trainer.strategy=dp"], "trainer.strategy=dp: input should be 'single', 'ddp' or 'fsdp'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run.settle(cell_of(compose(overrides)))
    assert str(caught.value).startswith(complaint)


def test_more_devices_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"trainer.devices=2: this machine has 1"):
        run.settle(cell_of(compose(["device=cuda", "trainer.strategy=ddp", "trainer.devices=2"])))


def test_shards_are_no_graph() -> None:
    cuda = torch.device("cuda")
    assert [pick_step("auto", cuda, s) for s in ("single", "ddp", "fsdp")] == ["graph", "graph", "compiled"]
    with pytest.raises(ConfigError, match=r"step=graph: not with trainer.strategy=fsdp"):
        pick_step("graph", cuda, "fsdp")


def test_alone_there_is_nothing_to_share() -> None:
    team, x = Team(), torch.ones(3)
    assert team.sum(x) is x
    assert team.pool(x, x)[0] is x
    assert (team.rank, team.size, team.strategy) == (0, 1, "single")
