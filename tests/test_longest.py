"""The search for the longest length, on limits that are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from arch_bench.cell import longest as search
from arch_bench.cell import run
from arch_bench.cell.shape import Shape, Usage, save
from arch_bench.config.schema import cell_of, compose
from arch_bench.results import Outcome


def tried(limit: int, listed: list[int]) -> dict[int, str]:
    """Every length that was measured, and how it ended, where lengths up to `limit` fit."""
    found = {n: "ok" if n <= limit else "oom" for n in listed}
    for n in search.lengths(lambda: found):
        assert n not in found, "nothing is measured twice"
        found[n] = "ok" if n <= limit else "oom"
    return found


@pytest.mark.parametrize("limit", [1024, 5000, 8192, 100_000, 1_048_576])
@pytest.mark.parametrize("listed", [[1024], [256, 512, 1024], [1024, 2**21]])
def test_what_is_found_is_within_an_eighth_of_the_limit(limit: int, listed: list[int]) -> None:
    found = tried(limit, listed)
    longest = max(n for n, status in found.items() if status == "ok")
    shortest = min(n for n, status in found.items() if status != "ok")
    assert longest <= limit < shortest
    if listed != [1024, 2**21]:
        assert shortest - longest <= max(longest / 8, search.STEP)


def test_lengths_are_those_expected() -> None:
    assert list(tried(5000, [1024])) == [1024, 2048, 4096, 8192, 6144, 5120, 4608]


def test_nothing_is_tried_beyond_lengths_of_which_none_fits() -> None:
    assert tried(100, [1024, 2048]) == {1024: "oom", 2048: "oom"}


def test_a_cell_searches_and_then_finds_all_of_it_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(cell: object, shape: Shape, *_: object) -> list[run.Row]:
        measured.append(shape.lengths[0])
        status = "ok" if shape.lengths[0] <= 700 else "oom"
        return save(settled, shape, [Outcome(seq_len=shape.lengths[0], status=status)], Usage())

    measured: list[int] = []
    settled = run.settle(
        cell_of(
            compose(
                [
                    *("logger=none", "isolate=false", f"results_dir={tmp_path}", "phases=[speed]", "device=cpu"),
                    *("speed.lengths=[256]", "speed.search_max_len=true"),
                ]
            )
        )
    )
    monkeypatch.setattr(run, "_measure", measure)
    rows = run.run_cell(settled, say=lambda row: None)
    assert measured == [256, 512, 1024, 768, 640]
    assert [row.seq_len for row in rows] == measured
    assert run.run_cell(settled, say=lambda row: None) == rows
    assert len(measured) == 5, "the second time everything is there"
