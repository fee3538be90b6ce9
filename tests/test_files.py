"""Files that are there whole or not at all, and what kills leave of others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arch_bench.results import files

WRITE = """
import os, pathlib, signal, sys
from arch_bench.results import files
with files.whole(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_left_is_swept_up_at_once_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    with files.whole(tmp_path / "mine") as mine:
        subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / "killed")], check=False)
        assert len(list(tmp_path.glob("*.tmp"))) == 2
        files.sweep_up(tmp_path)
        assert [str(path) for path in tmp_path.iterdir()] == [mine.name]
        mine.write(b"all")
    assert (tmp_path / "mine").read_bytes() == b"all"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_of_another_machine_is_left_for_a_day(tmp_path: Path) -> None:
    young, old = tmp_path / "elsewhere-a.tmp", tmp_path / "elsewhere-b.tmp"
    for path in (young, old):
        path.write_text("")
    os.utime(old, (time.time() - 90_000,) * 2)
    files.sweep_up(tmp_path)
    assert list(tmp_path.iterdir()) == [young]


def test_a_file_that_was_swept_up_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = files.fcntl.flock, list[int]()

    def late(file: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            files.sweep_up(tmp_path)
        flock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with files.whole(tmp_path / "a") as file:
        file.write(b"all")
    assert (tmp_path / "a").read_bytes() == b"all"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
