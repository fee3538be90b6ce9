"""What a process answers: a result or an exception, packed so that nothing in it can harm the process that reads it."""

from __future__ import annotations

import pickle
import signal
import traceback
from typing import Any

LONGEST = 65_536
"""Characters of a traceback, or of an exception's text, that are kept."""


class Foreign(RuntimeError):
    """Raised for an exception that cannot be carried from process to process. Its text begins with the class."""


def of_result(value: Any) -> bytes:
    """Pack a result. Raises what its class does when it is packed, or cannot be unpacked again."""
    packed = pickle.dumps((True, value))
    pickle.loads(packed)
    return packed


def of_error(error: Exception) -> bytes:
    """Pack an exception with its traceback as a note, or its text where it does not survive the way.

    Those of PyTorch's compiler hold modules; those whose constructor takes several arguments cannot be made again.
    """
    text = bounded("".join(traceback.format_exception(error)))
    try:
        if len(str(error)) > LONGEST:
            raise ValueError
        error.add_note(text)
        packed = pickle.dumps((False, error))
        if isinstance(pickle.loads(packed)[1], Exception):
            return packed
    except Exception:  # whatever a foreign class does when it is packed, unpacked or asked for its text
        pass
    plain = Foreign(f"{type(error).__name__}: {bounded(text_of(error))}")
    plain.add_note(text)
    return pickle.dumps((False, plain))


def read(packed: bytes) -> tuple[bool, Any]:
    """Return whether the process succeeded, and its result or exception. Raises ValueError where it cannot be read."""
    try:
        succeeded, value = pickle.loads(packed)
    except Exception as error:  # of a class that is not to be found here, or that refuses
        raise ValueError(f"its answer cannot be read: {type(error).__name__}: {text_of(error)}") from None
    return bool(succeeded), value


def text_of(error: BaseException) -> str:
    """Return the text of an exception, whose own way to it may fail."""
    try:
        return str(error)
    except Exception as other:
        return f"(its text cannot be read: {type(other).__name__})"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception that says something; its class where it says nothing."""
    lines = (line.strip() for line in text_of(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def bounded(text: str, longest: int = LONGEST) -> str:
    """Return the beginning and the end of a text that is too long."""
    half = longest // 2
    return (
        text if len(text) <= longest else f"{text[:half]}\n[... {len(text) - longest:,} characters ...]\n{text[-half:]}"
    )


def ending(exitcode: int | None) -> str:
    """Return in words how a process ended without an answer."""
    if exitcode is None:
        return "the process gave no answer, and did not end"
    if exitcode in _SIGNALS and exitcode > 128:  # it received the signal, and ended in order
        exitcode = 128 - exitcode
    if exitcode >= 0:
        return f"the process ended by itself with exit code {exitcode}"
    name = _SIGNALS.get(128 - exitcode, f"signal {-exitcode}")
    hint = " (often: out of memory)" if name == "SIGKILL" else ""
    return f"the process was ended by {name}{hint}"


_SIGNALS = {128 + each.value: each.name for each in signal.Signals}
"""By the exit code of a process that ends in order on one."""
