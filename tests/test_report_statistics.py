"""Statistics of a fair comparison: shares that solve, means with intervals, and differences paired by seed."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from test_report import failure, row, score, timing

from arch_bench.report import build, cost_tables, metrics, pair_tables, pairs, solved_table, study, tables, units
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


def test_an_interval_over_three_seeds_is_that_of_all_27_resamples() -> None:
    values = np.array([0.2, 0.3, 0.7])
    means = sorted(values[list(places)].mean() for places in product(range(3), repeat=3))
    expected = (means[int(0.025 * 27)], means[int(0.975 * 27)])
    assert study.bootstrap(values) == pytest.approx(expected)
    assert expected == pytest.approx((0.2, 0.7)), "of three seeds it is their range"


def test_a_single_seed_is_no_mean_and_says_so() -> None:
    rows = [*scores("mamba", [0.5]), *scores("lstm", [0.2, 0.4])]
    table = tables.scores(Study(rows), metrics.ACCURACY)
    assert table is not None
    place = table.columns.index("at 64")
    assert [line[place] for line in lines(table)] == [f"30.0 % [20.0{units.DASH}40.0]", "50.0 % (1 seed)"]


def test_means_of_costs_have_intervals_too() -> None:
    rows = [timing(seed=seed) for seed in range(3)]
    for seed, each in enumerate(rows):
        each.metrics.update(forward_ms=2.0 + seed, tflops=5.0)
    table = cost_tables.training(Study(rows))
    assert table is not None
    (line,) = lines(table)
    assert line[table.columns.index("forward ms")] == f"3 [2{units.DASH}4]"
    assert line[table.columns.index("TFLOP/s")] == "5"


def test_the_area_over_lengths_is_that_of_each_seed() -> None:
    rows = [*scores("mamba", [0.4, 0.8]), *scores("mamba", [0.2, 0.6], seq_len=128)]
    found = tables.area_over_lengths(Study(rows), group("mamba"))
    assert found == (pytest.approx(0.5), pytest.approx(0.3), pytest.approx(0.7), 2)


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
        "mamba": f"75.0 % [70.0{units.DASH}80.0]",
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
        ["mamba", "2/4", "1/4", "375 [250 to 500]", "2/4"],
    ]


def test_divergence_at_a_longer_length_does_not_undo_what_was_learnt() -> None:
    rows = [*scores("mamba", [0.995], steps=[500]), failure("mamba", "quality", 128, "diverged")]
    rows += [failure("mamba", "quality", n, "diverged", seed=1) for n in (64, 128)]
    for each in (rows, rows[::-1]):
        assert solved_table.steps_to_99(each) == ([500], 2)


def test_texts_are_never_solved() -> None:
    assert solved_table.numbers(Study(text("mamba", [1.5]))) is None


# Pairs


def test_a_difference_is_taken_seed_by_seed() -> None:
    found = pairs.difference(
        Study(scores("a", [0.9, 0.7, 0.8, 1.0]) + scores("b", [0.6, 0.6, 0.6])), group("a"), group("b"), 64
    )
    assert found is not None
    assert found.point == (pytest.approx(0.2), pytest.approx(0.1), pytest.approx(0.3), 3), "seed 3 has no partner"
    assert found.superiority == 1
    assert found.is_clear


def test_ties_are_half_won() -> None:
    rows = scores("a", [0.5, 0.5, 0.9, 0.1]) + scores("b", [0.4, 0.5, 0.9, 0.8])
    forth, back = (pairs.difference(Study(rows), group(one), group(other), 64) for one, other in ("ab", "ba"))
    assert forth is not None
    assert back is not None
    assert forth.superiority == back.superiority == 0.5  # one won, one lost, two ties
    assert forth.point.value == pytest.approx(-back.point.value) == pytest.approx(-0.15)
    assert not forth.is_clear


def test_of_bits_per_byte_less_is_better() -> None:
    rows = text("a", [1.0, 1.1, 1.2]) + text("b", [1.5, 1.5, 1.1])
    found = pairs.difference(Study(rows), group("a", "text"), group("b", "text"), 64)
    assert found is not None
    assert found.point.value == pytest.approx(-0.8 / 3)
    assert found.superiority == pytest.approx(2 / 3)


def test_two_seeds_are_never_clear_and_what_failed_has_no_difference() -> None:
    rows = scores("a", [0.9, 0.9]) + scores("b", [0.1, 0.1]) + [failure("c", "quality", 64)]
    found = pairs.difference(Study(rows), group("a"), group("b"), 64)
    assert found is not None
    assert not found.is_clear
    assert pairs.difference(Study(rows), group("a"), group("c"), 64) is None


def test_the_matrix_shows_row_minus_column_above_the_diagonal() -> None:
    rows = scores("a", [0.5, 0.6, 0.4]) + scores("b", [0.9, 0.9, 0.9]) + scores("c", [0.45, 0.7, 0.4])
    (table,) = pair_tables.matrices(Study([*rows, *scores("b", [0.2], 128), *scores("a", [0.3], 128)]))
    assert table.columns == ["tested at", "row", "minus c", "minus a"]
    assert lines(table) == [
        ["64", "b", "+38.3* [+20.0 to +50.0] 3/3", "+40.0* [+30.0 to +50.0] 3/3"],
        ["64", "c", "", "+1.7 [-5.0 to +10.0] 1.5/3"],
        ["128", "b", units.DASH, "-10.0 (1 seed)"],
        ["128", "c", "", units.DASH],
    ]


def test_with_one_seed_the_report_says_that_nothing_can_be_said(tmp_path: Path) -> None:
    (table,) = pair_tables.matrices(Study([score("a", 0.9), score("b", 0.1)]))
    assert not table.rows
    assert "nothing can be said of whether one is ahead of another: mqar trained at 64" in table.note
    assert not any("Paired" in sentence for sentence in findings(Study([score("a", 0.9), score("b", 0.1)])))
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


def test_findings_name_only_differences_whose_interval_excludes_0() -> None:
    rows = scores("a", [0.9, 0.8, 0.85]) + scores("b", [0.5, 0.6, 0.7]) + scores("c", [0.2, 0.95, 0.1])
    (sentence,) = (each for each in findings(Study(rows)) if "Paired" in each)
    assert sentence == (
        "Paired by seed on mqar at 64 tokens (3 seeds), a is ahead of b by 25.0 points of accuracy [15.0 to 40.0]; "
        "the interval of 1 of 3 pairs excludes 0 (of equal pairs, at least 1 in 4 would)."
    )
    for level in (scores("b", [0.5, 0.9, 0.7]), scores("b", [0.5, 0.6])):  # overlapping, and two seeds only
        assert not any("Paired" in each for each in findings(Study(rows[:3] + level)))


def test_a_lead_in_bits_is_told_as_a_positive_amount() -> None:
    sentences = pairs.sentences(Study(text("a", [1.0, 1.1, 1.2]) + text("b", [1.5, 1.5, 1.5])))
    assert "a is ahead of b by 0.400 bits per byte [0.300 to 0.500]" in sentences[0]


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
