"""Scores beyond the headline: answers that were generated, and accuracy by part of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from test_report import row, score

from arch_bench.report import build, figures, heat_maps, metrics, panels, plots, slice_table, tables, units
from arch_bench.report.study import Point, Study
from arch_bench.results import Row


def parts(backbone: str, seq_len: int, found: dict[str, float], **changes: Any) -> Row:
    named = {f"token_accuracy/{name}": value for name, value in found.items()}
    return row(backbone, "quality", seq_len, task="needle", metrics={"token_accuracy": 0.5, **named}, **changes)


def needles() -> list[Row]:
    rows = []
    for backbone, gain in (("mamba", 0.0), ("transformer", 0.5)):
        for n in (64, 128):
            rows += [parts(backbone, n, {"depth_0.00": 0.2 + gain, "depth_1.00": 0.4 + gain * 64 / n})]
    return rows


def generated(backbone: str = "mamba", value: float = 0.25, **changes: Any) -> Row:
    found = {"token_accuracy": 0.9, "baseline_chance": 0.04, "generated_sequence_accuracy": value}
    return score(backbone, task="string_copy", metrics=found, **changes)


def test_a_task_with_parts_has_a_map_for_each_series() -> None:
    ((mamba, transformer),) = heat_maps.maps(Study([*needles(), score()]))
    assert (mamba.series, transformer.series) == ("mamba", "transformer")
    assert (mamba.lengths, mamba.parts) == ([64, 128], ["depth 0.00", "depth 1.00"])
    assert transformer.values == [[0.7, 0.7], [0.9, pytest.approx(0.65)]]


def test_seeds_are_averaged_and_what_failed_is_left_blank() -> None:
    rows = [parts("mamba", 64, {"a": 0.2}), parts("mamba", 64, {"a": 0.6}, seed=1), parts("mamba", 128, {"b": 0.5})]
    ((found,),) = heat_maps.maps(Study([*rows, row(seq_len=256, task="needle", status="oom", metrics={})]))
    assert (found.lengths, found.parts) == ([64, 128], ["a", "b"])
    assert found.values == [[pytest.approx(0.4), None], [None, 0.5]]


def test_what_is_asked_beyond_the_training_length_has_a_table() -> None:
    rows = [
        row("lstm", "quality", n, train_seq_len=40, seed=seed, metrics={"token_accuracy": 0.9, **found})
        for seed in (0, 1)
        for n, found in ((40, {}), (160, {"token_accuracy_beyond": 0.5 + seed / 4}))
    ]
    table = tables.scores(Study(rows), metrics.BEYOND)
    assert table is not None
    assert table.columns[:4] == ["task", "backbone", "trained at", "at 160"]
    assert [line[3].text for line in table.rows] == [f"62.5 % [0.0{units.DASH}100.0]"]
    assert tables.scores(Study([score()]), metrics.BEYOND) is None


def test_generated_answers_are_what_a_map_shows_where_there_are_any() -> None:
    """What is given token by token is half right without the needle."""
    rows = [
        parts("mamba", 64, {"depth_0.5": 0.5}),
        row("mamba", "quality", 64, task="needle", seed=1, metrics={"generated_sequence_accuracy/depth_0.5": 0.1}),
    ]
    ((found,),) = heat_maps.maps(Study(rows))
    assert (found.metric, found.values) == (metrics.GENERATED, [[0.1]])
    table = heat_maps.numbers(Study(rows))
    assert table is not None
    assert "generated answers, exact match" in table.note
    assert table.rows[0][4].text == "10.0 %"


def test_the_means_of_a_map_stand_in_a_table_with_their_intervals() -> None:
    rows = [parts("mamba", 64, {"depth_0.5": 0.2}), parts("mamba", 64, {"depth_0.5": 0.6}, seed=1)]
    table = heat_maps.numbers(Study(rows))
    assert table is not None
    (line,) = ([cell.text for cell in each] for each in table.rows)
    assert line == ["needle", "mamba", "64", "depth 0.5", f"40.0 % [0.0{units.DASH}100.0]", "2"]
    assert heat_maps.numbers(Study([score()])) is None


def test_maps_are_drawn_and_in_the_page(tmp_path: Path) -> None:
    maps = heat_maps.maps(Study(needles()))
    assert figures.draw_maps(maps, "x")["png"].startswith(b"\x89PNG")
    spec = plots.plot_map(maps[0][0])
    go.Figure(spec)  # validates every key
    build(needles(), tmp_path, "t")
    assert "Quality by part" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "figures" / "parts.png").exists()
    assert "heatmap" in (tmp_path / "report.html").read_text()
    build([score()], tmp_path, "t")
    assert not (tmp_path / "figures" / "parts.png").exists()


def test_generated_answers_have_a_panel_and_a_table_of_their_own() -> None:
    study = Study([generated(), generated("lstm", 0.0), score()])
    (shown,) = panels.quality(study)
    assert [(each.facet.task, each.metric) for each in shown] == [
        ("mqar", metrics.ACCURACY),
        ("string_copy", metrics.ACCURACY),
        ("string_copy", metrics.GENERATED),
    ]
    assert shown[1].baselines
    assert not shown[2].baselines, "guesses are of single tokens"
    assert shown[2].y_range == shown[1].y_range
    table = tables.scores(study, metrics.GENERATED)
    assert table is not None
    assert {tuple(cell.text for cell in line[:4]) for line in table.rows} == {
        ("string_copy", "mamba", "64", "25.0 % (1 seed)"),
        ("string_copy", "lstm", "64", "0.0 % (1 seed)"),
    }
    assert "best baseline" not in table.columns
    assert tables.scores(Study([score()]), metrics.GENERATED) is None


def test_the_loss_by_position_has_a_table() -> None:
    found = {"bits_per_byte": 2.0, "bits_per_byte/recall": 1.5, "bits_per_byte/position_16": 1.0}
    rows = [row("mamba", task="text", metrics=found), row("lstm", task="text", seed=1, metrics={"bits_per_byte": 3.0})]
    table = slice_table.numbers(Study([*rows, score()]))
    assert table is not None
    assert table.columns == ["task", "backbone", "trained at", "at", "recall", "position 16", "seeds"]
    assert [[cell.text for cell in line] for line in table.rows] == [
        ["text", "mamba", "64", "64", "1.500", "1.000", "1"]
    ]
    assert slice_table.numbers(Study([score()])) is None


def test_the_area_under_accuracy_and_length_is_a_mean() -> None:
    rows = [score(accuracy=value, seq_len=n) for n, value in ((32, 0.1), (64, 1.0), (128, 1.0), (512, 0.5))]
    study = Study(rows)
    (group,) = study.groups("quality")
    expected = (1 * 1.0 + 2 * 0.75) / 3  # an octave at 1.0, two that fall to 0.5; what is shorter does not count
    assert tables.area_over_lengths(study, group) == Point(pytest.approx(expected), None, None, 1)
    table = tables.scores(study, metrics.ACCURACY)
    assert table is not None
    assert table.rows[0][table.columns.index("over lengths")].text == "83.3 % (1 seed)"
    assert tables.area_over_lengths(Study([score()]), group) is None
