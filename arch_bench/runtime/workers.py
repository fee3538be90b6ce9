"""A function in a fresh process: its crash, its time limit and its memory debris stay its own."""

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
"""Seconds to save and end in, for a process that is asked to; batch systems kill after some 30."""
SHORT_S, LONG_S = 2.0, 30.0
"""How long the others may still answer after one of them crashed, or raised."""
GLANCE_S = 0.5
"""How often a thread that waits looks whether all of it shall end."""
_PRELOAD = ["torch", "lightning.pytorch", "arch_bench.cell.run", "arch_bench.train.fit", "arch_bench.cost.speed"]


class Crashed(Exception):
    """The process died without an answer; the message says how."""


class LostPeer(Crashed):
    """A process that works with others lost one of them: rarely the reason, mostly what follows from it."""


class TimedOut(Exception):
    """The process was ended at its time limit."""


class Interrupted(BaseException):
    """The process was ended because the user, or the system, wants all of it to end."""


_is_interrupted = threading.Event()


class Setting(NamedTuple):
    """Where a function runs and what it may write to."""

    env: Mapping[str, str] = MappingProxyType({})
    """Environment variables that differ from the caller's; libraries read them at first use."""
    log: Path | None = None
    """A file for what it prints, which then is not seen; None: the caller's terminal."""
    faults: Path | None = None
    """Without a log, a file for where in the code it was when it crashed; gone again when it did not."""


def call(
    function: Callable[..., T],
    *args: Any,
    time_limit_s: float,
    preload: Sequence[str] = (),
    setting: Setting = Setting(),  # noqa: B008 (it cannot be changed)
) -> T:
    """Run `function(*args)` in a fresh process and return its result.

    `preload` names modules that the processes will need besides; it counts when the first of them starts.

    Raises TimedOut, Crashed, or the function's own exception (its traceback is in the notes).
    """
    return call_together(function, [args], time_limit_s=time_limit_s, preload=preload, setting=setting)


def call_together(
    function: Callable[..., T],
    calls: Sequence[tuple[Any, ...]],
    *,
    time_limit_s: float,
    preload: Sequence[str] = (),
    setting: Setting = Setting(),  # noqa: B008 (it cannot be changed)
) -> T:
    """Run `function(*args)` for each `args` of `calls`, each in a fresh process, at the same time.

    They are one undertaking: its result is that of the first, and none outlives it. Raises as `call`, for whichever
    fails first, unless the first of them ends by itself soon after.
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
            _start(process)  # within, so that a Ctrl-C at any moment ends it: at exit Python waits for what it started
            theirs.close()
        found = _receive([ours for ours, _ in pipes], processes, time_limit_s, setting.log)
        for process in processes:
            process.join(timeout=10)  # it has answered; let it close what it opened
        return found
    finally:
        _end(processes)
        if setting.log is not None:
            joblog.bound(setting.log)
        for ours, _ in pipes:
            ours.close()


def _start(process: Any) -> None:
    try:
        process.start()
    except (ConnectionError, EOFError):  # the server died just now, perhaps by the doing of another cell
        server.start()
        process.start()


def interrupt() -> None:
    """End the processes of all calls under way in other threads, and let no new one begin: they raise Interrupted."""
    _is_interrupted.set()


def end_all() -> None:
    """Interrupt all calls, and wait until their processes have saved and ended.

    For a signal handler: it may have taken this very thread out of a call, whose processes nobody else would end.
    """
    interrupt()
    _end(multiprocessing.active_children())


def _receive(connections: list[Connection], processes: list[Any], time_limit_s: float, log: Path | None) -> Any:
    """The answer of the first.

    After a failure the others have a while to answer: what failed elsewhere may have reached the first, too, which
    then has more to say; and who lost a peer may speak before the peer's end is known.
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
    if _is_interrupted.is_set():  # which ended the process, whatever that looks like from here
        raise Interrupted
    if not failures:
        raise TimedOut(f"stopped after {time_limit_s:g} s (time_limit_s)")
    raise next((failure for failure in failures if not isinstance(failure, LostPeer)), failures[0])


def _ready(waiting: dict[Connection, Any], patience_s: float) -> list[Connection]:
    """Wait for an answer, or for the end of a process: what it forked itself may hold its connection open."""
    ready = set(wait([*waiting, *(process.sentinel for process in waiting.values())], patience_s))
    return [one for one, process in waiting.items() if one in ready or process.sentinel in ready]


def _read(connection: Connection, process: Any, rank: int | None) -> tuple[bool, Any]:
    """Whether the process succeeded, and its result or exception."""
    where = "" if rank is None else f"rank {rank}: "
    try:
        if connection.poll(0):  # else it has ended without
            return answer.read(connection.recv_bytes())
    except ValueError as error:
        return False, Crashed(f"{where}{error}")
    except (EOFError, OSError):  # nothing, or a part
        pass
    process.join(GRACE_S + SHORT_S)  # it may have closed its connection, and live on
    return False, Crashed(where + answer.ending(process.exitcode))


def _end(processes: Sequence[Any]) -> None:
    """Ask all, wait, and insist; at once when somebody interrupts the wait."""
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
    gc.freeze()  # what was imported before the fork is never garbage: looking through it takes 0.2 s each time
    threading.Thread(target=_exit_with_parent, args=(connection,), daemon=True).start()
    try:
        with leavable():
            packed = answer.of_result(function(*args))
    except Exception as error:
        packed = answer.of_error(error)
    finally:
        if setting.faults is not None:
            _forget(setting.faults)
    connection.send_bytes(packed)


def _write_to(log: Path) -> None:
    """All that this process prints, also from below Python."""
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
    """A file that nothing was written to."""
    with suppress(FileNotFoundError):  # it had a log
        if not path.stat().st_size:
            path.unlink()


def _exit_with_parent(connection: Connection) -> None:
    """A parent that was killed closes its end of the pipe: end too, rather than measure for nobody."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)
