"""The command line: compose the cells, run them, report. Imports nothing slow: TAB completion runs this file too."""

from __future__ import annotations

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from arch_bench.complaint import one_line
from arch_bench.config import CONF, HYDRA, ConfigError, allowed_targets
from arch_bench.sweep import SWEEP


@hydra.main(config_path=str(CONF), config_name="config", **HYDRA)
def compose(cfg: DictConfig) -> None:
    """One cell of a sweep, or the only one."""
    SWEEP.add(cfg)


def main() -> None:
    """Compose all cells, then run them.

    Exit codes: 0 done, 1 a cell crashed or ran out of time (or a bug, with its traceback), 2 the user's mistake (one
    line), 130 interrupted.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing and exiting
    try:
        with allowed_targets():
            compose()
            SWEEP.run()
    except (HydraException, OmegaConfBaseException, ConfigError, OSError) as error:
        _exit(one_line(error), 2)
    except KeyboardInterrupt:
        _exit("interrupted; finished rows are kept, the same command goes on from there", 130)
    finally:
        SWEEP.finish()
    if SWEEP.mistakes or SWEEP.failures:
        sys.exit(2 if SWEEP.mistakes else 1)


def _exit(message: str, code: int) -> None:
    print(f"arch-bench: {message}", file=sys.stderr)
    sys.exit(code)
