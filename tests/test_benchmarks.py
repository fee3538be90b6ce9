"""The benchmarks in miniature: every part runs and reports, on a CPU."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from arch_bench.config.schema import CONF
from arch_bench.config.usage import options

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPT = BENCHMARKS / "train_step.py"


def test_the_campaign_lists_experiments_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    campaign = importlib.import_module("campaign")
    found = list(campaign.items((campaign.PUBLISHED / "CAMPAIGN.md").read_text()))
    assert found
    assert {item.name for item in found} <= set(options(CONF, "experiment"))
    with pytest.raises(ValueError, match="names no experiment"):
        list(campaign.items("arch-bench -m backbone=lstm"))


def test_a_campaign_goes_on_from_published_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    campaign = importlib.import_module("campaign")
    published, results = tmp_path / "published", tmp_path / "results"
    (published / "a" / "rows").mkdir(parents=True)
    (published / "a" / "rows" / "1.json").write_text("published")
    (results / "a" / "rows").mkdir(parents=True)
    (results / "a" / "rows" / "2.json").write_text("newer")
    monkeypatch.setattr(campaign, "PUBLISHED", published)
    campaign.begin_with_published("a", results)
    assert {path.name: path.read_text() for path in (results / "a" / "rows").iterdir()} == {
        "1.json": "published",
        "2.json": "newer",
    }


@pytest.mark.slow
def test_every_part_measures(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--smoke", "--models", "zoology", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    for part in ("steps", "solve", "lm", "data", "head"):
        assert found[part], part
        assert not [record for record in found[part] if "error" in record]
        assert f"{part}: " in done.stdout
    stock, harness = (next(r for r in found["steps"] if r["loop"] == loop) for loop in ("stock Lightning", "harness"))
    assert min(stock["steps_per_s"], harness["steps_per_s"], harness["in_trainer"]) > 0
    assert harness["step"] == "eager"


@pytest.mark.slow
def test_task_rates_of_what_is_allowed(tmp_path: Path) -> None:
    out = tmp_path / "rates.json"
    command = [sys.executable, str(SCRIPT.with_name("task_rates.py")), "--out", str(out)]
    command += ["--device", "cpu", "--tasks", "mqar,pg19", "--lengths", "16,17"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    made, refused = found["records"]
    assert made["examples_per_s"] == pytest.approx(made["examples_in_a_block"] / made["block_ms"] * 1e3)
    assert made["examples_in_a_block"] == 640
    assert "seq_len=17 is odd" in refused["refused"]
    assert found["downloaded_and_skipped"] == ["pg19"]
    assert re.search(r"\| `mqar` +\| +[\d,]+ \| +refused \|", done.stdout)


@pytest.mark.slow
def test_scaling_is_measured_for_every_strategy(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    command = [sys.executable, str(BENCHMARKS / "scaling.py"), "--smoke", "--steps", "4", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    points = json.loads(out.read_text())["points"]
    assert [(p["strategy"], p["n_devices"], p["mode"], p["batch_size"]) for p in points] == [
        ("single", 1, "-", 4),
        *((strategy, 2, mode, size) for strategy in ("ddp", "fsdp") for mode, size in (("weak", 8), ("strong", 4))),
    ]
    assert all(p["tokens_per_s"] > 0 and p["efficiency"] > 0 for p in points), points
    assert "| fsdp " in done.stdout
