"""One optimiser step: the recipe, which positions count, and the ways to run it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import BACKBONES, depth, on_cpu
from torch._dynamo.utils import counters

from arch_bench.backbone import Backbone
from arch_bench.config.instantiate import build
from arch_bench.config.schema import ConfigError, Optim, cell_of, compose
from arch_bench.ops import generalised_delta_rule
from arch_bench.ops.kernel import Unsupported
from arch_bench.ops.linear_cross_entropy import choose_loss_kernel, linear_cross_entropy, obstacles
from arch_bench.train import step as train_step
from arch_bench.train.optimizer import make_optimizer, rate_factor
from arch_bench.train.step import TrainStep, list_scored, pick_step, scored_hidden, scored_loss
from tasks.base import IGNORE, Batch, stream

CPU = torch.device("cpu")

OPTIM = Optim(
    lr=0.1, weight_decay=0.5, betas=[0.9, 0.95], schedule="cosine", warmup=0.1, clip_norm=1.0, label_smoothing=0.0
)


def factor(step: int, schedule: str, warmup: float = 0.1) -> float:
    optim = OPTIM.model_copy(update={"schedule": schedule, "warmup": warmup})
    return rate_factor(torch.tensor(step), 1000, optim).item()


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


@pytest.mark.parametrize("name", [*map(on_cpu, BACKBONES)])
def test_only_matrices_decay(name: str) -> None:
    model = build(cell_of(compose([f"backbone={name}", depth(name, 2)])), "backbone", vocab_size=11)
    decayed, exempt = make_optimizer(model, OPTIM, torch.tensor(0.1)).param_groups
    names = {id(p): key for key, p in model.named_parameters()}
    assert len(decayed["params"]) + len(exempt["params"]) == len(names)
    assert decayed["weight_decay"] == 0.5
    assert exempt["weight_decay"] == 0.0
    assert all(p.dim() >= 2 for p in decayed["params"])
    kept = {names[id(p)] for p in exempt["params"]}
    assert "embedding.weight" in kept
    assert {key for key in names.values() if key.endswith("norm.weight")} <= kept
    assert not any(key.endswith(("A_log", ".D", "bias")) for key in map(names.get, map(id, decayed["params"])) if key)


SMALL = ["seq_len=16", "d_model=16", "n_layers=1", "task.n_pairs=2", "task.vocab_size=32", "optim.lr=1e-2"]


def small(kind: str, *overrides: str, precision: str = "fp32") -> TrainStep:
    cell = cell_of(compose([*SMALL, *overrides]))
    torch.manual_seed(0)
    backbone: Backbone = build(cell, "backbone", vocab_size=32)
    return TrainStep(backbone, cell.optim, max_steps=50, kind=kind, precision=precision, loss_kernel="auto")


def batch_of(step: int) -> Any:
    task = build(cell_of(compose(SMALL)), "task")
    return list_scored(task.sample(8, stream(0, "train", step, CPU), CPU), task.max_scored)


def losses(step: TrainStep, first: int, last: int) -> list[float]:
    found = []
    for i in range(first, last):
        step(batch_of(i))
        found.append(step.figures(1)[0].item())
    return found


def test_scored_positions_are_listed_in_order_and_padded() -> None:
    targets = torch.full((3, 6), IGNORE)
    targets[0, [1, 4]] = torch.tensor([7, 8])
    targets[1, 5] = 9
    inputs = torch.arange(18).view(3, 6)
    scored = list_scored(Batch(inputs, targets), 2)
    assert scored.inputs is inputs
    assert scored.positions is not None
    assert scored.positions.tolist() == [[1, 4], [5, 0], [0, 0]]
    assert scored.targets.tolist() == [[7, 8], [9, IGNORE], [IGNORE, IGNORE]]
    assert list_scored(Batch(inputs, targets), 6).positions is None


def test_loss_counts_scored_positions_only() -> None:
    step = small("eager")
    batch = Batch(torch.randint(32, (4, 16)), torch.randint(32, (4, 16)))
    batch.targets[:, ::3] = IGNORE
    batch.targets[0, :9] = IGNORE  # fewer than the others
    logits = step.backbone.head(step.backbone(batch.inputs))
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
    for n in (10, 16):
        scored = list_scored(batch, n)
        assert scored_hidden(step.backbone, scored).shape == (4, n, 16)
        found = scored_loss(step.backbone, scored, loss_kernel="full", label_smoothing=0.0)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel", obstacles(CPU))
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_every_loss_kernel_equals_the_definition(kernel: str, label_smoothing: float) -> None:
    if (obstacle := obstacles(CPU, label_smoothing)[kernel]) is not None:
        pytest.skip(obstacle)
    torch.manual_seed(0)
    x, weight = torch.randn(300, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(50, (300,))
    targets[::7] = IGNORE
    logits = x @ weight.T
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, label_smoothing=label_smoothing)
    found = linear_cross_entropy(x, weight, targets, kernel=kernel, label_smoothing=label_smoothing)
    torch.testing.assert_close(found, loss)
    wanted = torch.autograd.grad(loss, (x, weight))
    for got, want in zip(torch.autograd.grad(found, (x, weight)), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_the_loss_kernel_is_chosen_once() -> None:
    assert choose_loss_kernel("auto", 50_304, 0.0, CPU) == "full"
    with pytest.raises(Unsupported, match="loss_kernel=fla: needs a CUDA device"):
        choose_loss_kernel("fla", 50_304, 0.0, CPU)


def test_auto_is_eager_on_the_cpu() -> None:
    assert pick_step("auto", CPU) == "eager"
    with pytest.raises(ConfigError, match="step=graph: needs a CUDA device"):
        pick_step("graph", CPU)


def test_a_step_is_that_of_a_loop_written_out() -> None:
    step, twin = small("eager"), small("eager").backbone
    optim = cell_of(compose(SMALL)).optim
    decayed, exempt = ([*g["params"]] for g in make_optimizer(twin, optim, torch.tensor(0.0)).param_groups)
    options = {"betas": (0.9, 0.95), "lr": 0.0}
    plain = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": exempt, "weight_decay": 0.0}], **options
    )
    for i in range(20):
        step(batch_of(i))
        loss = scored_loss(twin, batch_of(i), loss_kernel="full", label_smoothing=0.0)
        plain.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        for group in plain.param_groups:
            group["lr"] = 1e-2 * rate_factor(torch.tensor(i), 50, optim).item()
        plain.step()
        mean, rate, found_norm = step.figures(1)
        torch.testing.assert_close(mean, loss.detach())
        torch.testing.assert_close(found_norm, norm)
        assert rate.item() == pytest.approx(plain.param_groups[0]["lr"], rel=1e-6)
    for (name, found), expected in zip(step.backbone.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


@pytest.mark.parametrize("limit", [0, 0.01])
def test_the_norm_reported_is_that_before_clipping(limit: float) -> None:
    step = small("eager", f"optim.clip_norm={limit}")
    step(batch_of(0))
    left = torch.nn.utils.get_total_norm([p.grad for p in step.backbone.parameters() if p.grad is not None])
    assert step.grad_norm > 0.1
    torch.testing.assert_close(left, torch.tensor(limit) if limit else step.grad_norm, rtol=1e-3, atol=1e-5)


def test_figures_are_means_and_start_afresh() -> None:
    one_by_one = losses(small("eager"), 0, 6)
    step = small("eager")
    means = []
    for i in range(6):
        step(batch_of(i))
        if i % 3 == 2:
            means.append(step.figures(3)[0].item())
    assert means == pytest.approx([sum(one_by_one[:3]) / 3, sum(one_by_one[3:]) / 3])


def test_resuming_changes_no_bit() -> None:
    expected = losses(small("eager", "backbone.dropout=0.0"), 0, 20)
    first = small("eager")
    losses(first, 0, 10)
    second = small("eager")
    second.backbone.load_state_dict(first.backbone.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.resume(10)
    assert losses(second, 10, 20) == expected[10:]


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no compiler\nhere")


def broken_inside(*_: Any, **__: Any) -> Any:
    raise AssertionError("no compiler\nhere")  # as dynamo does of torch 2.11


@pytest.mark.parametrize("fault", [broken, broken_inside])
def test_what_cannot_be_compiled_runs_eagerly_and_says_why(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = losses(small("eager", "backbone.dropout=0.5"), 0, 5)
    monkeypatch.setattr(torch, "compile", lambda function, **_: fault)
    step = small("compiled", "backbone.dropout=0.5")
    assert losses(step, 0, 5) == expected, "the attempt has left no trace, not in the random numbers either"
    error = "RuntimeError" if fault is broken else "AssertionError"
    assert (step.kind, step.why) == ("eager", f"compiled: {error}: no compiler")


def test_an_attempt_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled step is tried out before it counts: parameters, moments and random numbers are put back."""
    expected = losses(small("eager", "backbone.dropout=0.5"), 0, 5)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(train_step, "set_form", lambda optimizer, is_compiled: None)  # the other form must be compiled
    step = small("compiled", "backbone.dropout=0.5")
    assert losses(step, 0, 5) == expected
    assert (step.kind, step.why, step.count.item()) == ("compiled", None, 5)


