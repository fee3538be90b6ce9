"""Generate the text of `--help` from the files under `conf/`, so that it cannot go stale."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString

_HERE = Path(__file__).resolve().parents[1]
CONF = next(path for path in (_HERE / "conf", _HERE.parent / "conf") if path.is_dir())
"""Folder of the YAML files: inside the package in a wheel, beside it in a clone."""
HYDRA = {"version_base": "1.3"}
"""Arguments for Hydra, which warns without a version base."""
GROUPS = ("backbone", "task", "optim", "trainer", "logger", "protocol", "launcher", "experiment")

_TEXT = """\
arch-bench: which sequence architecture, for this task, at this length, on this budget?

  arch-bench backbone=mamba task=mqar seq_len=256 task.n_pairs=16        one cell
  arch-bench -m backbone=lstm,transformer task=mqar seq_len=64,128      a sweep
  arch-bench experiment=quickstart                                      a named grid
  arch-bench-report results                                             rows -> tables, figures, page

Groups (GROUP=OPTION):

{groups}

Dials (KEY=VALUE; a group's own: GROUP.KEY=VALUE, see `arch-bench --cfg job`):

{dials}

Hydra's own flags (sweeps, completion, the composed config): arch-bench --hydra-help
"""


def options(conf: Path, group: str) -> list[str]:
    """List the options of a group."""
    return sorted(path.stem for path in (conf / group).glob("*.yaml"))


def nameless(conf: Path, overrides: Iterable[str]) -> str | None:
    """Return the error for a group option that is not a name, as in `logger=null`; None if Hydra can report it."""
    for each in overrides:
        group, is_set, text = each.partition("=")
        known = options(conf, group.lstrip("+~"))
        if not is_set or not known:
            continue
        value = OverridesParser.create().parse_override(each).value()
        for option in value.list if isinstance(value, ChoiceSweep) else [value]:
            if not isinstance(option, str | QuotedString | Glob | dict):
                return f"{group}={text} does not exist; choose from: {', '.join(known)}"
    return None


def _groups(conf: Path) -> str:
    return "\n\n".join(f"  {group}\n{_options(conf, group)}" for group in GROUPS)


def _options(conf: Path, group: str) -> str:
    lines = {name: about(conf / group / f"{name}.yaml") for name in options(conf, group)}
    return "\n".join(f"    {name:<20} {told}".rstrip() for name, told in lines.items())


def about(path: Path) -> str:
    """Return the first sentence of a file's comment."""
    lines = (line for line in path.read_text().splitlines() if line != "# @package _global_")
    comment = " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))
    first = re.split(r"(?<!al)\. (?=[A-Z])", comment)[0].rstrip(".")
    return textwrap.shorten(first, 110, placeholder=" ...")


def _dials(conf: Path) -> str:
    """Return the lines of config.yaml that have a comment for the user."""
    lines = (conf / "config.yaml").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("name:"))
    shown = (line for line in lines[start : lines.index("hydra:")] if "  #" in line)
    return "\n".join(f"  {line}" for line in shown)


def register(conf: Path) -> None:
    """Register the text as Hydra's `--help` (its template language uses `$`, so dollars are doubled)."""
    text = _TEXT.format(groups=_groups(conf), dials=_dials(conf)).replace("$", "$$")
    node = {"app_name": "arch-bench", "header": "", "footer": "", "template": text}
    ConfigStore.instance().store(group="hydra/help", name="arch_bench", node=node)
