"""A process that keeps what it has made from one question to the next. It ends with whoever asks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any


class Failed(Exception):
    """No answer: what the process raised, how it ended, or that it took too long."""


class Worker:
    """A fresh process from a forkserver that has imported torch, with an object `packed.Bench` in it.

    Args:
        environment: variables that it sets before it touches a device.
        compile_threads: how many it compiles with.
    """

    def __init__(self, environment: dict[str, str], compile_threads: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["packed"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, environment, compile_threads))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def ask(self, method: str, *args: Any) -> None:
        """Have it call a method of its object; `answer` waits for the result, and says so when nobody is there."""
        with suppress(OSError):
            self._pipe.send((method, args))

    def answer(self, until: float) -> Any:
        """What the method returned. One that has not by then, on the monotonic clock, is ended. Raises Failed."""
        try:
            if not self._pipe.poll(max(0.0, until - time.monotonic())):
                self.end()
                raise Failed("no answer in time")
            succeeded, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=5)
            raise Failed(f"its process ended with exit code {self._process.exitcode}") from error
        if not succeeded:
            raise Failed(value)
        return value

    def release(self) -> None:
        """Let it end by itself, when it has answered what it was asked last."""
        self._pipe.close()

    def end(self) -> None:
        self.release()
        for end in (lambda: None, self._process.terminate, self._process.kill):
            if self._process.is_alive():
                end()
                self._process.join(timeout=5)


def _serve(pipe: Connection, environment: dict[str, str], compile_threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who asks decides
    os.environ.update(environment)
    import packed

    bench = packed.Bench(compile_threads)
    while True:
        try:
            method, args = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, getattr(bench, method)(*args))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            answer = (False, f"{type(error).__name__}: {error}".splitlines()[0])
        with suppress(OSError):  # nobody waits any more
            pipe.send(answer)
