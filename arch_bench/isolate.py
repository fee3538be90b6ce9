"""A function in a fresh process: its crash, its time limit and its memory debris stay its own.

The processes come from a forkserver that has torch and Lightning imported, so that a fresh one costs a fraction of a
second. The server itself never touches a device.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")

GRACE_S = 20.0
"""Seconds to save and end in, for a process that is asked to; batch systems kill after some 30."""

_PRELOAD = ["torch", "lightning.pytorch", "arch_bench.run", "arch_bench.quality", "arch_bench.speed"]


class Crashed(Exception):
    """The process died without an answer; the message says how."""


class TimedOut(Exception):
    """The process was ended at its time limit."""


def call(function: Callable[..., T], *args: Any, time_limit_s: float, preload: Sequence[str] = ()) -> T:
    """Run `function(*args)` in a fresh process and return its result.

    `preload` names modules that the processes will need besides; it counts when the first of them starts.

    Raises TimedOut, Crashed, or the function's own exception (its traceback is in the notes).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOAD, *preload])
    _start_server()
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function, args))
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


def _receive(connection: Connection, process: Any, time_limit_s: float) -> Any:
    if not connection.poll(time_limit_s):
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


def _serve(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    gc.freeze()  # what was imported before the fork is never garbage: looking through it takes 0.2 s each time
    threading.Thread(target=_exit_with_parent, args=(connection,), daemon=True).start()
    try:
        answer = (True, function(*args))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        answer = (False, error)
    connection.send(answer)


def _exit_with_parent(connection: Connection) -> None:
    """A parent that was killed closes its end of the pipe: end too, rather than measure for nobody."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)
