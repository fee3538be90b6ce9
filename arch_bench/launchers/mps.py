"""NVIDIA's multi-process service (MPS): processes that share a GPU run side by side instead of in turns.

The service is a separate daemon. It starts in a temporary folder, serves only processes that get its environment, and
changes no GPU setting.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arch_bench.runtime import scratch

CONTROL = "nvidia-cuda-mps-control"
_ANSWER_S = 5.0
"""Time limit in seconds for the daemon to start, or to answer."""
_END_S = 30.0
"""Time limit in seconds for the daemon to end: it is asked to quit, and killed after about 20."""

_WATCHER = f"""
read -r _
timeout 15 sh -c 'echo "quit -t 5" | {CONTROL}' >/dev/null 2>&1
pid=$(cat "$CUDA_MPS_PIPE_DIRECTORY/{CONTROL}.pid" 2>/dev/null)
if [ -n "$pid" ]; then
    for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" 2>/dev/null || break; sleep 0.3; done
    grep -qs {CONTROL} "/proc/$pid/cmdline" && kill -9 "$pid"
fi
rm -rf "$0"
"""
"""Shell script that ends MPS after a line of input, or at the end of input, which any death of its parent causes."""


class Unavailable(Exception):
    """Raised when MPS cannot be started; the message gives the reason."""


def obstacle() -> str:
    """Return the reason why MPS cannot start here; empty if there is none, though starting may still fail."""
    if shutil.which(CONTROL) is None:
        return f"no {CONTROL} on PATH that may be run"
    if _answers(os.environ.copy()):
        return "an MPS daemon runs already, and every process is its client"
    return ""


@contextmanager
def service() -> Iterator[dict[str, str]]:
    """Run MPS within the block, and yield the variables that make a process its client.

    The variables are also set in this process, for the children that it starts inside the block. A process that
    already exists, including children of a forkserver, must set them before it first uses CUDA. The daemon and its
    remaining clients end with the block, or with this process, whichever signal kills it.

    Raises Unavailable.
    """
    if why := obstacle():
        raise Unavailable(why)
    folder = Path(tempfile.mkdtemp(prefix="mps-", dir=scratch.short()))  # short, because sockets live in it
    ours = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "log")}
    for name in ours.values():
        Path(name).mkdir()
    before = {name: os.environ.get(name) for name in ours}
    watcher = _watch(folder, os.environ | ours)
    try:
        _start(folder, os.environ | ours)
        os.environ.update(ours)
        yield ours
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        _release(watcher)


def _watch(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the watcher in its own session, so that signals sent to a terminal's process group do not reach it."""
    command = ["sh", "-c", _WATCHER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


def _release(watcher: subprocess.Popen[bytes]) -> None:
    """Send the watcher a line rather than closing the pipe: a forked child may hold the pipe open."""
    try:
        watcher.communicate(b"\n", timeout=_END_S)
    except subprocess.TimeoutExpired:
        watcher.kill()
        watcher.communicate()


def _start(folder: Path, environment: dict[str, str]) -> None:
    said = folder / "start"  # a file: the daemon keeps its output open, so a pipe would never end
    with said.open("wb") as output:
        try:
            done = subprocess.run(
                [CONTROL, "-d"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=_ANSWER_S,
                start_new_session=True,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{CONTROL} -d: {error}") from error
    if done.returncode:
        text = said.read_text(errors="replace").strip() or f"exit code {done.returncode}"
        raise Unavailable(f"{CONTROL} -d: {text.splitlines()[0]}")
    deadline = time.monotonic() + _ANSWER_S
    while not _answers(environment):
        if time.monotonic() > deadline:
            raise Unavailable(f"{CONTROL} -d: no answer within {_ANSWER_S:g} s")
        time.sleep(0.1)


def n_clients() -> int:
    """Count the current clients of the service, over the servers of all users."""
    servers = (_ask("get_server_list", os.environ.copy()) or "").split()
    return sum(len((_ask(f"get_client_list {server}", os.environ.copy()) or "").split()) for server in servers)


def _answers(environment: dict[str, str]) -> bool:
    """Check if a daemon listens in the folder that the environment names, or in the default one."""
    return _ask("get_server_list", environment) is not None


def _ask(command: str, environment: dict[str, str]) -> str | None:
    """Send the daemon a command and return its answer; None if no daemon answers."""
    try:
        done = subprocess.run(
            [CONTROL],
            input=f"{command}\n",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_ANSWER_S,
            check=False,
            text=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
