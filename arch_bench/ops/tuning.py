"""Triton's autotuning, with its compiling spread over the CPUs and its findings kept on disk.

An autotuner times a kernel in tens of configurations and compiles them one after the other: minutes for the hundreds
that one layer of fla or mamba-ssm has, while all CPUs but one and the GPU wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

MAX_THREADS = 16
"""What one process takes of a machine on which others compile too."""
TIMED_MS = {"warmup": 10, "rep": 40}
"""Of each configuration: tens of runs of a kernel that takes a millisecond, two fifths of what Triton takes."""
_APART: list[str] = []
"""What this process adds to the names under which findings are kept."""


def keep_apart() -> None:
    """From now on, neither use nor change what was found by processes that may have shared their device."""
    _APART[:] = ["alone"]


@contextmanager
def parallel_tuning() -> Iterator[None]:
    """Within it, an autotuner has all it is about to time compiled at once, times it briefly, and keeps what it found.

    Triton looks on disk where asked to (`TRITON_CACHE_AUTOTUNING`), which fla does and mamba-ssm does not.
    Configurations that have hooks are timed anew in every process, whoever asks.
    """
    if find_spec("triton") is None:
        yield
        return
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.driver import driver

    timed, run, look_up = Autotuner._bench, Autotuner.run, Autotuner.check_disk_cache
    calls: dict[object, object] = {}

    def run_and_keep(tuner: Any, *args: object, **kwargs: object) -> object:
        tuner.cache_results = True
        tuner._do_bench = tuner._do_bench or partial(driver.active.get_benchmarker(), **TIMED_MS)
        return run(tuner, *args, **kwargs)

    def look_up_apart(tuner: Any, key: tuple[object, ...], configs: list[Any], tune: Callable[[], None]) -> bool:
        own = (*key, *_APART)
        was_found: bool = look_up(tuner, own, configs, tune)
        tuner.cache.setdefault(key, tuner.cache.get(own))  # tuned, it is there as `key`; found, as `own`
        return was_found

    def compiled_and_timed(tuner: Any, *args: object, config: Any, **kwargs: object) -> list[float]:
        if calls.get(tuner) is not tuner.nargs:  # the arguments of this call: its first configuration
            calls[tuner] = tuner.nargs
            compile_all(tuner, args, kwargs)
        times: list[float] = timed(tuner, *args, config=config, **kwargs)
        return times

    changes: dict[str, Any] = {"run": run_and_keep, "check_disk_cache": look_up_apart, "_bench": compiled_and_timed}
    with patch.multiple(Autotuner, **changes):
        yield


def compile_all(tuner: Any, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """The kernel in every configuration, by Triton's own threads of compilation.

    What cannot be compiled is left to the autotuner, which says so or passes over it.
    """
    with suppress(ImportError):  # the mode is Triton's, but not of its public interface
        from triton.runtime._async_compile import AsyncCompileMode

        with ThreadPoolExecutor(_n_threads()) as pool, AsyncCompileMode(pool, ignore_errors=True):
            for config in tuner.prune_configs(kwargs):
                with suppress(Exception):
                    tuner.fn.run(*args, **{**kwargs, **config.all_kwargs(), "warmup": True})  # compiles, only


def _n_threads() -> int:
    usable: Callable[[], int] = getattr(os, "process_cpu_count", lambda: len(os.sched_getaffinity(0)))
    return min(MAX_THREADS, usable() or 1)
