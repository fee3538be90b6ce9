"""Functions run in fresh processes: crashes, time limits and leftover memory stay contained."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from arch_bench.runtime import answer, joblog, module_path, server
from arch_bench.runtime.console import leavable

T = TypeVar("T")

GRACE_S = 20.0
"""Seconds a process has to save and end after SIGTERM; batch systems kill after some 30."""
SHORT_S, LONG_S = 2.0, 30.0
"""Seconds the other processes have to answer after one crashed, or raised."""
GLANCE_S = 0.5
"""Seconds between a waiting thread's checks for an interrupt."""
_PAUSES_S = (0.0, 0.1, 0.5, 2.0)
"""Seconds before each retry of starting a process."""
_PRELOAD = ["torch", "lightning.pytorch", "arch_bench.cell.run", "arch_bench.train.fit", "arch_bench.cost.speed"]


class Crashed(Exception):
    """Raised when a process dies without an answer; the message describes how."""


class LostPeer(Crashed):
    """Raised when a process loses one of its peers: usually a consequence, rarely the cause, of a failure."""


class TimedOut(Exception):
    """Raised when a process is ended at its time limit."""


class Interrupted(BaseException):
    """Raised when a process is ended because the user, or the system, stops the whole run."""


_is_interrupted = threading.Event()


class Setting(NamedTuple):
    """Environment and log files of a function's process."""

    env: Mapping[str, str] = MappingProxyType({})
    """Environment variables that differ from the caller's; libraries read them at first use."""
    log: Path | None = None
    """A file for its output, which is then not shown; None: the caller's terminal."""
    faults: Path | None = None
    """Without a log, a file for the stack trace of a crash; removed again if there was none."""


def call(
    function: Callable[..., T],
    *args: Any,
    time_limit_s: float,
    preload: Sequence[str] = (),
    setting: Setting = Setting(),  # noqa: B008 (it is immutable)
) -> T:
    """Run `function(*args)` in a fresh process and return its result.

    `preload` names additional modules that the processes will need; it takes effect only when the first of them starts.

    Raises TimedOut, Crashed, or the function's own exception (its traceback is in the notes).
    """
    return call_together(function, [args], time_limit_s=time_limit_s, preload=preload, setting=setting)


def call_together(
    function: Callable[..., T],
    calls: Sequence[tuple[Any, ...]],
    *,
    time_limit_s: float,
    preload: Sequence[str] = (),
    setting: Setting = Setting(),  # noqa: B008 (it is immutable)
) -> T:
    """Run `function(*args)` for each `args` of `calls`, each in a fresh process, at the same time.

    The calls are one job: the result is that of the first, and no process outlives the call. Raises as `call`, for the
    process that fails first, unless the first call still returns a result soon after.
    """
    if _is_interrupted.is_set():
        raise Interrupted
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOAD, *preload])
    server.start()
    pipes = [context.Pipe() for _ in calls]
    processes = [
        context.Process(target=_serve, args=(theirs, function, args, setting._replace(env=dict(setting.env))))
        for (_, theirs), args in zip(pipes, calls, strict=True)
    ]
    try:
        for process, (_, theirs) in zip(processes, pipes, strict=True):
            _start(process)  # inside try, so that Ctrl-C at any moment ends it: at exit Python waits for its children
            theirs.close()
        found = _receive([ours for ours, _ in pipes], processes, time_limit_s, setting.log)
        for process in processes:
            process.join(timeout=10)  # it has answered; let it close its resources
        return found
    finally:
        _end(processes)
        if setting.log is not None:
            joblog.bound(setting.log)
        for ours, _ in pipes:
            ours.close()


def _start(process: Any) -> None:
    """Start a process, with a new server if the old one has just died, perhaps because of another cell.

    A killed server refuses connections some moments before it can be seen to be dead, so one retry is too few.
    """
    for pause_s in _PAUSES_S:
        try:
            process.start()
            return
        except (ConnectionError, EOFError):
            time.sleep(pause_s)
            server.start()
    process.start()


def interrupt() -> None:
    """End the processes of all calls running in other threads, and start no new ones: the calls raise Interrupted."""
    _is_interrupted.set()


