"""Types of a row's fields, validated on reading: a file in the folder may come from any source."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

_GROUPS = frozenset({"backbone", "task", "optim", "trainer", "speed", "decode", "match"})
_DEEPEST = 20


def _dated(text: str) -> str:
    datetime.fromisoformat(text)
    return text


def _settled(config: dict[str, Any]) -> dict[str, Any]:
    """Validate a configuration: groups must be mappings, and nesting is limited. Raises ValueError.

    Equal groups of different rows share one object: most rows of a study differ little.
    """
    for group in _GROUPS & config.keys():
        if not isinstance(config[group], dict):
            raise ValueError(f"{group} is no group of settings")
    for key, value in config.items():
        if isinstance(value, dict | list):
            config[key] = _shared_one(value)
    return config


_shared: dict[str, Any] = {}


def _shared_one(value: Any) -> Any:
    text = repr(value)
    if text not in _shared:
        _check_depth(value)
        _shared[text] = value
    return _shared[text]


def _check_depth(value: Any) -> None:
    layer = [value]
    for _ in range(_DEEPEST):
        inner = (each for node in layer for each in (node.values() if isinstance(node, dict) else node))
        layer = [each for each in inner if isinstance(each, dict | list)]
        if not layer:
            return
    raise ValueError(f"nested more than {_DEEPEST} deep")


Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Length = Annotated[int, Field(ge=1, le=2**40)]
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$", max_length=255)]
"""Name of an experiment, which also names a folder."""
Date = Annotated[str, AfterValidator(_dated)]
Versions = Annotated[dict[str, str], AfterValidator(_shared_one)]
Config = Annotated[dict[str, Any], AfterValidator(_settled)]
