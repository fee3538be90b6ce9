"""The quickstart, whole: what a newcomer's first command gives, and the truths it teaches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arch_bench import results
from arch_bench.results import Row

BACKBONES = {"lstm", "transformer", "local_attention", "mamba"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, "-m", "arch_bench", "experiment=quickstart"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # as a user has it
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return where / "results"


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[Row]:
    return results.load([folder])


def score(rows: list[Row], backbone: str, task: str, metric: str = "token_accuracy") -> float:
    """At the training length."""
    found = [
        r for r in rows if (r.backbone, r.task, r.kind) == (backbone, task, "quality") and r.seq_len == r.train_seq_len
    ]
    return float(found[0].metrics[metric])  # type: ignore[arg-type]


pytestmark = pytest.mark.slow


def test_every_cell_ends_well(folder: Path, rows: list[Row]) -> None:
    assert {row.status for row in rows} == {"ok"}
    assert {(row.backbone, row.task) for row in rows} == {
        (backbone, task) for backbone in BACKBONES for task in ("copy_memory", "mqar", "text")
    }
    assert {row.backbone for row in rows if row.kind == "decode"} == BACKBONES
    for name in ("report.html", "report.md", "rows.csv"):
        assert (folder / "quickstart" / name).stat().st_size > 0


def test_attention_solves_recall_and_a_fixed_state_does_not(rows: list[Row]) -> None:
    assert score(rows, "transformer", "mqar") > 0.98
    assert score(rows, "local_attention", "mqar") < 0.9
    assert score(rows, "lstm", "mqar") < 0.2


def test_a_window_cannot_copy_from_beyond_its_reach(rows: list[Row]) -> None:
    assert score(rows, "transformer", "copy_memory") > 0.98
    assert score(rows, "local_attention", "copy_memory") < 0.2


def test_every_model_of_text_beats_byte_counts(rows: list[Row]) -> None:
    for backbone in BACKBONES:
        bits = score(rows, backbone, "text", "bits_per_byte")
        assert bits < score(rows, backbone, "text", "baseline_unigram") - 0.5


def test_only_full_attention_carries_more_state_for_a_longer_context(rows: list[Row]) -> None:
    for backbone in BACKBONES:
        sizes = [r.metrics["state_bytes"] for r in rows if r.backbone == backbone and r.kind == "decode"]
        assert (len(set(sizes)) > 1) is (backbone == "transformer")
