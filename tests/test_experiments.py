"""Every file in conf/experiment: it composes, its cells are allowed, and a cut-down cell of it runs."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from arch_bench.cell import run
from arch_bench.config.instantiate import build
from arch_bench.config.schema import CONF, HYDRA, Cell, cell_of, compose
from arch_bench.config.usage import options
from arch_bench.sweep.plan import NO_ESTIMATE
from arch_bench.sweep.sweep import Sweep

EXPERIMENTS = [name for name in options(CONF, "experiment") if name != "adhoc"]  # which is the absence of one
MANY = {"every_backbone", "mqar_zoology"}
"""Cells, which take long to compose."""


def grid(experiment: str) -> list[list[str]]:
    """The overrides of every cell of the experiment's sweep."""
    compose([f"experiment={experiment}"])
    params: dict[str, Any] = HydraConfig.get().sweeper.params
    with hydra.initialize_config_dir(str(CONF), **HYDRA):  # which knows the options that a glob stands for
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    axes = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
    choices = [list(axis.sweep_string_iterator()) if axis.is_sweep_override() else [axis.value()] for axis in axes]
    names = [axis.get_key_element() for axis in axes]
    return [
        [f"experiment={experiment}", *(f"{k}={v}" for k, v in zip(names, cell, strict=True))]
        for cell in itertools.product(*choices)
    ]


def sample(experiment: str) -> list[Cell]:
    """Cells that between them have every choice beside every other; seeds are all alike."""
    kept, met = [], set[tuple[str, str]]()
    for overrides in grid(experiment):
        pairs = {*itertools.combinations((each for each in overrides if not each.startswith("seed=")), 2)}
        if pairs - met:
            kept.append(cell_of(with_seed(overrides)))
            met |= pairs
    return kept


PLANS = {
    "cost_vs_length": "24 cells, 0 done, 24 to run",
    "decode_vs_context": "48 cells, 0 done, 48 to run",
    "every_backbone": "learning rates, by validation: 114 cells, 0 done, 114 to run; then 114 more",
    "induction_heads": "learning rates, by validation: 6 cells, 0 done, 6 to run; then 6 more",
    "kernels": "12 cells, 0 done, 12 to run",
    "mqar_lengths": "learning rates, by validation: 56 cells, 0 done, 56 to run; then 24 more",
    "mqar_zoology": "learning rates, by validation: 96 cells, 0 done, 96 to run; then 72 more",
    "needle_depths": "learning rates, by validation: 12 cells, 0 done, 12 to run; then 12 more",
    "parity_lengths": "learning rates, by validation: 6 cells, 0 done, 6 to run; then 6 more",
    "quickstart": "12 cells, 0 done, 12 to run",
    "selective_copying": "learning rates, by validation: 6 cells, 0 done, 6 to run; then 6 more",
    "string_copy_lengths": "learning rates, by validation: 12 cells, 0 done, 12 to run; then 12 more",
    "text_bits": "learning rates, by validation: 12 cells, 0 done, 12 to run; then 12 more",
}
"""What a dry run prints."""


@cache
def composed(*overrides: str) -> DictConfig:
    return compose(list(overrides))


def with_seed(overrides: list[str], **values: Any) -> DictConfig:
    """Composed, which takes a tenth of a second, once for all seeds."""
    seed = [each.removeprefix("seed=") for each in overrides if each.startswith("seed=")]
    cfg = copy.deepcopy(composed(*(each for each in overrides if not each.startswith("seed="))))
    for key, value in (values | {"seed": int(*seed)}).items():
        cfg[key] = value
    return cfg


@pytest.mark.parametrize("experiment", [pytest.param(e, marks=[pytest.mark.slow] * (e in MANY)) for e in EXPERIMENTS])
def test_a_dry_run_says_what_there_is_to_do(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep()
    sweep.begin()
    for overrides in grid(experiment):
        sweep.add(with_seed(overrides, dry_run=True, results_dir=str(tmp_path)))
    sweep.run()
    sweep.finish()
    assert capsys.readouterr().out.splitlines() == [PLANS[experiment] + NO_ESTIMATE]
    assert not sweep.mistakes
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["", "protocol=quick", "protocol=grid", "protocol=fair"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_command_itself_takes_it_with_every_protocol(experiment: str, protocol: str, tmp_path: Path) -> None:
    if protocol and experiment in MANY:
        pytest.skip("too many cells to compose them again")
    args = [sys.executable, "-m", "arch_bench", f"experiment={experiment}", "dry_run=true", *protocol.split()]
    done = subprocess.run([*args, f"results_dir={tmp_path}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last == PLANS[experiment] + NO_ESTIMATE if not protocol else " to run" in last


def shrunk(cell: Cell, folder: Path) -> Cell:
    """The same cell, small enough to run here in a second."""
    lengths = {"lengths": [cell.seq_len]}
    steps = {"max_steps": 1, "batch_size": 2, "n_val_batches": 1, "n_test_batches": 1}
    speed = {"n_steps": 3, "tokens_per_step": 2 * cell.seq_len, "max_seconds": 0.1}
    changes = {
        "results_dir": str(folder),
        "isolate": False,
        "device": "cpu",
        "precision": "fp32",
        "logger": {"kind": "none", "project": None, "entity": None},
        "eval_scales": [1],
        "d_model": 16,
        "backbone": cell.backbone | {"d_model": 16, "n_layers": len(cell.backbone["pattern"] or [1])},
        "trainer": cell.trainer.model_dump() | steps,
        "speed": cell.speed.model_dump() | lengths | speed,
        "decode": cell.decode.model_dump() | lengths | {"n_tokens": 2},
    }
    return Cell.model_validate(cell.model_dump() | changes)


def test_there_are_experiments() -> None:
    assert "quickstart" in EXPERIMENTS


@pytest.mark.parametrize("experiment", [pytest.param(e, marks=[pytest.mark.slow] * (e in MANY)) for e in EXPERIMENTS])
def test_cells_of_the_grid_are_allowed(experiment: str) -> None:
    cells = sample(experiment)
    assert len(cells) > 1
    assert {cell.name for cell in cells} == {experiment}
    for cell in cells:
        for scale in cell.eval_scales:
            build(cell, "task").with_length(cell.seq_len * scale)
        build(cell, "backbone", vocab_size=8)


SLOW = {"every_backbone"}
"""Whose cells the contract tests of backbones have been through, each by itself."""


@pytest.mark.parametrize("experiment", [pytest.param(e, marks=[pytest.mark.slow] * (e in SLOW)) for e in EXPERIMENTS])
def test_cells_of_it_run(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each task, and of each backbone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cells = sample(experiment)
    chosen = {cell.task_name: cell for cell in cells} | {cell.backbone_name: cell for cell in cells}
    for cell in chosen.values():
        rows = run.run_cell(shrunk(cell, tmp_path), say=lambda row: None)
        assert {row.kind for row in rows} == set(cell.phases)
        missing = {"unsupported"} if cell.phases == ["kernels"] else set()  # what this machine lacks has a row, too
        assert {row.status for row in rows} - missing == {"ok"}, [row.reason for row in rows]
