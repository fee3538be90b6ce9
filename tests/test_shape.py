"""Rows of a shape that are on disk: measured once, and told as a protocol tells them now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cells import cell

from arch_bench import results
from arch_bench.cell import run
from arch_bench.cell.shape import Shape, Usage, save
from arch_bench.config.schema import Cell
from arch_bench.results import Outcome, Row

ALL = ["phases=[decode,quality]", "eval_scales=[1,2]"]


def _answer(one: Cell, shape: Shape, _: list[Row]) -> list[Row]:
    return save(one, shape, [Outcome(seq_len=length) for length in shape.lengths], Usage(1.0, None))


def _rows(folder: Path, chosen: str) -> list[Row]:
    found = run.run_cell(cell(folder, *ALL, chosen=chosen), lambda _: None)
    assert sorted(map(repr, found)) == sorted(map(repr, results.load([folder]))), "what is told is on disk"
    return found


def test_what_a_wider_search_says_of_the_same_choice_replaces_what_a_row_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_shape", _answer)
    first = _rows(tmp_path, "the lowest of 2 rates")
    assert [(row.kind, row.seq_len) for row in first] == [("decode", 16), ("quality", 16), ("quality", 32)]
    monkeypatch.setattr(run, "run_shape", lambda *_: pytest.fail("measured again"))
    wider = "the lowest of 5 rates"
    second = _rows(tmp_path, wider)
    assert second == [replace(row, chosen=wider, config=row.config | {"chosen": wider}) for row in first]
    monkeypatch.setattr(results, "save", lambda *_: pytest.fail("saved again"))
    assert _rows(tmp_path, wider) == second
    assert _rows(tmp_path, "") == second, "a command that chooses nothing has nothing to say"
