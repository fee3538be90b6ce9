"""What the table of backbones says of a state is what the tensors hold."""

from __future__ import annotations

import re
from typing import Any

import pytest
from models import BACKBONES

from arch_bench import catalog
from arch_bench.backbone import Backbone
from arch_bench.cell.match import with_width
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, cell_of, compose
from arch_bench.mixers.base import tensors

T = 96
"""Beyond every window, in whole blocks and strides."""
NO_FORMULA = {"bert": "none", "fla": "as the layer's", "taylor": "about d_feature^2 (d + n_heads) / 2"}
DIALS = {"n_heads": 8, "expand": 3}
"""Others than the defaults, among which some are equal."""


def state(name: str) -> str:
    row = next(line for line in catalog.table().splitlines() if line.startswith(f"| `{name}` |"))
    return row.split(" | ")[catalog.HEADINGS.index("state")]


def cell(name: str) -> Cell:
    """One layer. What a mixer would choose by itself is given, since the table speaks of it by its name."""
    found = cell_of(compose([f"backbone={name}", f"seq_len={T}", "n_layers=1"])).model_copy(deep=True)
    mixer = found.backbone["mixer"]
    own = {key: 8 for key in mixer if mixer[key] == "auto" and key != "kernel"}
    mixer.update(own | {key: DIALS[key] for key in DIALS if key in mixer})
    return found


def value(formula: str, names: dict[str, Any]) -> float:
    """Of the table's notation, in which a space between two factors multiplies them and ^ is a power."""
    product = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula).replace("^", "**")
    found: float = eval(product, {"min": min, "sum": sum}, names)
    return found


def test_the_notation() -> None:
    names = {"d": 3, "window": 5, "dilations": [1, 2], "T": 7}
    assert value("2 (d - 1) sum(dilations) d^2 / 9", names) == 2 * 2 * 3 * 9 / 9
    assert value("2 min(T, window) d", names) == 30


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in NO_FORMULA])
def test_the_state_is_that_of_the_tensors(name: str) -> None:
    if compose([f"backbone={name}"]).backbone.pattern is not None:
        assert state(name) == "as its mixers"
        return
    for d_model in (32, 64):
        at = with_width(cell(name), d_model)
        model: Backbone = build(at, "backbone", vocab_size=3)
        n_numbers = sum(t.numel() for t in tensors(model.init_state(1, T)) if t.dim())  # but for the position
        assert value(state(name), {**at.backbone["mixer"], "T": T, "d": d_model}) == n_numbers


@pytest.mark.parametrize("name", NO_FORMULA)
def test_where_there_is_no_formula_it_says_so(name: str) -> None:
    assert state(name) == NO_FORMULA[name]
