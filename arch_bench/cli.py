"""The command line: compose the cells, run them, report. Imports nothing slow: TAB completion runs this file too."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from arch_bench.config.arguments import check, versions
from arch_bench.config.errors import is_hydras, one_line
from arch_bench.config.schema import CONF, HYDRA, ConfigError, check_options
from arch_bench.runtime import module_path
from arch_bench.runtime.console import leavable
from arch_bench.sweep.sweep import SWEEP


@hydra.main(config_path=str(CONF), config_name="config", **HYDRA)
def compose(cfg: DictConfig) -> None:
    """Add one cell of a sweep, or the only one."""
    SWEEP.add(cfg)


class _Interrupted(SystemExit):
    """Raised when a signal requests the end."""


def _interrupt(signum: int, _: object) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)  # a second signal ends the process at once
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closing terminal sends several SIGHUPs for one event
    if isolate := sys.modules.get("arch_bench.runtime.workers"):
        isolate.interrupt()  # now: processes of other threads ended by the same signal have not crashed
    raise _Interrupted(128 + signum)


def main() -> None:
    """Compose all cells, then run them.

    Exit codes: 0 done, 1 a cell crashed or ran out of time, or the disk is full (or a bug, with its traceback), 2 a
    user error (one line), 129 the terminal closed, 130 Ctrl-C, 143 SIGTERM.
    """
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) != signal.SIG_IGN:  # nohup and a shell's `&` set it to SIG_IGN
            signal.signal(signum, _interrupt)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing and exiting
    with leavable() as streams:
        _main()
    if streams.full:
        with suppress(OSError):  # standard error may be on that disk, too
            print(f"arch-bench: standard output: {streams.full}; the rest was not printed", file=sys.stderr)
        sys.exit(0 if SWEEP.has_run else 1)


def _main() -> None:
    try:
        if hidden := module_path.clash():
            raise ConfigError(hidden)
        if "--version" in sys.argv[1:]:
            print(versions())
            return
        check(sys.argv[1:])
        check_options(sys.argv[1:])
        compose()
        SWEEP.run()
    except (HydraException, OmegaConfBaseException, ConfigError, OSError) as error:
        _exit(one_line(error, sys.argv[1:]), 2)
    except Exception as error:
        if not is_hydras(error):
            raise
        _exit(one_line(error, sys.argv[1:]), 2)
    except _Interrupted as end:
        _exit("interrupted; finished rows are kept, the same command goes on from there", end.code)
    finally:
        _finish()
    if SWEEP.mistakes or SWEEP.failures:
        sys.exit(2 if SWEEP.mistakes else 1)


def _finish() -> None:
    try:
        SWEEP.finish()
    except _Interrupted as end:
        _exit("interrupted while reporting; all rows are kept, the same command reports them", end.code)


def _exit(message: str, code: Any) -> None:
    print(f"arch-bench: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
