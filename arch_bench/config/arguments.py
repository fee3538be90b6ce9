"""Check the command line before Hydra reads it, so that an error is one line and not a page."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from arch_bench.config.errors import ConfigError

_MODES = {"run": "--run", "multirun": "-m", "cfg": "--cfg", "info": "--info", "shell_completion": "-sc"}


def versions() -> str:
    """Return the versions of the harness, torch and Hydra in one line."""
    names = {"arch-bench": "arch-bench", "torch": "torch", "hydra": "hydra-core"}
    return ", ".join(f"{name} {version(package)}" for name, package in names.items())


def check(arguments: Sequence[str]) -> None:
    """Check the flags. Raises ConfigError for unknown or conflicting flags, and for overrides that name a class."""
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    found = parser.parse_args(list(arguments))
    if "\0" in "".join(arguments):
        raise ConfigError("a NUL character on the command line; leave it out")
    asked = [flag for name, flag in _MODES.items() if getattr(found, name)]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)}: not together; choose one")
    if found.resolve and not (found.cfg or found.help):
        raise ConfigError("--resolve: goes with --cfg; write --cfg job --resolve")
    _check_hydras(found)


def _check_hydras(found: Namespace) -> None:
    """Refuse overrides that name a class for Hydra itself: Hydra would call any class from the command line.

    Raises ConfigError.
    """
    for override in found.overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key.startswith("hydra.") and ("_target_" in override or "()" in override):
            raise ConfigError(f"{key}: classes of Hydra's are chosen by its groups; write hydra/GROUP=OPTION")


def _refuse(message: str) -> NoReturn:
    """Raise argparse's complaint as a ConfigError of one line with advice."""
    _, is_unknown, rest = message.partition("unrecognized arguments: ")
    first = rest.split(" ")[0]
    name = first.lstrip("-").partition("=")[0]
    if is_unknown and first.startswith("--"):
        raise ConfigError(f"{first}: no flag of this command; values have no dashes: write {name}=VALUE")
    if is_unknown and "=" in first and not first.startswith("-"):
        raise ConfigError(f"{first}: stands apart from the other values; put -m and other flags before or after all")
    if is_unknown:
        raise ConfigError(f"{first}: no flag of this command; arch-bench --hydra-help lists them")
    raise ConfigError(f"{' '.join(message.split())}; arch-bench --hydra-help lists the flags")
