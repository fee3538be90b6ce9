"""Triton's autotuning, with compilation spread over the CPUs and results kept on disk.

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
"""Share of a machine that one process uses, because others compile too."""
TIMED_MS = {"warmup": 10, "rep": 40}
"""Time per configuration: tens of runs of a kernel that takes a millisecond, two fifths of Triton's default."""
GLANCE_MS = {"warmup": 1, "rep": 4}
"""Brief time per configuration (fla has up to 135 of one kernel), to drop those that are far from the best."""
N_FEW = 8
"""Number of configurations up to which all are timed at length."""
FAR = 1.3
"""Ratio to the shortest brief timing beyond which a configuration is not timed again."""
_APART: list[str] = []
"""Suffix that this process adds to the names under which results are kept."""


def keep_apart() -> None:
    """Stop using and changing results of processes that may have shared their device."""
    _APART[:] = ["alone"]


@contextmanager
def parallel_tuning() -> Iterator[None]:
    """Within it, an autotuner has all it is about to time compiled at once, times it briefly, and keeps what it found.

    Of many configurations it times at length those that are near the best at a glance.

    Triton looks on disk where asked to (`TRITON_CACHE_AUTOTUNING`), which fla does and mamba-ssm does not.
    Configurations that have hooks are timed anew in every process, for every library.
    """
    if find_spec("triton") is None:
        yield
        return
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.driver import driver

    timed, run, look_up = Autotuner._bench, Autotuner.run, Autotuner.check_disk_cache
    calls: dict[object, object] = {}
    seen: dict[object, dict[object, list[float]]] = {}

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
            seen[tuner] = at_a_glance(tuner, lambda one: timed(tuner, *args, config=one, **kwargs), kwargs)
        times: list[float] = seen[tuner].get(config) or timed(tuner, *args, config=config, **kwargs)
        return times

    changes: dict[str, Any] = {"run": run_and_keep, "check_disk_cache": look_up_apart, "_bench": compiled_and_timed}
    with patch.multiple(Autotuner, **changes):
        yield


def at_a_glance(
    tuner: Any, timed: Callable[[Any], list[float]], kwargs: dict[str, object]
) -> dict[object, list[float]]:
    """Return the times of the configurations that are far from the best of many."""
    from triton.runtime.driver import driver

    configs = tuner.prune_configs(kwargs)
    if len(configs) <= N_FEW:
        return {}
    glance = partial(driver.active.get_benchmarker(), **GLANCE_MS)
    with patch.dict(vars(tuner), do_bench=glance):  # the attribute in which the tuner keeps its benchmarker
        times = {config: timed(config) for config in configs}
    best = min(median for median, *_ in times.values())
    return {config: found for config, found in times.items() if found[0] > FAR * best}


def compile_all(tuner: Any, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """Compile the kernel in every configuration, with Triton's own compilation threads.

    Configurations that cannot be compiled are left to the autotuner, which reports or skips them.
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
