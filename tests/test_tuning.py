"""What an autotuner is about to time is compiled at once, what it finds is kept. Compiled for a GPU, run on none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from arch_bench.ops import tuning
from arch_bench.ops.tuning import parallel_tuning

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

N_CONFIGS = 3


class Driver:
    """Of a GPU that compiles and launches nothing: each timing notes how many binaries there are by then."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.n_compiled, self.reps = cache, list[int](), list[int]()

    def get_current_target(self) -> object:
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self) -> Callable[..., list[float]]:
        def time_(call: Callable[[], object], quantiles: object, rep: int = 100, **_: object) -> list[float]:
            self.n_compiled.append(len(list(self.cache.glob("*/*.cubin"))))
            self.reps.append(rep)
            call()
            return [float(len(self.n_compiled))] * 3

        return time_


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    from triton.runtime.driver import driver as config
    from triton.runtime.jit import JITFunction

    compiled = JITFunction.run

    def run(*args: object, warmup: bool, **kwargs: object) -> object:
        kernel = compiled(*args, warmup=True, **kwargs)
        return kernel if warmup else getattr(kernel, "result", lambda: kernel)()  # a launch needs it

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # else Triton 3.9 warns that it is on
    monkeypatch.setattr(config, "_active", Driver(tmp_path))
    driver: Driver = config.active
    return driver


def doubled(n_configs: int = N_CONFIGS) -> object:
    """A kernel with an autotuner of its own, as in a process of its own."""

    @triton.autotune([triton.Config({"BLOCK": 32 << n}) for n in range(n_configs)], key=["n"])
    @triton.jit
    def kernel(x, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + at, 2 * tl.load(x + at, at < n), at < n)

    return kernel


def tune(kernel: object, n: int = 64) -> None:
    kernel[(1,)](torch.ones(n), n)  # type: ignore[index]


def test_all_is_compiled_before_the_first_is_timed(driver: Driver) -> None:
    with parallel_tuning():
        tune(doubled())
    assert driver.n_compiled == [N_CONFIGS] * N_CONFIGS


def test_without_it_each_is_compiled_when_its_turn_comes(driver: Driver) -> None:
    with nullcontext():
        tune(doubled())
    assert driver.n_compiled == list(range(N_CONFIGS))


def test_of_many_only_those_near_the_best_at_a_glance_are_timed_at_length(driver: Driver) -> None:
    kernel, many = doubled(9), 9
    with parallel_tuning():
        tune(kernel)
    assert driver.reps == [tuning.GLANCE_MS["rep"]] * many + [tuning.TIMED_MS["rep"]], "at a glance: 1, 2, 3, ... ms"
    assert list(kernel.configs_timings.values()) == [[10.0] * 3, *([float(n)] * 3 for n in range(2, 10))]  # type: ignore[attr-defined]


def test_what_was_found_is_kept_for_other_processes(driver: Driver) -> None:
    with parallel_tuning():
        tune(doubled())
        again = doubled()
        tune(again)
        assert len(driver.n_compiled) == N_CONFIGS, "found on disk"
        tune(again, n=128)
        assert len(driver.n_compiled) == 2 * N_CONFIGS, "another key is tuned anew"


def test_what_timed_phases_find_is_kept_apart(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_APART", [])
    with parallel_tuning():
        tune(doubled())
        tuning.keep_apart()
        tune(doubled())
        assert len(driver.n_compiled) == 2 * N_CONFIGS, "what was found beside others is not used"
        tune(doubled())
        assert len(driver.n_compiled) == 2 * N_CONFIGS, "what was found alone is"


def test_what_cannot_be_compiled_is_left_to_the_autotuner(driver: Driver) -> None:
    @triton.autotune([triton.Config({"BLOCK": block}) for block in (33, 64)], key=["n"])
    @triton.jit
    def kernel(x, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.arange(0, BLOCK)
        tl.store(x + at, at, at < n)

    with parallel_tuning(), pytest.raises(triton.CompilationError, match="power of 2"):
        tune(kernel)
