"""The phase that times every implementation of a mixer, and the library's own layer beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import CORE, depth

from arch_bench.cell import run
from arch_bench.config.schema import Cell, ConfigError, cell_of, compose, with_kernel
from arch_bench.cost import kernels
from arch_bench.mixers.recurrent import LSTM
from arch_bench.ops.kernel import Unsupported
from arch_bench.results import Row

SMALL = ["logger=none", "isolate=false", "device=cpu", "d_model=16", "n_layers=1", "phases=[kernels]"]
SPEED = ["speed.lengths=[32,64]", "speed.tokens_per_step=64", "speed.n_steps=3", "speed.max_seconds=0.2"]


def cell_for(name: str, folder: Path, *overrides: str) -> Cell:
    return cell_of(compose([*SMALL, *SPEED, f"backbone={name}", depth(name, 1), f"results_dir={folder}", *overrides]))


@pytest.mark.parametrize("name", CORE)
def test_every_implementation_has_a_row_at_every_length(name: str, tmp_path: Path) -> None:
    cell = cell_for(name, tmp_path)
    names = kernels.contenders(cell)
    assert {"reference"} < set(names)
    rows = run.run_cell(cell, say=lambda row: None)
    assert [(row.seq_len, row.kernel) for row in rows] == [(n, k) for n in (32, 64) for k in names]
    assert {row.status for row in rows} <= {"ok", "unsupported"}
    for length in (32, 64):
        timed = [row for row in rows if row.seq_len == length and row.status == "ok"]
        assert sum(row.metrics["is_auto"] for row in timed) == 1, "one of them is what auto takes"  # type: ignore[misc]
        for row in timed:
            check(row, 64 // length)
    assert run.run_cell(cell, say=lambda row: None) == rows, "the second time all is there"


def test_a_hybrid_is_told_to_name_one_mixer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compares the kernels of one mixer; choose one of mamba, local_attention"):
        run.run_cell(cell_for("samba", tmp_path), say=lambda row: None)


def check(row: Row, batch_size: int) -> None:
    assert row.metrics["forward_ms"] > 0  # type: ignore[operator]
    assert row.metrics["forward_backward_ms"] > 0  # type: ignore[operator]
    assert (row.metrics["batch_size"], row.metrics["step"]) == (batch_size, "eager")
    assert ("gate_error" in row.metrics) == (not row.metrics["is_bare"])


def test_what_cannot_run_here_says_so_in_its_row(tmp_path: Path) -> None:
    rows = run.run_cell(cell_for("transformer", tmp_path), say=lambda row: None)
    flash = next(row for row in rows if row.kernel == "sdpa_flash")
    assert (flash.status, flash.seq_len) == ("unsupported", 32)
    assert "needs a CUDA device" in flash.reason


def test_a_bare_call_is_the_same_work(tmp_path: Path) -> None:
    cell = cell_for("lstm", tmp_path)
    mixer = kernels._backbone(cell, "auto", 32).mixer
    x = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixer.bare()["torch.nn.LSTM"](x), mixer(x))


def test_what_a_library_does_not_take_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise RuntimeError("only multiples of 3\nin C++")

    monkeypatch.setattr(LSTM, "_plain", refuse)
    with pytest.raises(Unsupported, match=r"^only multiples of 3$"):
        kernels.measure(cell_for("lstm", tmp_path), 32, "torch.nn.LSTM")


def test_a_kernel_is_changed_wherever_it_is_named(tmp_path: Path) -> None:
    cell = cell_for("mamba", tmp_path)
    nested = cell.model_copy(update={"backbone": {"kernel": "a", "pattern": [{"kernel": "b", "n": 1}, "c"]}})
    found = with_kernel(nested, "reference")
    assert found.backbone == {"kernel": "reference", "pattern": [{"kernel": "reference", "n": 1}, "c"]}
    assert found.kernel == "reference"
    assert nested.backbone["kernel"] == "a"
