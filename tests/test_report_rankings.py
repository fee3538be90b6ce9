"""Many series at one or two lengths: who is ranked where, what stands beside the dots, and how that is drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go
import pytest
from test_report import failure, score, timing

from arch_bench.report import build, folder, metrics, panels, ranking_figure, ranking_plot, rankings
from arch_bench.report.facets import Facet
from arch_bench.report.parts import Ranking
from arch_bench.report.study import Study
from arch_bench.results import Row

N = rankings.MOST_LINES + 1
TEXT = {"baseline_unigram": 2.2, "baseline_uniform": 8.0}


def crowd(make: Callable[..., Row], *lengths: int, n: int = N) -> list[Row]:
    """b0, b1, ...: the later, the better their score, and the longer their steps."""
    return [make(f"b{i}", (i + 1) / (n + 1), length) for i in range(n) for length in lengths or (64,)]


def ranked(rows: list[Row], metric: metrics.Metric = metrics.ACCURACY) -> Ranking:
    panel = panels.panel(Study(rows), Facet("mqar"), metric)
    assert panel
    return rankings.ranking(panel)


def names(shown: Ranking) -> list[str]:
    return [entry.series for entry in shown.entries]


def section(rows: list[Row], stem: str = "quality") -> folder.Section:
    return next(each for each in folder.sections(Study(rows)) if each.stem == stem)


def some() -> list[Row]:
    """Two lengths, three seeds, failures at both lengths and at one."""
    rows = [
        score(f"b{i}", (i + 1) / 14 + seed / 100, length, seed=seed)
        for i in range(12)
        for length in (64, 128)
        for seed in range(3)
        if (i, length) != (5, 128)
    ]
    return [*rows, failure("b5", "quality", 128), failure("lstm", "quality", 64), failure("lstm", "quality", 128)]


def test_many_series_at_few_lengths_are_ranked_and_others_stay_lines() -> None:
    for lengths in ((64,), (64, 128)):
        shown = section(crowd(score, *lengths))
        assert (len(shown.rankings), shown.rows, shown.styles) == (1, [], {})
    for rows in (crowd(score, n=N - 1), crowd(score, 64, 128, 256)):
        shown = section(rows)
        assert (len(shown.styles), shown.rankings) == (len({row.backbone for row in rows}), [])
    assert section([*crowd(timing), failure("b0", "speed", 128), timing("b0", 1, 256)], "training").rows


def test_lines_that_leave_their_training_length_stay_lines() -> None:
    own = [score(f"b{i}", seq_len=n, train_seq_len=n) for i in range(N) for n in (64, 128)]
    assert not section([*own, score("b0", seq_len=128)]).rankings
    ((shown,),) = section(own).rankings
    assert shown.note == "filled: 64 tokens; hollow: 128 tokens; each trained where it is tested"


@pytest.mark.parametrize("metric", [metrics.TOKENS_PER_S, metrics.TRAIN_STEP])
def test_the_best_comes_first_in_each_metric(metric: metrics.Metric) -> None:
    shown = ranked(crowd(timing), metric)
    assert names(shown) == [f"b{i}" for i in range(N)], "short steps are many tokens a second"
    values = [entry.points[64].value for entry in shown.entries]
    assert values == sorted(values, reverse=metric.is_higher_better)
    assert names(ranked(crowd(score))) == [f"b{i}" for i in reversed(range(N))]


def test_the_training_length_decides_and_otherwise_the_shortest() -> None:
    rows = [score("a", 0.9, 32), score("a", 0.1, 64), score("b", 0.2, 32), score("b", 0.8, 64)]
    shown = ranked(rows)
    assert (shown.lengths, names(shown)) == ([64, 32], ["b", "a"])
    assert shown.note == "filled: 64 tokens, trained here; hollow: 32 tokens"
    assert list(shown.entries[0].points) == [64, 32]
    costs = ranked([timing("a", 1, 32), timing("a", 9, 64), timing("b", 2, 32), timing("b", 3, 64)], metrics.TRAIN_STEP)
    assert (costs.lengths, names(costs)) == ([32, 64], ["a", "b"])
    assert costs.note == "filled: 32 tokens; hollow: 64 tokens"
    assert ranked([timing()], metrics.TRAIN_STEP).note == "at 64 tokens"


def test_what_failed_stands_last_with_its_status_and_a_single_length_is_named() -> None:
    rows = [score("a", 0.9), score("a", 0.8, 128), score("b", 0.2), failure("b", "quality", 128)]
    rows += [failure("c", "quality", 64, "diverged"), score("c", 0.99, 128)]
    rows += [failure("d", "quality", n, "timeout") for n in (64, 128)]
    rows += [failure("e", "quality", 64, "diverged"), failure("e", "quality", 128)]
    shown = ranked(rows)
    assert [(entry.series, entry.words and entry.words.text) for entry in shown.entries] == [
        ("a", None),
        ("b", "oom at 128"),
        ("c", "diverged at 64"),
        ("d", "timeout"),
        ("e", "diverged at 64, oom at 128"),
    ]
    assert [list(entry.points) for entry in shown.entries] == [[64, 128], [64], [128], [], []]
    assert [entry.words.side for entry in shown.entries if entry.words] == ["right", "left", "right", "right"]


def test_words_that_would_not_fit_leave_the_lengths_to_the_table() -> None:
    rows = [score("a", 0.5, 128), failure("a", "quality", 64, "diverged"), score("b"), score("b", 0.1, 128)]
    rows += [failure("a", "quality", 128, "timeout", seed=1), failure("a", "quality", 64, "diverged", seed=1)]
    (words,) = (entry.words for entry in ranked(rows).entries if entry.words)
    assert words.text == "diverged, timeout 1/2"


def test_the_axis_leaves_out_the_band_for_failures() -> None:
    for metric in (metrics.TOKENS_PER_S, metrics.TRAIN_STEP):
        assert ranked([*crowd(timing), failure("z", "speed", 64)], metric).x_range == pytest.approx(
            ranked(crowd(timing), metric).x_range
        )


def test_texts_of_ticks_do_not_touch() -> None:
    rows = [timing(f"b{i}", metrics={"peak_mem_bytes": (380 + 82 * i) * 2**20}) for i in range(N)]
    panel = panels.panel(Study(rows), Facet("mqar"), metrics.PEAK_MEMORY)
    assert panel
    every, kept = ([tick.text for tick in ticks] for ticks in (panel.y_ticks, rankings.ranking(panel).x_ticks))
    assert every == ["384 MiB", "512 MiB", "768 MiB", "1 GiB"]
    assert kept == ["384 MiB", "768 MiB", "1 GiB"]


def test_baselines_are_labelled_below_the_series_and_apart() -> None:
    shown = ranked(crowd(score))
    guesses = {guess.name: guess for guess in shown.guesses}
    assert {name: guess.value for name, guess in guesses.items()} == pytest.approx({"value set": 0.125, "chance": 0.01})
    assert len({guess.y for guess in shown.guesses}) == 2, "12 % and 1 % are too near for one line"
    assert N - 1 < guesses["value set"].y < guesses["chance"].y < shown.bottom, "no line through the other's label"


def test_a_baseline_off_the_scale_is_a_label_with_an_arrow() -> None:
    rows = [score(f"b{i}", metrics={"bits_per_byte": 1.5 + i / 20} | TEXT) for i in range(N)]
    guesses = {guess.name: guess for guess in ranked(rows, metrics.BITS_PER_BYTE).guesses}
    assert guesses["unigram"].value == pytest.approx(2.2)
    assert (guesses["uniform"].value, guesses["uniform"].words.side) == (None, "left")
    assert guesses["uniform"].words.text == "uniform 8.000 →"


def test_figures_of_rankings_are_the_same_bytes_every_time() -> None:
    first, second = (ranking_figure.draw(section(some()).rankings) for _ in range(2))
    assert first == second
    assert first["png"].startswith(b"\x89PNG")
    assert b"<dc:date>" not in first["svg"]


def test_plotly_accepts_rankings_and_draws_every_value_in_its_row() -> None:
    shown = ranked(some())
    figure = go.Figure(ranking_plot.plot(shown))  # raises on an attribute that Plotly does not know
    drawn = {(trace.name, trace.x[0], trace.y[0]) for trace in figure.data if trace.mode == "markers"}
    assert drawn == {
        (entry.series, point.value, row) for row, entry in enumerate(shown.entries) for point in entry.points.values()
    }
    hover = next(trace.customdata[0] for trace in figure.data if trace.name == "b11" and trace.mode == "markers")
    assert re.fullmatch(r"b11 <b>86\.7 % \[.*\]</b>, 3 seeds, at 128 tokens", hover)
    whisker = next(trace.error_x for trace in figure.data if trace.name == "b11" and trace.mode == "markers")
    assert (whisker.array[0], whisker.arrayminus[0]) == pytest.approx((0.0248, 0.0248), abs=1e-4)
    assert {note.text for note in figure.layout.annotations} == {"value set", "chance", "oom at 128", "oom"}
    assert list(figure.layout.yaxis.ticktext) == names(shown)


def test_a_page_of_rankings_has_its_names_and_no_legend(tmp_path: Path) -> None:
    page = build([*some(), *crowd(timing)], tmp_path, "t").read_text()
    assert not re.findall('class="legend', page)
    assert "Click a name" not in page
    assert "filled: 64 tokens, trained here; hollow: 128 tokens" in page
    assert "best first" in (tmp_path / "report.md").read_text()
    specs = [json.loads(spec) for spec in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    listed = [spec["layout"] for spec in specs if "ticktext" in spec["layout"]["yaxis"]]
    assert [f"b{i}" for i in range(N)] in [layout["yaxis"]["ticktext"] for layout in listed]
    heights = {int(each) for each in re.findall(r'style="height: (\d+)px; min-width: \d+px', page)}
    assert heights
    assert heights <= {layout["height"] for layout in listed}
