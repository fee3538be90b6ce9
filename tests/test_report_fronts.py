"""Score against cost: who is on the front, at which length a cost is read, and how that is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from test_report import decode, row, score, timing

from arch_bench.report import build, fronts, metrics, tradeoff_plot, tradeoffs
from arch_bench.report.fronts import Front
from arch_bench.report.study import Study
from arch_bench.results import Row


def contender(backbone: str, accuracy: float, step_ms: float, state_bytes: int = 1024) -> list[Row]:
    return [score(backbone, accuracy), timing(backbone, step_ms), decode(backbone, state_bytes=state_bytes)]


def some() -> list[Row]:
    return [
        *contender("fast", 0.5, 5, 4096),
        *contender("good", 0.9, 20, 1024),
        *contender("middle", 0.7, 10, 8192),
        *contender("bad", 0.6, 15, 2048),
    ]


def of(rows: list[Row], metric: metrics.Metric) -> Front:
    (found,) = (each for each in fronts.fronts(Study(rows))[0] if each.metric is metric)
    return found


def names(front: Front) -> list[str]:
    return [rival.group.series for rival in front.best]


def test_nobody_on_a_front_is_beaten_in_both() -> None:
    assert names(of(some(), metrics.TOKENS_PER_S)) == ["fast", "middle", "good"]
    assert names(of(some(), metrics.STATE)) == ["good"], "least state, best score"


def test_equals_share_a_front_and_an_equal_cost_needs_the_better_score() -> None:
    twins = [*contender("a", 0.5, 5), *contender("b", 0.5, 5), *contender("c", 0.4, 5)]
    assert names(of(twins, metrics.TOKENS_PER_S)) == ["a", "b"]


def test_of_bits_per_byte_less_is_better() -> None:
    rows = [row(name, metrics={"bits_per_byte": bits}, task="text") for name, bits in (("a", 1.5), ("b", 1.2))]
    rows += [timing("a", 5, task="text"), timing("b", 10, task="text")]
    front = of(rows, metrics.TOKENS_PER_S)
    assert [rival.group.series for rival in front.rivals] == ["b", "a"]
    assert names(front) == ["a", "b"]
    worse = [row("b", metrics={"bits_per_byte": 1.6}, task="text", created_at="2027"), *rows]
    assert names(of(worse, metrics.TOKENS_PER_S)) == ["a"]


def test_a_cost_is_read_at_the_nearest_length_that_two_have() -> None:
    rows = [score("a"), score("b"), score("c"), timing("a", 5, 128), timing("b", 9, 128), timing("a", 5, 64)]
    front = of(rows, metrics.TOKENS_PER_S)
    assert front.length == 128
    assert front.title == "training tokens/s, at 128 tokens"
    assert [group.series for group in front.without] == ["c"]
    assert not fronts.fronts(Study(rows[:4])), "one cost is no comparison"


def test_a_cost_belongs_to_the_same_backbone_at_the_same_size() -> None:
    rows = [make("a", config={"d_model": d}) for d in (64, 128) for make in (score, timing)]
    rows += [score("b", config={"d_model": 64, "optim": {"lr": lr}}) for lr in (0.1, 0.2)]
    rows += [timing("b", 33, config={"d_model": 64})]
    front = of(rows, metrics.TOKENS_PER_S)
    cost = {rival.group.series: rival.cost.value for rival in front.rivals}
    assert cost["b d_model=64 lr=0.1"] == cost["b d_model=64 lr=0.2"] == pytest.approx(4096e3 / 33)
    assert len(cost) == 4


def test_of_two_ways_to_run_that_of_the_training_counts() -> None:
    rows = [score(name, metrics={"token_accuracy": 0.5, "step": "graph"}) for name in "ab"]
    for n, step in ((64, "eager"), (256, "graph")):
        rows += [timing(name, seq_len=n, metrics={"tokens_per_s": 1e3 * n, "step": step}) for name in "ab"]
    front = of(rows, metrics.TOKENS_PER_S)
    assert (front.length, [rival.cost.value for rival in front.rivals]) == (256, [256e3, 256e3])


def test_the_stairs_hold_a_score_up_to_where_a_better_one_begins() -> None:
    front = of(some(), metrics.TOKENS_PER_S)
    fast, middle, good = (4096e3 / ms for ms in (5, 10, 20))
    expected = [(fast, 0.5), (middle, 0.5), (middle, 0.7), (good, 0.7), (good, 0.9)]
    assert np.array(tradeoffs.corners(front.best)) == pytest.approx(np.array(expected))


def test_the_dominated_are_marked_and_names_stand_where_they_cover_least() -> None:
    ((state, speed, *_),) = tradeoffs.tradeoffs(Study(some()))
    assert (state.front.metric, speed.front.metric) == (metrics.STATE, metrics.TOKENS_PER_S)
    assert [dot.series for dot in state.dots if not dot.is_best] == ["middle", "bad", "fast"]
    assert {dot.series: dot.side for dot in speed.dots}["good"] != "middle left", "there the stairs go down from it"
    assert all(dot.side in tradeoffs.SIDES for dot in speed.dots)
    crowd = [each for n in range(20) for each in contender(f"b{n:02}", n / 40, 5 + n, 1024 + n)]
    ((first, *_),) = tradeoffs.tradeoffs(Study(crowd))
    assert {dot.is_best for dot in first.dots if dot.side} == {True}, "of a crowd only the front has names"


def test_only_what_rows_have_is_drawn_and_both_ways_of_drawing_take_it(tmp_path: Path) -> None:
    rows = [each for each in some() if each.kind != "decode"]
    drawn = tradeoffs.tradeoffs(Study(rows))
    assert [each.front.metric for each in drawn[0]] == [metrics.TOKENS_PER_S, metrics.PEAK_MEMORY]
    assert drawn == tradeoffs.tradeoffs(Study(rows[::-1]))
    figure = go.Figure(tradeoff_plot.plot(drawn[0][0]))  # raises on an attribute that Plotly does not know
    assert {trace.name: (trace.x[0], trace.y[0]) for trace in figure.data if trace.name} == {
        dot.series: (dot.cost.value, dot.score.value) for dot in drawn[0][0].dots
    }
    build(rows, tmp_path, "t")
    assert "Who is on which front" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "figures" / "fronts.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_says_who_is_on_which_front() -> None:
    table = fronts.numbers(Study([*some(), score("unknown", 0.1)]))
    assert table is not None
    line = next(line for line in table.rows if line[2].text.startswith("training tokens/s"))
    assert [cell.text for cell in line[3:]] == ["fast, middle, good", "bad", "unknown"]
    assert fronts.numbers(Study([score()])) is None
