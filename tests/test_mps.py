"""The multi-process service, by a script that behaves like NVIDIA's: it starts, it ends for sure, it says why not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arch_bench.launchers import mps

FAKE = rf"""#!/bin/sh
# {mps.CONTROL} in miniature: a daemon that sleeps, its process id where NVIDIA's leaves it
pid_file="$CUDA_MPS_PIPE_DIRECTORY/{mps.CONTROL}.pid"
if [ "$1" = loop ]; then while :; do sleep 0.05; done; fi
if [ "$1" = -d ]; then
    [ -n "$FAKE_FAILS" ] && echo "$FAKE_FAILS" >&2 && exit 1
    [ -n "$FAKE_IS_MUTE" ] && exit 0
    "$0" loop & echo $! > "$pid_file"; echo $! > "$FAKE_TRACE"
    exit 0
fi
[ -f "$pid_file" ] || {{ echo "Cannot find MPS control daemon process" >&2; exit 1; }}
read -r command
case "$command" in
    get_server_list) echo 7;;
    "get_client_list 7") printf '21\n22\n';;
    quit*) [ -n "$FAKE_IS_STUBBORN" ] || {{ kill "$(cat "$pid_file")"; rm "$pid_file"; }};;
esac
"""


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake stands first on PATH; the file holds the process id of the daemon it started last."""
    script = tmp_path / "bin" / mps.CONTROL
    script.parent.mkdir()
    script.write_text(FAKE)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_TRACE", str(tmp_path / "trace"))
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "trace"


def runs(trace: Path) -> bool:
    """A zombie has no command line: nobody may be there to collect it."""
    line = Path(f"/proc/{trace.read_text().strip()}/cmdline")
    return line.exists() and bool(line.read_text())


def ends(trace: Path) -> bool:
    deadline = time.monotonic() + 10
    while runs(trace) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not runs(trace)


def test_it_runs_within_the_block_only(trace: Path) -> None:
    assert mps.obstacle() == ""
    with mps.service() as environment:
        assert runs(trace)
        assert {name: os.environ[name] for name in environment} == environment
        assert "already" in mps.obstacle()
        folder = Path(environment["CUDA_MPS_PIPE_DIRECTORY"]).parent
    assert ends(trace)
    assert not folder.exists()
    assert not environment.keys() & os.environ.keys()
    assert mps.obstacle() == ""


def test_it_counts_its_clients(trace: Path) -> None:
    assert mps.n_clients() == 0
    with mps.service():
        assert mps.n_clients() == 2


def test_an_exception_ends_it(trace: Path) -> None:
    with pytest.raises(ZeroDivisionError), mps.service():
        raise ZeroDivisionError
    assert ends(trace)


def test_one_that_will_not_quit_is_killed(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_IS_STUBBORN", "1")
    with mps.service():
        pass
    assert ends(trace)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_a_parent_that_is_killed(trace: Path, how: signal.Signals) -> None:
    code = (
        "import time; from arch_bench.launchers import mps\nwith mps.service(): print('up', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        assert runs(trace)
        parent.send_signal(how)
    assert ends(trace)


def test_a_failed_start_says_why_and_leaves_nothing(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAILS", "no permission to make a socket")
    with pytest.raises(mps.Unavailable, match="-d: no permission to make a socket"), mps.service():
        pass
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert not list(trace.parent.glob("mps-*"))


def test_a_daemon_that_does_not_answer_is_a_failed_start(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_IS_MUTE", "1")
    monkeypatch.setattr(mps, "_ANSWER_S", 0.3)
    with pytest.raises(mps.Unavailable, match=r"no answer within 0\.3 s"), mps.service():
        pass


def test_a_missing_binary_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mps.obstacle() == f"no {mps.CONTROL} on PATH that may be run"
    with pytest.raises(mps.Unavailable, match="on PATH"), mps.service():
        pass