def end_all() -> None:
    """Interrupt all calls, and wait until their processes have saved and ended.

    Meant for signal handlers: the handler may have interrupted this thread in a call, whose processes no other code
    would end.
    """
    interrupt()
    _end(multiprocessing.active_children())


def _receive(connections: list[Connection], processes: list[Any], time_limit_s: float, log: Path | None) -> Any:
    """Return the answer of the first process.

    After a failure the other processes get some time to answer: the same failure may have reached the first, whose
    report is more informative; and a process that lost a peer may report before the peer's end is detected.
    """
    waiting = dict(zip(connections, processes, strict=True))
    failures: list[Exception] = []
    end = time.monotonic() + time_limit_s
    while waiting and (left := end - time.monotonic()) > 0:
        if _is_interrupted.is_set():
            raise Interrupted
        for one in _ready(waiting, min(left, GLANCE_S)):
            succeeded, value = _read(one, waiting.pop(one), connections.index(one) if len(connections) > 1 else None)
            if succeeded and one is connections[0]:
                return value
            if not succeeded:
                failures.append(value)
                is_final = isinstance(value, Crashed) or one is connections[0]
                end = min(end, time.monotonic() + (SHORT_S if is_final else LONG_S))
        if log is not None:
            joblog.bound(log)
    if _is_interrupted.is_set():  # the interrupt ended the process, whatever the failure looks like here
        raise Interrupted
    if not failures:
        raise TimedOut(f"stopped after {time_limit_s:g} s (time_limit_s)")
    raise next((failure for failure in failures if not isinstance(failure, LostPeer)), failures[0])


def _ready(waiting: dict[Connection, Any], patience_s: float) -> list[Connection]:
    """Wait for an answer, or for the end of a process: its own forks may keep its connection open."""
    ready = set(wait([*waiting, *(process.sentinel for process in waiting.values())], patience_s))
    return [one for one, process in waiting.items() if one in ready or process.sentinel in ready]


def _read(connection: Connection, process: Any, rank: int | None) -> tuple[bool, Any]:
    """Return True with the process's result, or False with its exception."""
    where = "" if rank is None else f"rank {rank}: "
    try:
        if connection.poll(0):  # else it ended without an answer
            return answer.read(connection.recv_bytes())
    except ValueError as error:
        return False, Crashed(f"{where}{error}")
    except (EOFError, OSError):  # no answer, or part of one
        pass
    process.join(GRACE_S + SHORT_S)  # it may have closed its connection and still be running
    return False, Crashed(where + answer.ending(process.exitcode))


def _end(processes: Sequence[Any]) -> None:
    """Terminate all processes, wait, then kill the rest; kill at once if the wait is interrupted."""
    living = [process for process in processes if process.is_alive()]
    for process in living:
        process.terminate()
    end = time.monotonic() + GRACE_S
    try:
        for process in living:
            process.join(timeout=max(0.0, end - time.monotonic()))
    finally:
        for process in living:
            if process.is_alive():
                process.kill()
                process.join(timeout=5)


def _serve(
    connection: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    setting: Setting,
) -> None:
    os.environ.update(setting.env)
    sys.path[:] = module_path.ordered(sys.path)
    if setting.log is not None:
        _write_to(setting.log)
    if setting.faults is not None:
        _tell_faults(setting.faults)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    gc.freeze()  # imports before the fork are never garbage: scanning them takes 0.2 s each time
    threading.Thread(target=_exit_with_parent, args=(connection,), daemon=True).start()
    try:
        with leavable():
            packed = answer.of_result(function(*args))
    except SystemExit:  # it was asked to end, or wants to
        raise
    except BaseException as error:
        packed = answer.of_error(error)
    finally:
        if setting.faults is not None:
            _forget(setting.faults)
    connection.send_bytes(packed)


def _write_to(log: Path) -> None:
    """Redirect all output of this process to a log, including output from below Python."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    faulthandler.enable()


def _tell_faults(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    faulthandler.enable(path.open("a"))


def _forget(path: Path) -> None:
    """Remove the file if it is empty."""
    with suppress(FileNotFoundError):  # it had a log instead
        if not path.stat().st_size:
            path.unlink()


def _exit_with_parent(connection: Connection) -> None:
    """End when the parent has been killed, which closes its end of the pipe: the result would have no reader."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)
