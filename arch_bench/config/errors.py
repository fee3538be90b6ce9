"""Errors for the user's mistakes, in one line with the key, the value and the allowed values."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from traceback import walk_tb
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import Node, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import ValidationError

from arch_bench.config.usage import CONF, options


class ConfigError(ValueError):
    """Raised when the user makes a mistake; the one-line message names the key, the value and the allowed values."""


def is_hydras(error: BaseException) -> bool:
    """Check if Hydra or a library under it raised the error, of any class, over the user's input."""
    frames = (frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in walk_tb(error.__traceback__))
    ours = [package for package in frames if package in ("arch_bench", "tasks", *_HYDRAS)]
    return bool(ours) and ours[-1] in _HYDRAS


_HYDRAS = ("hydra", "omegaconf", "antlr4")
_INTERNAL = {"hydra", "backbone_name", "task_name"}


def one_line(error: BaseException, overrides: Sequence[str] = ()) -> str:
    """Return the problem and its fix in one line, for an exception of Hydra, OmegaConf or the file system.

    overrides: the user's overrides, if known.
    """
    match error:
        case ConfigCompositionException() if isinstance(error.__cause__, OmegaConfBaseException):
            found = _of_override(error, one_line(error.__cause__, overrides))
        case MissingConfigException():
            found = _unknown_option(error)
        case InterpolationResolutionError():
            found = _unresolved(error, overrides)
        case OmegaConfBaseException():
            found = _elsewhere(error) or _unknown_key(error, overrides)
        case OverrideParseException():
            found = f"{error.override}: {_way_to_write(error.override)}"
        case OSError():
            found = f"{error.filename or 'results_dir'}: {error.strerror or error}"
        case _:
            found = _flat(str(error)) or f"cannot be composed ({type(error).__name__})"
    return found


