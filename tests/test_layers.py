"""Imports point one way: what each part of the harness may import from this repository, read off the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HARNESS = sorted((ROOT / "arch_bench").rglob("*.py"))
TASKS = sorted((ROOT / "tasks").glob("*.py"))

MAY_IMPORT: dict[str, set[str]] = {
    "files": set(),
    "plain": set(),
    "row_fields": set(),
    "results": {"files", "plain", "row_fields"},
    "provenance": set(),
    "usage": set(),
    "complaint": {"usage"},
    "values": {"complaint"},
    "hybrid": {"complaint", "usage"},
    "config": {"complaint", "hybrid", "usage", "values"},
    "jobs": {"complaint"},
    "arguments": {"complaint"},
    "lineage": set(),
    "objects": {"complaint", "config", "lineage"},
    "examples": {"complaint", "config", "console", "objects", "usage", "tasks.base"},
    "ops": {"ops"},
    "positions": {"ops"},
    "norm": set(),
    "mixers": {"ops", "norm", "positions", "mixers"},
    "block": {"ops", "norm", "mixers.base"},
    "backbone": {"block", "norm", "positions", "mixers.base"},
    "encoder_decoder": {"backbone", "block", "positions", "mixers.base"},
    "precision": {"config"},
    "seed": set(),
    "team": {"ops", "seed", "tasks.base"},
    "distributed": {"isolate", "scratch", "team", "threads"},
    "optimizer": {"config"},
    "graph": set(),
    "train_step": {"backbone", "config", "graph", "ops", "optimizer", "precision", "tasks.base", "team"},
    "data": {"team", "train_step", "tasks.base"},
    "generation": {"backbone", "decoder", "mixers.base", "train_step", "tasks.base"},
    "lit": {"generation", "precision", "train_step", "tasks.base"},
    "environment": set(),
    "strategy": {"team"},
    "trainer": {"strategy", "team"},
    "guard": {"answer", "ops", "results"},
    "threads": {"results"},
    "measure": {"threads", "config"},
    "checkpoint": {"config", "files", "lit", "measure", "provenance", "results", "team"},
    "quality": {
        "checkpoint",
        "data",
        "config",
        "objects",
        "guard",
        "lit",
        "measure",
        "ops",
        "precision",
        "pruning",
        "results",
        "seed",
        "team",
        "train_step",
        "trainer",
        "tasks.base",
    },
    "match": {"config", "isolate", "objects", "ops"},
    "catalog": {"config", "objects", "mixers.base", "results", "usage"},
    "search": set(),
    "ceiling": {"measure", "precision"},
    "energy": {"measure"},
    "gate": {"backbone", "config", "objects", "ops", "precision", "results"},
    "speed": {
        *("backbone", "ceiling", "config", "objects", "energy", "gate", "measure", "ops", "precision", "results"),
        *("seed", "team", "train_step", "tasks.base"),
    },
    "decoder": {"backbone", "graph", "mixers.base"},
    "kernels": {"backbone", "config", "objects", "gate", "graph", "measure", "ops", "precision", "results", "seed"},
    "decode": {
        *(
            "backbone",
            "ceiling",
            "config",
            "objects",
            "decoder",
            "energy",
            "gate",
            "graph",
            "measure",
            "mixers.base",
            "precision",
        ),
        "results",
        "seed",
    },
    "console": set(),
    "scratch": set(),
    "module_path": set(),
    "answer": set(),
    "joblog": set(),
    "server": {"environment", "module_path", "scratch"},
    "isolate": {"answer", "console", "joblog", "module_path", "server"},
    "claim": set(),
    "mps": {"scratch"},
    "tracking": {"config", "environment", "results"},
    "run": {
        *("answer", "claim", "config", "distributed", "guard", "isolate", "joblog", "match", "measure", "precision"),
        *("results", "search", "shape", "tracking", "train_step", "kernels"),
    },
    "shape": {
        *("checkpoint", "config", "distributed", "environment", "guard", "measure", "ops", "precision", "provenance"),
        *("results", "team", "threads", "tracking", "quality", "speed", "decode", "kernels"),
    },
    "learning_rate": set(),
    "report": {"files", "learning_rate", "results", "report"},
    "row_line": {"results"},
    "protocol": {"config", "learning_rate", "match", "results"},
    "space": set(),
    "journal": {"config"},
    "pruning": {"config", "guard", "journal", "team"},
    "optuna_search": {"claim", "config", "journal", "protocol", "results", "run", "seed", "space"},
    "plan": {"complaint", "config", "isolate", "objects", "ops", "results", "run", "tasks.base"},
    "launchers": {
        *("claim", "complaint", "config", "isolate", "launchers", "measure", "mps", "results", "row_line", "run"),
        *("scratch", "shape", "threads"),
    },
    "sweep": {
        *("claim", "complaint", "config", "environment", "files", "jobs", "objects", "launchers", "plan", "protocol"),
        *("report", "results", "scratch", "space", "tracking"),
    },
    "cli": {"arguments", "complaint", "config", "console", "module_path", "objects", "sweep", "usage"},
    "__main__": {"cli", "module_path"},
    "__init__": set(),
}
"""Part of `arch_bench` -> parts it may import; `tasks.base` is the contract, and the only file of `tasks`."""


def imports(path: Path) -> set[str]:
    """Modules of this repository that a file imports, by dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            is_package = module in {"arch_bench", "tasks"} or (ROOT / module.replace(".", "/")).is_dir()
            found |= {f"{module}.{alias.name}" for alias in node.names} if is_package else {module}
    return {name for name in found if name.startswith((".", "arch_bench", "tasks"))}


def violations(part: str, names: set[str]) -> set[str]:
    allowed = MAY_IMPORT[part]
    local = {name.removeprefix("arch_bench.") for name in names}
    return {name for name in local if not any(name == one or name.startswith(f"{one}.") for one in allowed)}


@pytest.mark.parametrize("path", HARNESS, ids=lambda path: str(path.relative_to(ROOT)))
def test_harness_imports_downwards_only(path: Path) -> None:
    part = path.relative_to(ROOT / "arch_bench").parts[0].removesuffix(".py")
    assert part in MAY_IMPORT, f"give {part} a place in the table"
    assert not violations(part, imports(path))


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.name)
def test_tasks_never_import_the_harness(path: Path) -> None:
    assert all(name.startswith("tasks.") for name in imports(path))


def test_the_reader_sees_a_violation(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("def late():\n    from arch_bench.mixers.attention import Attention\n    import tasks.recall\n")
    assert violations("lit", imports(planted)) == {"mixers.attention", "tasks.recall"}


@pytest.mark.parametrize("word", ["mixers.attention", "mixers.mamba", "mixers.recurrent", "tasks.recall"])
def test_no_part_may_import_a_concrete_mixer_or_task(word: str) -> None:
    users = {part for part in MAY_IMPORT if part != "mixers" and not violations(part, {word})}
    assert not users
