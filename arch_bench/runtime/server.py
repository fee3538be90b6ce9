"""The process that all others are forked from: it has torch and Lightning imported, and touches no device.

A fresh process then costs a fraction of a second.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import forkserver, process

from arch_bench.runtime import environment, module_path, scratch

_SOCKETS = "ARCH_BENCH_SOCKETS"
"""The folder of the server's socket, in the environment that it is started with."""
_open = ExitStack()
atexit.register(_open.close)
_lock = threading.Lock()


def start() -> None:
    """Start the server, or again one that has died. Raises OSError where there is no place for its socket."""
    with _lock, _deaf(), module_path.environment(), environment.hidden():  # by which what it imports would go
        os.environ[_SOCKETS] = _place()
        try:
            forkserver.ensure_running()  # returns while it imports
        finally:
            del os.environ[_SOCKETS]


def _place() -> str:
    """Return the folder of sockets.

    That of multiprocessing is in TMPDIR, however long its path is, and outlives a kill.
    """
    config = process.current_process()._config  # type: ignore[attr-defined]
    if "tempdir" not in config:
        config["tempdir"] = str(_open.enter_context(scratch.folder(is_short=True)))
    return str(config["tempdir"])


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started within ignores the signals that reach a whole group.

    By Ctrl-C the server would end among its imports, with a traceback. By SIGTERM it would end before its processes,
    and nobody could tell whether those still save. SIGHUP of a terminal that closes, and SIGUSR2, by which a batch
    system tells every process that time is short, would end those too: they stay deaf to both, and the parent asks
    them to save.
    """
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be set
        yield
        return
    deaf = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = [signal.signal(signum, signal.SIG_IGN) for signum in deaf]  # what it inherits
    try:
        yield
    finally:
        for signum, handler in zip(deaf, before, strict=True):
            signal.signal(signum, handler)


def _hear() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if _folder := os.environ.pop(_SOCKETS, None):  # this is the server, which imports this module before it forks
    os.register_at_fork(after_in_child=_hear)  # what it forks must not be deaf, not even early
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)  # it outlives a parent that was killed