def _unknown_option(error: MissingConfigException) -> str:
    """Explain an option that does not exist, such as `backbone=mamb`."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    known = list(error.options or [])
    if not group:
        return _flat(str(error))
    return f"{group}={option} does not exist; choose from: {', '.join(known)}{_guess(option, known)}"


def _of_override(error: ConfigCompositionException, told: str) -> str:
    """Put the override before an OmegaConf message without a key, such as `Value 'x' is not a valid bool`."""
    _, is_of_one, override = str(error).partition("Error merging override ")
    return f"{override}: {told}" if is_of_one and not told.startswith(override.partition("=")[0].lstrip("+~")) else told


def _unresolved(error: OmegaConfBaseException, overrides: Sequence[str]) -> str:
    """Explain an interpolation such as `seed=${nosuch}`, as it was typed or as the config has it."""
    text, missing = _flat(str(error).split("\n    ", 1)[0]), re.search(r"key '(.+?)' not found", str(error))
    told = f"there is no {missing[1]}" if missing else text
    if typed := [each for each in overrides if missing and f"${{{missing[1]}" in each]:
        return f"{typed[0]}: {told}"
    parent = error.parent_node
    node = parent._get_node(error.key, validate_access=False) if OmegaConf.is_dict(parent) else None
    return f"{error.full_key}{f'={node._value()}' if isinstance(node, Node) else ''}: {told}"


def _elsewhere(error: OmegaConfBaseException) -> str:
    """Explain a dial set on an option without dials, as `launcher.pack=2` with launcher=basic.

    Suggest the options that have the dial; return an empty text for other errors.
    """
    if any(key != "_target_" for key in error.parent_node or [""]):
        return ""
    group, _, dial = (error.full_key or "").rpartition(".")
    owners = [name for name in options(CONF, group) if dial in OmegaConf.load(CONF / group / f"{name}.yaml")]
    has_it = f"; choose a {group} that has it: {', '.join(owners)}" if owners else ""
    return f"{group}.{dial}: the {group} chosen has no dials{has_it}" if options(CONF, group) else ""


def _unknown_key(error: OmegaConfBaseException, overrides: Sequence[str]) -> str:
    """Explain an unknown key, such as `task.n_pais=3`.

    Before Hydra sweeps over a group, it sets every override that is not swept in the group's default option, which
    lacks the keys of the other options.
    """
    key, parent = error.full_key or str(error.key or ""), error.parent_node
    if parent is None or not key or "not in struct" not in str(error):
        return _flat(str(error).split("\n    ", 1)[0])
    known = [str(name) for name in parent if not str(name).startswith("_") and str(name) not in _INTERNAL]
    group = key.partition(".")[0]
    if any(each.startswith(f"{group}=") and "," in each for each in overrides):
        return f"{key} is not a key of the default {group}; in a sweep over {group}, write ++{key} to set it in each"
    if key.rpartition(".")[0] == "backbone.mixer" and "_target_" not in parent:
        typed = next((each for each in overrides if each.startswith(f"{key}.")), f"{key}.KEY=VALUE")
        return f"{key} is not a key of this backbone; a mixer of its pattern is changed by a + before: +{typed}"
    owner, _, name = key.rpartition(".")
    homes = _homes(parent._get_root(), name)
    meant = f" (did you mean {' or '.join(homes)}?)" if homes else _guess(name, known)
    return f"{key} is not a key; {f'{owner} has' if owner else 'there are'}: {', '.join(known)}{meant}"


def _homes(root: Any, name: str) -> list[str]:
    """Find up to three keys of that name at any depth of a config, as `optim.lr` for `lr`."""
    own = OmegaConf.to_container(root, resolve=False)
    mine = (path for path in _paths(own) if not path.startswith(("hydra.", "protocol.space.")))
    return [path for path in mine if path.rpartition(".")[2] == name][:3]


def _paths(node: Any, above: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{above}{key}"
        yield from _paths(value, f"{above}{key}.")


def _way_to_write(override: str) -> str:
    """Suggest a correct override, but only if Hydra reads it as the intended value."""
    key, is_set, value = override.partition("=")
    if any(value.count(opening) != value.count(closing) for opening, closing in ("[]", "()", "{}")):
        return f"brackets that do not match; for the shell, the whole goes into quotes: {shlex.quote(f'{key}=[a,b]')}"
    if value.startswith("~/"):
        value = str(Path(value).expanduser())  # the shell does not expand it within quotes
    advice = f"{key}={quoted(value)}"
    if is_set and _read(advice) == value:
        return f"a value with ~ = ( ) and the like needs quotes inside quotes: {shlex.quote(advice)}"
    return "cannot be read; write KEY=VALUE, as seed=1"


def quoted(text: str) -> str:
    """Quote a text for an override, escaping Hydra's special characters."""
    return '"' + re.sub(r'(\\*)("|$)', lambda met: met[1] * 2 + ('\\"' if met[2] else ""), text) + '"'


def _read(override: str) -> object:
    """Return the value of an override; None if Hydra refuses it."""
    try:
        return OverridesParser.create().parse_overrides([override])[0].value()
    except OverrideParseException:
        return None


def _flat(text: str) -> str:
    """Flatten a message to one line, without OmegaConf's additions about types."""
    return " ".join(re.split(r"\n +(?:full_key|object_type)", text)[0].split())


def _guess(typed: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(typed, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def first_complaint(error: ValidationError, path: str = "") -> str:
    """Format pydantic's first finding as `key=value: allowed values`. path: that of the argument, if one is checked."""
    found = error.errors(include_url=False)
    key, value = _key(found[0]["loc"], path), "" if found[0]["type"] == "missing" else f"={found[0]['input']}"
    said = [each["msg"].removeprefix("Input should be ") for each in found if _key(each["loc"], path) == key]
    message = " or ".join([found[0]["msg"], *said[1:]])
    return f"{key}{value}: {message[0].lower()}{message[1:]}"


def _key(parts: tuple[int | str, ...], path: str) -> str:
    """Return the dotted key. Within an argument, only list indices count: words are pydantic's names of its types."""
    return ".".join([path, *(str(part) for part in parts if isinstance(part, int))] if path else map(str, parts))