def test_running_out_of_memory_is_no_reason_to_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def hoard(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("2 GiB")

    monkeypatch.setattr(torch, "compile", lambda function, **_: hoard)
    with pytest.raises(torch.OutOfMemoryError):
        small("compiled")(batch_of(0))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("default")
def test_what_was_compiled_before_runs_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Around a fused kernel, which splits the graph: torch 2.11 to 2.13 took the shapes of its views for others."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    whole = torch.compiler.disable(generalised_delta_rule._chunked)
    monkeypatch.setattr(generalised_delta_rule, "_chunked", whole)
    steps = [small("compiled", "backbone=rwkv7", precision="bf16") for _ in range(2)]
    first, again = (losses(step, 0, 3) for step in steps)
    assert [(step.kind, step.why) for step in steps] == [("compiled", None)] * 2
    assert again == first
    assert counters["aot_autograd"]["autograd_cache_hit"] > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [*map(on_cpu, BACKBONES)])
def test_compiled_steps_give_the_losses_of_eager_ones(name: str) -> None:
    steps = [small(kind, f"backbone={name}", depth(name, 1)) for kind in ("eager", "compiled")]
    expected, found = (losses(step, 0, 50) for step in steps)
    assert [step.kind for step in steps] == ["eager", "compiled"], steps[1].why
    assert found[:2] == pytest.approx(expected[:2], rel=1e-5)
    is_deep = depth(name, 1) != "n_layers=1"  # AdamW starts with steps as large where a gradient is rounding alone
    assert found == pytest.approx(expected, rel=0.1 if is_deep else 1e-3)
    assert expected[-1] < expected[0]
    assert math.isfinite(expected[-1])
