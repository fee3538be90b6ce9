"""What the figures' files do that the page need not: titles as wide as a panel, lines that coincide side by side."""

from __future__ import annotations

import math

import pytest
from test_report import row, score
from test_report_parts import generated, parts

from arch_bench.report import figures, heat_maps, metrics, panels, ticks
from arch_bench.report.facets import Facet
from arch_bench.report.study import Study
from arch_bench.results import Row

NAMES = ("based", "lstm", "mamba", "transformer")


def solved(lengths: tuple[int, ...], names: tuple[str, ...] = NAMES) -> list[Row]:
    return [
        row(name, "quality", n, train_seq_len=lengths[0], metrics={"token_accuracy": 1.0})
        for name in names
        for n in lengths
    ]


def panel(rows: list[Row], metric: metrics.Metric = metrics.ACCURACY) -> panels.Panel:
    study = Study(rows)
    found = panels.panel(study, Facet(study.tasks("quality")[0]), metric)
    assert found
    return found


def test_lines_that_coincide_stand_side_by_side_around_their_length() -> None:
    shifts = figures._shifts(panel(solved((64, 256, 1024))))
    assert list(shifts) == sorted(NAMES)
    assert sum(shifts.values()) == pytest.approx(0)
    steps = {round(after - before, 6) for before, after in zip(shifts.values(), [*shifts.values()][1:], strict=False)}
    assert steps == {figures.MOST_SHIFT}
    assert figures._shifts(panel(solved((64, 256), NAMES[:1]))) == {}


def test_where_lengths_are_close_lines_stand_closer_than_these() -> None:
    shown = panel(solved((96, 100, 1024)))
    way = math.log(100 / 96) / math.log(shown.x_range[1] / shown.x_range[0]) * figures.PANEL_WIDTH * figures.POINTS
    shifts = figures._shifts(shown).values()
    assert max(shifts) - min(shifts) < figures.MOST_SHARE * way < figures.MOST_SHIFT * len(NAMES)


def test_a_long_title_takes_two_lines() -> None:
    rows = [score(task="string_copy", metrics={"token_accuracy": 0.9}), generated()]
    assert figures.title(panel(rows)) == "string_copy: token accuracy"
    assert figures.title(panel(rows, metrics.GENERATED)) == "string_copy:\ngenerated answers, exact match"


def test_titles_of_maps_do_not_touch() -> None:
    """As many letters as one panel is wide, by the letters of a legend, which are smaller."""
    rows = [parts(name, 64, {"depth_0.00": 0.5}) for name in ("local_attention", "transformer")]
    maps = heat_maps.maps(Study(rows))
    assert max(len(line) for each in maps[0] for line in figures.map_title(each).split("\n")) <= figures.MOST_TITLE
    assert figures.draw_maps(maps, "x")["svg"].count(b"<!-- needle: local_attention -->") == 1


def test_texts_of_an_axis_stand_apart_and_both_ends_stay() -> None:
    assert ticks.thinned([102, 204, 306, 408, 510, 612]) == [102, 204, 306, 408, 612]
    assert ticks.thinned([64, 66, 1024]) == [64, 1024]
    assert ticks.thinned([64]) == [64]
