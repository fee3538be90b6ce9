"""The table of backbones, made from conf/backbone and from what is built of it: `python -m arch_bench.catalog`."""

from __future__ import annotations

from functools import cache

import torch
from hydra.utils import get_class

from arch_bench.config.instantiate import build
from arch_bench.config.schema import CONF, Cell, cell_of, compose
from arch_bench.config.usage import options
from arch_bench.mixers.base import Card, Mixer
from arch_bench.results import Row, load

HEADINGS = "backbone", "what it is", "family", "state", "training", "decoding", "steps/s", "kernels", "source"
MEASURED = CONF.parent / "results" / "published" / "every_backbone_early"
"""Rows that hold the rate of the steps of every backbone."""
HYBRID = Card("hybrid", *["as its mixers"] * 4)
BLANK = Card(*[""] * 5)


@cache
def table() -> str:
    """Markdown, a row for each file, families together."""
    rows = sorted((_row(name) for name in options(CONF, "backbone")), key=lambda row: (row[2] == "hybrid", row[2]))
    lines = [[*HEADINGS], ["---"] * len(HEADINGS), *([f"`{name}`", *rest] for name, *rest in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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
    """Return the steps a second; a dash for what has not been measured."""
    mine = (row for row in _rows() if row.backbone == name and row.kind == "speed" and row.seq_len == row.train_seq_len)
    rates = (1000 / float(row.metrics["train_step_ms"] or 0) for row in mine)
    return next((f"{rate:,.0f}" for rate in rates), "\N{EN DASH}")


def _known(cell: Cell) -> tuple[Card, list[str]]:
    """The card and the kernels; of a class that knows them before it is built, whose library need not be installed."""
    unbuilt: type[Mixer] = get_class(cell.backbone["mixer"]["_target_"])
    if hasattr(unbuilt, "kernels"):
        return unbuilt.card or BLANK, [*unbuilt.kernels]
    with torch.device("meta"):
        backbone = build(cell, "backbone", vocab_size=2)
    return backbone.card or BLANK, [*backbone.mixer.kernels]


if __name__ == "__main__":
    print(table())
