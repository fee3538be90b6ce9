"""Folders that live as long as a process, and are removed when it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from arch_bench.runtime import scratch

HOLD = """
import sys, time
from arch_bench.runtime import scratch
with scratch.folder() as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_gone_in_the_end(temporary: Path) -> None:
    with scratch.folder() as first, scratch.folder() as second:
        (first / "file").write_text("")
        assert sorted(temporary.iterdir()) == sorted([first, second])
    assert not list(temporary.iterdir())


def test_what_a_kill_left_is_removed_by_the_next_and_what_is_in_use_is_not(temporary: Path) -> None:
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[1])}
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    try:
        dead, living = (Path(str(each.stdout and each.stdout.readline()).strip()) for each in holders)
        assert dead.is_dir()
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        with scratch.folder() as mine:
            assert sorted(temporary.iterdir()) == sorted([living, mine])
    finally:
        for each in holders:
            each.kill()
            each.communicate()


def test_sockets_are_where_their_names_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with scratch.folder() as usual, scratch.folder(is_short=True) as short:
        assert usual.parent == long
        assert len(os.fsencode(short)) < scratch.LONGEST + 20
    monkeypatch.setattr(scratch, "_SHORT", (str(tmp_path / "none"),))
    with pytest.raises(OSError, match=r"TMPDIR=.*xxx"), scratch.folder(is_short=True):
        pass
