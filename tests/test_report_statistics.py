"""Statistics of a fair comparison: shares that solve, means with intervals, and differences beyond chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from scipy.stats import ttest_ind
from test_report import failure, row, score, timing

from arch_bench.report import (
    build,
    cost_tables,
    folder,
    metrics,
    pair_tables,
    pairs,
    plots,
    solved_table,
    standings,
    stats,
    study,
    tables,
    units,
)
from arch_bench.report.findings import findings
from arch_bench.report.study import Group, Study
from arch_bench.report.tables import Table
from arch_bench.results import Row


def scores(backbone: str, values: list[float], seq_len: int = 64, steps: list[int | None] | None = None) -> list[Row]:
    """A row per seed."""
    found = [{"token_accuracy": value, "n_params": 1000} for value in values]
    for each, step in zip(found, steps or [], strict=False):
        each |= {"steps_to_99": step}  # type: ignore[dict-item]
    return [score(backbone, seq_len=seq_len, seed=seed, metrics=each) for seed, each in enumerate(found)]


def text(backbone: str, values: list[float]) -> list[Row]:
    found = [{"bits_per_byte": value, "token_accuracy": 0.995} for value in values]
    return [row(backbone, "quality", seed=seed, task="text", metrics=each) for seed, each in enumerate(found)]


def group(backbone: str, task: str = "mqar") -> Group:
    return Group(task, backbone, 64)


def lines(table: Table | None) -> list[list[str]]:
    assert table is not None
    return [[cell.text for cell in line] for line in table.rows]


# Means


def test_an_interval_over_three_seeds_is_that_of_student() -> None:
    reach = 4.302653 * np.std([0.2, 0.3, 0.7], ddof=1) / 3**0.5
    assert stats.interval([0.2, 0.3, 0.7]) == pytest.approx((0.4 - reach, 0.4 + reach))
    assert stats.interval([0.2, 0.3, 0.7], 0.0, 1.0) == (0.0, 1.0), "it shows that it says nothing"
    assert stats.interval([1.0, 2.0])[1] == pytest.approx(1.5 + 12.7062 / 2, rel=1e-5)


def test_a_time_cannot_be_negative() -> None:
    low, high = stats.factor_interval([1.0, 3.0])
    assert 0 < low < 2 < high
    assert low * high == pytest.approx(4)
    assert stats.factor_interval([10.0, 10.1, 10.2]) == pytest.approx(stats.interval([10.0, 10.1, 10.2]), rel=1e-3)


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_intervals_of_normal_scores_cover_their_mean_in_95_of_100(n: int) -> None:
    drawn = 0.6 + 0.05 * np.random.default_rng(n).standard_normal((2000, n))
    hits = np.mean([low <= 0.6 <= high for low, high in map(stats.interval, drawn)])
    assert 0.935 <= hits <= 0.965


def test_scores_with_two_humps_have_no_interval_and_show_every_seed() -> None:
    rows = scores("mamba", [0.06, 0.995, 0.06])
    (point,) = Study(rows).points(metrics.ACCURACY)[group("mamba")].values()
    assert (point.low, point.high, point.scattered) == (None, None, (0.995, 0.06, 0.06))
    assert tables.text(metrics.ACCURACY, point) == "37.2 % (99.5, 6.0, 6.0)"
    (section,) = folder.sections(Study(rows))
    assert section.caption.endswith("Small hollow marks are single seeds, where some learn the task and others do not.")
    figure = go.Figure(plots.plot(section.rows[0][0]))  # raises on an attribute that Plotly does not know
    assert [tuple(trace.y) for trace in figure.data if trace.mode == "markers"] == [(0.995, 0.06, 0.06)]
    many = study.over_seeds([0.99] * 7 + [0.1] * 5, "share")
    assert many
    assert tables.text(metrics.ACCURACY, many).endswith("(7 seeds at 99.0 % and more, 5 at 10.0 % and less)")
    assert not stats.has_two_humps([0.5, 0.6, 0.75])
    assert not stats.has_two_humps([0.1, 0.9]), "two seeds have no shape"
    assert not study.over_seeds([1.4, 1.41, 2.9], "plain").scattered  # type: ignore[union-attr]


def test_a_single_seed_is_no_mean_and_says_so() -> None:
    rows = [*scores("mamba", [0.5]), *scores("lstm", [0.2, 0.4])]
    table = tables.scores(Study(rows), metrics.ACCURACY)
    assert table is not None
    place = table.columns.index("at 64")
    assert [line[place] for line in lines(table)] == [f"30.0 % [0.0{units.DASH}100.0]", "50.0 % (1 seed)"]


def test_means_of_costs_have_intervals_too() -> None:
    rows = [timing(seed=seed) for seed in range(3)]
    for seed, each in enumerate(rows):
        each.metrics.update(forward_ms=2.0 + seed, tflops=5.0)
    table = cost_tables.training(Study(rows))
    assert table is not None
    (line,) = lines(table)
    assert line[table.columns.index("forward ms")] == f"3 [1.31{units.DASH}6.87]"
    assert line[table.columns.index("TFLOP/s")] == "5"


def test_the_area_over_lengths_is_that_of_each_seed() -> None:
    rows = [*scores("mamba", [0.4, 0.8]), *scores("mamba", [0.2, 0.6], seq_len=128)]
    found = tables.area_over_lengths(Study(rows), group("mamba"))
    assert found == study.Point(pytest.approx(0.5), 0.0, 1.0, 2)


def test_an_area_is_never_that_of_the_lengths_or_seeds_that_survive() -> None:
    rows = [each for n, share in ((64, 1.0), (128, 0.9)) for each in scores("transformer", [share, share], n)]
    rows += [failure("transformer", "quality", 256, seed=seed) for seed in range(2)]
    assert tables.area_over_lengths(Study(rows), group("transformer")), "nobody has a score at 256"
    rows += [each for n in (64, 128, 256) for each in scores("mamba", [0.8, 0.7], n)]
    rows += [each for n in (64, 128, 256) for each in scores("lstm", [0.8, 0.7][: 1 + (n < 256)], n)]
    rows += [failure("lstm", "quality", 256, "diverged", seed=1)]
    table = tables.scores(Study(rows), metrics.ACCURACY)
    assert table is not None
    place = table.columns.index("over lengths")
    assert {line[1]: line[place] for line in lines(table)} == {
        "transformer": units.DASH,
        "mamba": f"75.0 % [11.5{units.DASH}100.0]",
        "lstm": units.DASH,
    }
    assert "a dash where a length that others of that task and training length have is missing" in table.note


def test_an_area_does_not_miss_what_was_tested_from_another_training_length() -> None:
    rows = [each for n in (64, 128) for each in scores("mamba", [0.8], n)]
    rows += [score("lstm", seq_len=n, train_seq_len=128) for n in (128, 256)]
    assert tables.area_over_lengths(Study(rows), group("mamba"))


# Seeds that solve


def test_a_seed_solves_each_length_by_itself() -> None:
    rows = scores("mamba", [0.995, 0.99, 0.5], steps=[500, 250, None])
    rows += scores("mamba", [0.99, 0.9, 0.5], 128, steps=[500, 250, None])
    rows += [failure("mamba", "quality", n, "diverged", seed=3) for n in (64, 128)]
    rows += scores("lstm", [0.1], steps=[None]) + scores("gru", [0.999], steps=[100])
    table = solved_table.numbers(Study(rows))
    assert table is not None
    assert table.columns[3:] == ["at 64", "at 128", "steps to 99 %", "got there"]
    assert [line[1:2] + line[3:] for line in lines(table)] == [
        ["gru", "1/1", units.DASH, "100 (1 seed)", "1/1"],
        ["lstm", "0/1", units.DASH, "never", "0/1"],
        ["mamba", f"2/4 [7{units.DASH}93 %]", f"1/4 [1{units.DASH}81 %]", "375 [250 to 500]", "2/4"],
    ]


def test_divergence_at_a_longer_length_does_not_undo_what_was_learnt() -> None:
    rows = [*scores("mamba", [0.995], steps=[500]), failure("mamba", "quality", 128, "diverged")]
    rows += [failure("mamba", "quality", n, "diverged", seed=1) for n in (64, 128)]
    for each in (rows, rows[::-1]):
        assert solved_table.steps_to_99(each) == ([500], 2)


def test_texts_are_never_solved() -> None:
    assert solved_table.numbers(Study(text("mamba", [1.5]))) is None


# Pairs


def test_a_difference_is_that_of_the_means_with_the_interval_of_welch() -> None:
    rows = scores("a", [0.9, 0.7, 0.8, 1.0]) + scores("b", [0.6, 0.5, 0.7])
    forth, back = (pairs.difference(Study(rows), group(one), group(other), 64) for one, other in ("ab", "ba"))
    assert forth
    assert back
    assert forth.n_seeds == (4, 3)
    welch = ttest_ind([0.9, 0.7, 0.8, 1.0], [0.6, 0.5, 0.7], equal_var=False).confidence_interval(0.95)
    assert forth[:3] == pytest.approx((0.25, welch.low, welch.high))
    assert back[:3] == pytest.approx((-0.25, -welch.high, -welch.low))
    assert pairs.difference(Study([*rows, failure("c", "quality", 64)]), group("a"), group("c"), 64) is None


def test_the_matrix_shows_row_minus_column_above_the_diagonal() -> None:
    rows = scores("a", [0.5, 0.6, 0.4]) + scores("b", [0.9, 0.9, 0.9]) + scores("c", [0.45, 0.7, 0.4])
    (table,) = pair_tables.matrices(Study([*rows, *scores("b", [0.2], 128), *scores("a", [0.3], 128)]))
    assert table.columns == ["tested at", "row", "minus c", "minus a"]
    assert lines(table) == [
        ["64", "b", "+38.3 [-1.6 to +78.3]", "+40.0 [+15.2 to +64.8]"],
        ["64", "c", "", "+1.7 [-31.2 to +34.5]"],
        ["128", "b", units.DASH, "-10.0 (1 seed)"],
        ["128", "c", "", units.DASH],
    ]
    (clear,) = pair_tables.matrices(Study(rows[:6] + scores("c", [0.1, 0.11, 0.12])))
    stars = [[cell.endswith("]") and "*" in cell for cell in line[2:]] for line in lines(clear)]
    assert stars == [[True, True], [False, True]], "b less a is 40 points, and a alone scatters by 20"


# What may be called different


def apart(*samples: list[float], tolerance: float = 0.01) -> set[tuple[int, int]]:
    found = stats.differences([np.array(each) for each in samples], tolerance)
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(found <= stats.LEVEL), strict=True) if i < j}


def test_holm_steps_down() -> None:
    assert stats.holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])


def test_real_differences_are_found_with_three_seeds() -> None:
    four = [1.0, 0.999, 0.9995], [0.46, 0.5, 0.42], [0.30, 0.27, 0.33], [0.05, 0.06, 0.04]
    assert apart(*four) >= {(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)}
    drawn = np.random.default_rng(0).standard_normal((60, 4, 3))
    drawn = np.array([1, 0.46, 0.30, 0.05])[:, None] + np.array([0.001, 0.1, 0.08, 0.01])[:, None] * drawn
    assert np.mean([len(apart(*map(list, each))) / 6 for each in drawn]) > 0.5


def test_seeds_that_agree_by_chance_are_not_without_spread() -> None:
    assert apart([0.9, 0.9, 0.9], [0.911, 0.911, 0.911]) == set(), "t is infinite, and means nothing"
    assert apart([0.9, 0.9, 0.9], [0.5, 0.5, 0.5]) == {(0, 1)}
    flips = [0.995, 0.06, 0.06], [0.995, 0.995, 0.06]
    assert apart([0.995] * 3, [0.06] * 3, *flips) == set(), "the others show that seeds flip"
    elsewhere = [0.18, 0.162, 0.198], [0.991, 0.0002, 0.0002], [0.998, 0.999, 0.9992], [0.037, 0.035, 0.039]
    assert (0, 1) in apart([0.999, 0.9985, 0.9995], *elsewhere), "nobody flips between 100 and 18 %"


def test_within_the_tolerance_or_with_two_seeds_nothing_differs() -> None:
    assert apart([0.9, 0.9001, 0.9002] * 5, [0.91, 0.9101, 0.9102] * 5) == set()
    assert apart([0.9, 0.9], [0.1, 0.1]) == set()


def test_an_exact_test_of_two_times_three_seeds_says_nothing_and_of_more_it_does() -> None:
    assert stats.any_difference([np.array([1.0, 1, 1]), np.array([0.0, 0, 0])]) == 0
    two_of_70 = stats.any_difference([np.array([1.0, 1, 1, 1]), np.array([0.0, 0, 0, 0])])
    assert two_of_70 == pytest.approx(2 / 70)
    halves = [np.array([1.0] * n + [0.0] * (8 - n)) for n in (6, 2)]
    assert stats.any_difference(halves) > stats.LEVEL


EQUAL: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda draw, shape: 0.6 + 0.05 * draw.standard_normal(shape),
    "narrow": lambda draw, shape: 0.6 + 0.004 * draw.standard_normal(shape),
    "two humps": lambda draw, shape: (
        np.where(draw.random(shape) < 0.5, 0.995, 0.06) + 0.003 * draw.standard_normal(shape)
    ),
    "few solve": lambda draw, shape: (
        np.where(draw.random(shape) < 1 / 3, 0.995, 0.06) + 0.003 * draw.standard_normal(shape)
    ),
    "most solve": lambda draw, shape: (
        np.where(draw.random(shape) < 0.9, 0.995, 0.06) + 0.001 * draw.standard_normal(shape)
    ),
    "seeds in common": lambda draw, shape: (
        0.6 + 0.05 * (0.95 * draw.standard_normal((1, shape[1])) + 0.31 * draw.standard_normal(shape))
    ),
}
CONTENDERS, SEEDS = (2, 4, 10), (3, 5, 10)


@pytest.mark.parametrize(("k", "n"), [(2, 3), (3, 3), (4, 3), (10, 3), (2, 8)])
@pytest.mark.parametrize("scatter", ["normal", "two humps"])
def test_equal_contenders_are_rarely_called_different(scatter: str, k: int, n: int) -> None:
    """The slow test below holds the sentences to 5 %; 200 studies show what is far from it: Welch alone had 8 to 50."""
    draw = np.random.default_rng(k * n)
    assert sum(bool(apart(*map(list, EQUAL[scatter](draw, (k, n))))) for _ in range(200)) <= 20


def claims(values: np.ndarray) -> bool:
    """Whether a report of equal contenders states any difference."""
    rows = [each for place, of in enumerate(values) for each in scores(f"b{place}", [float(v) for v in of])]
    told, table = " ".join(findings(Study(rows))), pair_tables.matrices(Study(rows))[0]
    words = ("scores best", "is last", "is ahead of", "exact test tells b")
    return any(word in told for word in words) or any("*" in cell.text for line in table.rows for cell in line)


def test_a_sentence_claims_what_a_difference_supports() -> None:
    assert claims(np.array([[0.9, 0.91, 0.92], [0.1, 0.11, 0.12]]))
    assert not claims(np.array([[0.9, 0.91, 0.92], [0.9, 0.91, 0.12]]))


@pytest.mark.slow
@pytest.mark.parametrize("scatter", EQUAL)
@pytest.mark.parametrize("k", CONTENDERS)
@pytest.mark.parametrize("n", SEEDS)
def test_at_most_one_study_of_equal_contenders_in_twenty_states_a_difference(scatter: str, k: int, n: int) -> None:
    draw, n_studies = np.random.default_rng(k * n), 300
    found = sum(claims(np.clip(EQUAL[scatter](draw, (k, n)), 0, 1)) for _ in range(n_studies))
    assert found <= 0.05 * n_studies + 2 * (0.05 * 0.95 * n_studies) ** 0.5


def test_the_tasks_of_a_study_share_its_error_rate() -> None:
    rows = scores("a", [0.9, 0.8, 0.85]) + scores("b", [0.7, 0.65, 0.75])
    others = [dataclasses.replace(each, task=task, key=f"{task}{each.key}") for task in ("x", "y") for each in rows]
    assert "a scores best" in standings.sentence(Study(rows), "mqar")
    assert "scores best" not in standings.sentence(Study([*rows, *others]), "mqar")


# Shares of seeds


def test_three_seeds_against_three_never_differ_in_the_share_that_solves() -> None:
    assert stats.fisher(3, 3, 0, 3) == pytest.approx(0.1)
    assert stats.fisher(5, 5, 0, 5) == pytest.approx(2 / 252)
    (sentence,) = solved_table.sentences(Study(scores("a", [0.995] * 3) + scores("b", [0.06] * 3)))
    assert sentence == (
        "Seeds that solve mqar at 64 tokens (99 % and more): a 3/3 and b 0/3; Fisher's exact test tells none apart, "
        "and with 3 seeds each could not tell 3/3 from 0/3."
    )


def test_enough_seeds_differ_in_the_share_that_solves() -> None:
    rows = scores("a", [0.995] * 8) + scores("b", [0.06] * 7 + [0.995]) + scores("c", [0.995] * 6 + [0.06] * 2)
    (sentence,) = solved_table.sentences(Study(rows))
    assert "a 8/8, c 6/8 and b 1/8; Fisher's exact test tells a from b (3 pairs)." in sentence
    assert not solved_table.sentences(Study(scores("a", [0.995] * 3) + scores("b", [0.999] * 3)))


def test_a_share_has_an_exact_interval() -> None:
    assert stats.share_interval(3, 3) == pytest.approx((0.025 ** (1 / 3), 1.0))
    assert stats.share_interval(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))


def test_with_one_seed_the_report_says_that_nothing_can_be_said(tmp_path: Path) -> None:
    (table,) = pair_tables.matrices(Study([score("a", 0.9), score("b", 0.1)]))
    assert not table.rows
    assert "nothing can be said of whether one is ahead of another: mqar trained at 64" in table.note
    assert not any("ahead" in sentence for sentence in findings(Study([score("a", 0.9), score("b", 0.1)])))
    build([score("a", 0.9), score("b", 0.1)], tmp_path, "t")
    for name in ("report.md", "report.html"):
        assert "nothing can be said" in (tmp_path / name).read_text()
    assert pair_tables.matrices(Study([score("a", 0.9)])) == []


def test_a_crowd_is_cut_to_the_best() -> None:
    rows = [each for n in range(14) for each in scores(f"b{n:02}", [n / 20, n / 20 + 0.01])]
    (table,) = pair_tables.matrices(Study(rows))
    assert len(table.columns) == 2 + pair_tables.MOST_CONTENDERS - 1
    assert table.rows[0][1].text == "b13"
    assert "The best 10 of 14." in table.note
    lengths = range(64, 65 + pair_tables.MOST_TABLES)
    many = [score(name, seq_len=n, train_seq_len=n, seed=seed) for n in lengths for name in "ab" for seed in (0, 1)]
    *shown, rest = pair_tables.matrices(Study(many))
    assert len(shown) == pair_tables.MOST_TABLES
    assert f"Left out, to keep this short: mqar trained at {lengths[-1]}." in rest.note


def test_findings_name_only_differences_beyond_the_scatter_of_seeds() -> None:
    rows = scores("a", [0.9, 0.8, 0.85]) + scores("b", [0.4, 0.45, 0.5]) + scores("c", [0.2, 0.3, 0.1])
    (sentence,) = (each for each in findings(Study(rows)) if "ahead" in each)
    assert sentence == (
        "On mqar at 64 tokens (3 seeds), a is ahead of b by 40.0 points of accuracy [28.7 to 51.3] and c by "
        "65.0 [44.2 to 85.8] (Welch's t test, with Holm's correction for 3 pairs, 5 % in all)."
    )
    for level in (scores("b", [0.5, 0.9, 0.7]), scores("b", [0.5, 0.6])):  # too much scatter, and two seeds only
        assert not any("ahead" in each for each in findings(Study(rows[:3] + level)))


def test_a_lead_in_bits_is_told_as_a_positive_amount() -> None:
    sentences = pairs.sentences(Study(text("a", [1.0, 1.1, 1.2]) + text("b", [1.8, 1.8, 1.8])))
    assert "a is ahead of b by 0.700 bits per byte [0.452 to 0.948] (Welch's t test, 5 %)" in sentences[0]


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        (metrics.ACCURACY, 0.1234, "+12.3"),
        (metrics.ACCURACY, -0.0001, "-0.01"),
        (metrics.ACCURACY, 0.0, "0.0"),
        (metrics.BITS_PER_BYTE, -0.0123, "-0.012"),
    ],
)
def test_a_difference_never_reads_as_zero_unless_it_is(metric: metrics.Metric, value: float, shown: str) -> None:
    assert pairs.amount(metric, value) == shown
