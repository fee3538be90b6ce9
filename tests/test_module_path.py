"""What Python imports: never by accident what lies in the working directory, and never another `tasks`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arch_bench.runtime import module_path, workers

TRAP = "open('executed', 'a').write(__name__)\nraise SystemExit(3)\n"
ASK = """
import sys
from arch_bench.runtime import module_path
module_path.settle()
import numpy, yaml, tasks.base
from arch_bench.runtime import workers
import test_module_path
if __name__ == "__main__":
    assert workers.call(test_module_path.late, time_limit_s=60) == "found"
    print(module_path.clash())
"""


def late() -> str:
    """Import what no fork server has imported, and a module of the user's own."""
    import sndhdr  # noqa: F401

    import own  # type: ignore[import-not-found]

    assert "numpy" in sys.modules
    return str(own.WORD)


def run(folder: Path, *paths: Path | str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, [*paths, module_path.ROOT, Path(__file__).parent]))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("first", [(), ("",)], ids=["as -c has it", "an empty entry of PYTHONPATH"])
def test_modules_of_the_working_directory_come_last(tmp_path: Path, first: tuple[str, ...]) -> None:
    for name in ("numpy", "torch", "yaml", "tasks", "sndhdr"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    (tmp_path / "own.py").write_text("WORD = 'found'")
    done = run(tmp_path, *first)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["tasks.py", "tasks/__init__.py"])
def test_tasks_on_the_path_that_are_others_are_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [each for each in sys.modules if each.partition(".")[0] == "tasks"]:
        monkeypatch.delitem(sys.modules, module)
    assert module_path.clash() == (
        f"tasks: {tmp_path / name} hides the tasks of arch-bench. Rename it, or take its folder off PYTHONPATH."
    )


def test_a_checkout_that_is_not_installed_runs_from_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = ["", "a", str(tmp_path), "b"]
    monkeypatch.chdir(tmp_path)
    assert module_path.ordered(entries, tmp_path) == entries
    assert module_path.ordered(entries, tmp_path / "elsewhere") == ["a", "b", str(tmp_path)]
    assert module_path.ordered(["a", "b"], tmp_path / "elsewhere") == ["a", "b"]


def test_phase_processes_start_no_python_that_looks_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "a", str(tmp_path)]))
    with module_path.environment():
        assert (os.environ["PYTHONSAFEPATH"], os.environ["PYTHONPATH"]) == ("1", "a")
    assert os.environ["PYTHONPATH"].startswith(os.pathsep)
    assert workers.call(len, "ab", time_limit_s=60) == 2
