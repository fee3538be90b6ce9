"""The tables of backbones and tasks, made from conf/: `python -m arch_bench.catalog [DOCS]`.

Without a folder the tables are printed; with one, they replace those in its pages.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from itertools import takewhile
from pathlib import Path

import torch
from hydra.utils import get_class

from arch_bench.config.instantiate import build
from arch_bench.config.schema import CONF, Cell, cell_of, compose
from arch_bench.config.usage import options
from arch_bench.mixers.base import Card, Mixer
from arch_bench.results import Row, load

HEADINGS = "backbone", "what it is", "family", "state", "training", "decoding", "steps/s", "kernels", "source"
MEASURED = CONF.parent / "results" / "published" / "every_backbone_early"
"""Rows with the step rate of every backbone."""
HYBRID = Card("hybrid", *["as its mixers"] * 4)
BLANK = Card(*[""] * 5)
SAID = {"The model must": "the model must", "Scored": "scored", "Guessing scores": "guessing scores"}
"""Label of a comment in a task's YAML -> heading."""


@cache
def table() -> str:
    """Return the backbones as Markdown, a row for each file, families together."""
    rows = sorted((_row(name) for name in options(CONF, "backbone")), key=lambda row: (row[2] == "hybrid", row[2]))
    return _markdown(HEADINGS, rows)


@cache
def task_table() -> str:
    """Return the tasks as Markdown, a row for each file; cells are empty for labels missing in its comment."""
    rows = [[name, *_told(CONF / "task" / f"{name}.yaml")] for name in options(CONF, "task")]
    return _markdown(("task", *SAID.values(), "source"), rows)


def update(docs: Path) -> None:
    """Replace the tables in the pages of a folder."""
    for name, text in (("backbones", table()), ("tasks", task_table())):
        page = docs / f"{name}.md"
        before, begin, rest = page.read_text().partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        page.write_text(before + begin + text + end + after)


def _markdown(headings: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [[*headings], ["---"] * len(headings), *([f"`{name}`", *rest] for name, *rest in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _told(path: Path) -> list[str]:
    """Return the text under each label of a task's comment, and the source named in its first sentences."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    comment = " ".join(line.removeprefix("#").strip() for line in lines)
    about, *labelled = re.split(rf"({'|'.join(SAID)}): ", comment)
    said = {label: text.strip().rstrip(".") for label, text in zip(labelled[::2], labelled[1::2], strict=True)}
    source = re.search(r"\(([^()]*\b(?:19|20)\d\d)\b[^()]*\)", about)
    return [*(said.get(label, "") for label in SAID), source[0].strip("()") if source else ""]


def _row(name: str) -> list[str]:
    what = (CONF / "backbone" / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ").rstrip(".")
    pattern = compose([f"backbone={name}"]).backbone.pattern
    if pattern is not None:
        return [name, what, *HYBRID[:4], _rate(name), *HYBRID[-1:] * 2]
    card, kernels = _known(cell_of(compose([f"backbone={name}"])))
    return [name, what, *card[:4], _rate(name), ", ".join(f"`{kernel}`" for kernel in kernels), card.source]


@cache
def _rows() -> list[Row]:
    return [row for row in load([MEASURED]) if row.status == "ok"]


def _rate(name: str) -> str:
    """Return the steps per second; a dash if unmeasured."""
    mine = (row for row in _rows() if row.backbone == name and row.kind == "speed" and row.seq_len == row.train_seq_len)
    rates = (1000 / float(row.metrics["train_step_ms"] or 0) for row in mine)
    return next((f"{rate:,.0f}" for rate in rates), "\N{EN DASH}")


def _known(cell: Cell) -> tuple[Card, list[str]]:
    """Return the card and the kernels; a class that has them before it is built needs no installed library."""
    unbuilt: type[Mixer] = get_class(cell.backbone["mixer"]["_target_"])
    if hasattr(unbuilt, "kernels"):
        return unbuilt.card or BLANK, [*unbuilt.kernels]
    with torch.device("meta"):
        backbone = build(cell, "backbone", vocab_size=2)
    return backbone.card or BLANK, [*backbone.mixer.kernels]


def main(arguments: list[str]) -> None:
    """Update the pages of a folder, or print the tables."""
    if arguments:
        update(Path(arguments[0]))
    else:
        print(table(), task_table(), sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
