"""What the README promises a newcomer: its two additions work as printed, and its tree is the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from models import BACKBONES

from arch_bench import catalog

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def files_in_readme() -> dict[str, str]:
    """Path -> text of every file the README shows: a path in backticks, then its block."""
    return dict(re.findall(r"`([\w/]+\.(?:py|yaml))`[^`]*\n```(?:python|yaml)\n(.*?)```", README, re.DOTALL))


def test_the_tree_names_every_module() -> None:
    tree = README.partition("## The tree")[2]
    for path in (ROOT / "arch_bench").glob("*.py"):
        assert path.name.startswith("__") or f"  {path.name} " in tree, path.name


def test_the_table_of_backbones_is_what_the_catalog_prints() -> None:
    shown = README.partition("<!-- backbones -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == catalog.table(), "python -m arch_bench.catalog prints what belongs there"


@pytest.mark.parametrize("name", [name for name in BACKBONES if f"\n| `{name}` |" in README])
def test_every_mixer_has_a_card(name: str) -> None:
    cells = next(line for line in catalog.table().splitlines() if line.startswith(f"| `{name}` |")).split(" | ")
    assert all(cell.strip() for cell in cells)


@pytest.mark.slow
def test_both_additions_work_as_printed(tmp_path: Path) -> None:
    for part in ("arch_bench", "conf", "tasks", "tests", "pyproject.toml", "README.md"):
        source, copy = ROOT / part, tmp_path / part
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    shown = files_in_readme()
    assert len(shown) == 4
    for path, text in shown.items():
        (tmp_path / path).write_text(text)
    said = re.findall(r"`((?:pytest|arch-bench) [^`]*(?:running_mean|toggle)[^`]*)`", README)
    assert len(said) == 4
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for command in [*said, "pytest tests/test_layers.py", "pytest tests/test_readme.py -k card"]:
        program, *arguments = command.split()
        is_test = program == "pytest"
        arguments += ["-q", "-p", "no:cacheprovider"] if is_test else ["dry_run=true", "logger=none"]
        run = [sys.executable, "-m", program.replace("-", "_"), *arguments]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        found = re.search(r"(\d+) passed" if is_test else r"(\d+) to run", done.stdout)
        assert int(found[1]) >= (10 if is_test else 1), command  # type: ignore[index]
