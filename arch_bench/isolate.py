"""A function in a fresh process: its crash, its time limit and its memory debris stay its own.

The processes come from a forkserver that has torch and Lightning imported, so that a fresh one costs a fraction of a
second. The server itself never touches a device.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

GRACE_S = 20.0
"""Seconds to save and end in, for a process that is asked to; batch systems kill after some 30."""

_PRELOAD = ["torch", "lightning.pytorch", "arch_bench.run", "arch_bench.quality", "arch_bench.speed"]


class Crashed(Exception):
    """The process died without an answer; the message says how."""


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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOAD, *preload])
    _start_server()
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function, args, dict(setting.env), setting.log))
    try:
        process.start()  # within, so that a Ctrl-C at any moment ends it: at exit Python waits for what it started
        theirs.close()
        answer = _receive(ours, process, time_limit_s)
        process.join(timeout=10)  # it has answered; let it close what it opened
        return answer
    finally:
        _end(process)
        ours.close()


def _start_server() -> None:
    """Deaf to what reaches the whole group: by Ctrl-C it would end among its imports, with a traceback.

    By SIGTERM it would end before its processes, and nobody could tell whether those still save.
    """
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be set
        return
    deaf = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(signum, signal.SIG_IGN) for signum in deaf]  # what it inherits
    try:
        forkserver.ensure_running()  # returns while it imports
    finally:
        for signum, handler in zip(deaf, before, strict=True):
            signal.signal(signum, handler)


def _hear() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:  # in the server: what it forks must not be deaf, not even early
    os.register_at_fork(after_in_child=_hear)


def interrupt() -> None:
    """End the processes of all calls under way in other threads, and let no new one begin: they raise Interrupted."""
    _is_interrupted.set()


def _receive(connection: Connection, process: Any, time_limit_s: float) -> Any:
    end = time.monotonic() + time_limit_s
    while not connection.poll(min(0.5, max(0.0, end - time.monotonic()))):
        if _is_interrupted.is_set():
            raise Interrupted
        if time.monotonic() >= end:
            raise TimedOut(f"stopped after {time_limit_s:g} s (time_limit_s)")
    try:
        succeeded, value = connection.recv()
    except EOFError:
        process.join()
        raise Crashed(_how(process.exitcode)) from None
    if not succeeded:
        raise value
    return value


def _how(exitcode: int) -> str:
    if exitcode > 128:  # it heard the signal, and ended in order
        exitcode = 128 - exitcode
    if exitcode >= 0:
        return f"the process ended by itself with exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    hint = " (often: out of memory)" if name == "SIGKILL" else ""
    return f"the process was ended by {name}{hint}"


def _end(process: Any) -> None:
    """Ask, wait, and insist; at once when somebody interrupts the wait."""
    if not process.is_alive():
        return
    process.terminate()
    try:
        process.join(timeout=GRACE_S)
    finally:
        if process.is_alive():
            process.kill()
            process.join(timeout=5)


def _serve(
    connection: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    env: dict[str, str],
    log: Path | None,
) -> None:
    os.environ.update(env)
    if log is not None:
        _write_to(log)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    gc.freeze()  # what was imported before the fork is never garbage: looking through it takes 0.2 s each time
    threading.Thread(target=_exit_with_parent, args=(connection,), daemon=True).start()
    try:
        answer = (True, function(*args))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        answer = (False, _portable(error))
    connection.send(answer)


def _write_to(log: Path) -> None:
    """All that this process prints, also from below Python."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    faulthandler.enable()


def _portable(error: Exception) -> Exception:
    """The same, or its text where it does not survive the way: those of PyTorch's compiler hold modules."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a foreign class does when it is packed or unpacked
        text = RuntimeError(f"{type(error).__name__}: {error}")
        for note in error.__notes__:
            text.add_note(note)
        return text
    return error


def _exit_with_parent(connection: Connection) -> None:
    """A parent that was killed closes its end of the pipe: end too, rather than measure for nobody."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)
