"""A training step as it is timed: how large the batch is, what is counted, and against what."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from arch_bench.config.schema import Cell, cell_of, compose
from arch_bench.cost import check, speed
from arch_bench.ops.kernel import Unsupported
from arch_bench.runtime.measure import PeakMemory

SMALL = ["logger=none", "d_model=16", "n_layers=1", "task.n_pairs=2", "task.vocab_size=64", "speed.n_steps=3"]


def cell_for(folder: Path, *overrides: str) -> Cell:
    return cell_of(compose([*SMALL, "device=cpu", f"results_dir={folder}", *overrides]))


def measured(folder: Path, *overrides: str) -> dict[str, Any]:
    return speed.measure(cell_for(folder, "speed.tokens_per_step=128", *overrides), 32).metrics


@pytest.mark.parametrize(("batching", "expected"), [("constant_tokens", 4), ("single", 1)])
def test_the_batch_is_what_the_policy_says(batching: str, expected: int, tmp_path: Path) -> None:
    found = measured(tmp_path, f"speed.batching={batching}")
    assert (found["batching"], found["batch_size"], found["tokens_per_step"]) == (batching, expected, expected * 32)


def test_utilisation_is_flops_over_time_over_what_the_device_can_do(tmp_path: Path) -> None:
    found = measured(tmp_path)
    projections = 2 * 16 * (3 * 16 + 16) + 2 * 2 * 4 * 16 * 16  # q, k, v, out, and the MLP
    attention = 4 * 16 * (32 + 1) / 2  # scores and values, half of the square and the diagonal
    head = 2 * 16 * 64 * 2 / 32  # 2 of 32 positions are scored
    assert found["flops_per_token"] == 3 * (projections + attention + head)
    assert found["tflops"] == pytest.approx(found["flops_per_token"] * 128 / found["train_step_ms"] / 1e9)
    assert found["matmul_share"] == pytest.approx(found["tflops"] / found["matmul_tflops"])
    assert "mfu" not in found, "nobody has said what this CPU's peak is"


def test_a_scan_counts_apart(tmp_path: Path) -> None:
    found = measured(tmp_path, "backbone=mamba")
    assert found["elementwise_flops_per_token"] == 3 * 9 * (2 * 16) * 16  # d_inner channels of d_state numbers each
    assert measured(tmp_path)["elementwise_flops_per_token"] == 0


def test_a_wrong_kernel_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(check.ALLOWED, "fp32", -1.0)
    with pytest.raises(Unsupported, match="off its reference"):
        measured(tmp_path)


@pytest.mark.parametrize("is_slow", [True, False])
def test_parts_are_parts_of_the_step(is_slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SLOW_S", 0.0 if is_slow else 1e9)
    found = measured(tmp_path)
    assert found["n_timed"] == 3
    assert 0 < found["forward_ms"] < found["forward_backward_ms"] < found["train_step_ms"]
    assert found["n_warmup"] >= 3, "the step that compiles is no warm-up"


def test_activations_are_the_peak_without_what_stays(tmp_path: Path) -> None:
    class Memory(PeakMemory):
        def restart(self, living: Iterable[torch.Tensor] = ()) -> int | None:
            return 700

        def read(self) -> int | None:
            return 1000

    step = speed.TrainingStep(cell_for(tmp_path), 32, speed.Stopwatch(torch.device("cpu")), torch.device("cpu"))
    assert step.memory(Memory(torch.device("cpu"), is_fresh=True)) == {
        "peak_mem_bytes": 1000,
        "activation_bytes": 300,
    }
