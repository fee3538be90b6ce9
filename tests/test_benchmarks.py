"""The benchmark in miniature: every part runs and reports, on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "train_step.py"


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
