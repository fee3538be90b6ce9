"""Conversion of expected failures of a measurement, as opposed to bugs, into a status."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable

import torch

from arch_bench.ops.kernel import Unsupported
from arch_bench.results import Outcome, Status
from arch_bench.runtime.answer import first_line, text_of


class Diverged(Exception):
    """Raised when the loss stops being finite."""


class Pruned(Exception):
    """Raised when a search stops a training because other trials did better by then."""


_NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")


def guarded(measure: Callable[[], list[Outcome]], lengths: list[int], kernel: str = "") -> list[Outcome]:
    """Return the outcomes of `measure`, or on failure one outcome per length with the reason. Bugs propagate."""
    try:
        return measure()
    except (torch.OutOfMemoryError, MemoryError) as error:
        status, reason = _status("oom", error)
    except OSError as error:  # for example from mapping a file
        if error.errno != errno.ENOMEM:
            raise
        status, reason = _status("oom", error)
    except RuntimeError as error:  # other allocators have no exception class of their own
        if not any(words in text_of(error) for words in _NO_MEMORY):
            raise
        status, reason = _status("oom", error)
    except Unsupported as error:
        status, reason = _status("unsupported", error)
    except Diverged as error:
        status, reason = _status("diverged", error)
    except Pruned as error:
        status, reason = _status("pruned", error)
    _free()  # only here has the traceback released the tensors
    return [Outcome(seq_len=n, kernel=kernel, status=status, reason=reason) for n in lengths]


def _status(status: Status, error: Exception) -> tuple[Status, str]:
    return status, first_line(error)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
