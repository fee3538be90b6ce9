"""What stands on the command line, looked at before Hydra reads it: what it would answer in a page is one line."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from arch_bench.config.errors import ConfigError

_MODES = {"run": "--run", "multirun": "-m", "cfg": "--cfg", "info": "--info", "shell_completion": "-sc"}


def versions() -> str:
    """Return those of the harness and of what decides most of what it measures, in one line."""
    names = {"arch-bench": "arch-bench", "torch": "torch", "hydra": "hydra-core"}
    return ", ".join(f"{name} {version(package)}" for name, package in names.items())


def check(arguments: Sequence[str]) -> None:
    """Raise ConfigError for flags that Hydra does not have, or not together, and for what would run any callable."""
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
    """What Hydra is made of comes from its groups: a class named on the command line would be called as it is."""
    for override in found.overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key.startswith("hydra.") and ("_target_" in override or "()" in override):
            raise ConfigError(f"{key}: classes of Hydra's are chosen by its groups; write hydra/GROUP=OPTION")


def _refuse(message: str) -> NoReturn:
    """argparse's complaint as a line with what to do."""
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
