"""Imports point one way: what each part of the harness may import from this repository, read off the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HARNESS = sorted((ROOT / "arch_bench").rglob("*.py"))
TASKS = sorted((ROOT / "tasks").glob("*.py"))

_MODEL = {"ops", "norm", "positions", "block", "backbone", "mixers.base"}
_BASIC = {"config", "results", "tasks.base"}
MAY_IMPORT: dict[str, set[str]] = {
    "results": set(),
    "config": set(),
    "ops": set(),
    "norm": set(),
    "positions": {"ops"},
    "mixers": {"ops", "norm", "positions"},
    "block": {"ops", "norm", "mixers.base"},
    "backbone": {"block", "norm", "positions", "mixers.base"},
    "encoder_decoder": {"backbone", "block", "positions", "mixers.base"},
    "runtime": _BASIC | _MODEL,
    "tracking": _BASIC | {"runtime"},
    "train": _BASIC | _MODEL | {"runtime"},
    "cost": _BASIC | _MODEL | {"runtime", "train"},
    "cell": _BASIC | _MODEL | {"runtime", "tracking", "train", "cost"},
    "report": {"results", "sweep.rates"},
    "launchers": {"config", "results", "runtime", "cell"},
    "sweep": {"config", "ops", "results", "tasks.base", "runtime", "tracking", "train", "cell", "launchers", "report"},
    "catalog": {"config", "results", "mixers.base"},
    "examples": {"config", "runtime", "tasks.base"},
    "cli": {"config", "runtime", "sweep"},
    "__main__": {"cli", "runtime"},
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
    allowed = MAY_IMPORT[part] | {part}
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
    assert violations("train", imports(planted)) == {"mixers.attention", "tasks.recall"}


@pytest.mark.parametrize("word", ["mixers.attention", "mixers.mamba", "mixers.recurrent", "tasks.recall"])
def test_no_part_may_import_a_concrete_mixer_or_task(word: str) -> None:
    users = {part for part in MAY_IMPORT if part != "mixers" and not violations(part, {word})}
    assert not users
