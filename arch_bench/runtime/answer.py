"""A process's answer, a result or an exception, packed so that it cannot harm the process that reads it."""

from __future__ import annotations

import pickle
import signal
import traceback
from typing import Any

LONGEST = 65_536
"""Maximum characters kept of a traceback, or of an exception's text."""


class Foreign(RuntimeError):
    """Raised in place of an exception that cannot be passed between processes. Its text begins with the class."""


def of_result(value: Any) -> bytes:
    """Pack a result. Raises the exception of its class if it cannot be packed or unpacked."""
    packed = pickle.dumps((True, value))
    pickle.loads(packed)
    return packed


def of_error(error: BaseException) -> bytes:
    """Pack an exception with its traceback as a note, or only its text if it does not survive pickling.

    Exceptions of PyTorch's compiler hold modules; exceptions whose constructor takes several arguments cannot be
    rebuilt; one such as KeyboardInterrupt would end the process that receives it.
    """
    text = bounded("".join(traceback.format_exception(error)))
    try:
        if len(str(error)) > LONGEST:
            raise ValueError
        error.add_note(text)
        packed = pickle.dumps((False, error))
        if isinstance(pickle.loads(packed)[1], Exception):
            return packed
    except Exception:  # a third-party class may raise anything when packed, unpacked or printed
        pass
    plain = Foreign(f"{type(error).__name__}: {bounded(text_of(error).strip())}")
    plain.add_note(text)
    return pickle.dumps((False, plain))


def read(packed: bytes) -> tuple[bool, Any]:
    """Return True with the process's result, or False with its exception. Raises ValueError if unreadable."""
    try:
        succeeded, value = pickle.loads(packed)
    except Exception as error:  # its class is missing here, or refuses to unpickle
        raise ValueError(f"its answer cannot be read: {type(error).__name__}: {text_of(error)}") from None
    return bool(succeeded), value


def text_of(error: BaseException) -> str:
    """Return the text of an exception, even if its `__str__` fails."""
    try:
        return str(error)
    except Exception as other:
        return f"(its text cannot be read: {type(other).__name__})"


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an exception's text, or else its class."""
    lines = (line.strip() for line in text_of(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def bounded(text: str, longest: int = LONGEST) -> str:
    """Return the text, shortened to its beginning and end if it is too long."""
    half = longest // 2
    return (
        text if len(text) <= longest else f"{text[:half]}\n[... {len(text) - longest:,} characters ...]\n{text[-half:]}"
    )


def ending(exitcode: int | None) -> str:
    """Describe how a process ended without an answer."""
    if exitcode is None:
        return "the process gave no answer, and did not end"
    if exitcode in _SIGNALS and exitcode > 128:  # it received the signal, and exited in order
        exitcode = 128 - exitcode
    if exitcode >= 0:
        return f"the process ended by itself with exit code {exitcode}"
    name = _SIGNALS.get(128 - exitcode, f"signal {-exitcode}")
    hint = " (often: out of memory)" if name == "SIGKILL" else ""
    return f"the process was ended by {name}{hint}"


_SIGNALS = {128 + each.value: each.name for each in signal.Signals}
"""Signal names, by the exit code of a process that exits in order on the signal."""
