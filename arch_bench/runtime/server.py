"""The fork server of all worker processes: it has imported torch and Lightning, and touches no device.

Starting a fresh process then takes a fraction of a second.
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
"""The environment variable with the folder of the server's socket."""
_open = ExitStack()
atexit.register(_open.close)
_lock = threading.Lock()


def start() -> None:
    """Start the server, or restart one that has died. Raises OSError if there is no place for its socket."""
    with _lock, _deaf(), module_path.environment(), environment.hidden():  # the server's imports read those
        os.environ[_SOCKETS] = _place()
        try:
            forkserver.ensure_running()  # returns while the server is still importing
        finally:
            del os.environ[_SOCKETS]


def _place() -> str:
    """Return the folder of sockets.

    Multiprocessing's own folder is in TMPDIR, however long its path is, and is left behind after a kill.
    """
    config = process.current_process()._config  # type: ignore[attr-defined]
    if "tempdir" not in config:
        config["tempdir"] = str(_open.enter_context(scratch.folder(is_short=True)))
    return str(config["tempdir"])


@contextmanager
def _deaf() -> Iterator[None]:
    """Make processes started in this context ignore signals sent to the whole process group.

    On Ctrl-C the server would end among its imports, with a traceback. On SIGTERM it would end before its processes, so
    that a process still saving would go unnoticed. SIGHUP from a closing terminal, and SIGUSR2, by which a batch system
    warns every process that time is short, would end the processes too: they keep ignoring both, and the parent asks
    them to save.
    """
    if threading.current_thread() is not threading.main_thread():  # signals can only be set in the main thread
        yield
        return
    deaf = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = [signal.signal(signum, signal.SIG_IGN) for signum in deaf]  # the server inherits this
    try:
        yield
    finally:
        for signum, handler in zip(deaf, before, strict=True):
            signal.signal(signum, handler)


def _hear() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if _folder := os.environ.pop(_SOCKETS, None):  # this is the server, which imports this module before it forks
    os.register_at_fork(after_in_child=_hear)  # forked processes must accept SIGTERM from the start
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)  # the folder outlives a parent that was killed
