"""What the sentences on scores may claim: who is level, who leads, and what became of seeds that failed."""

from __future__ import annotations

import pytest
from test_report import failure, row, score
from test_report_statistics import scores, text

from arch_bench.report import pairs, reach, standings, units
from arch_bench.report.findings import findings
from arch_bench.report.study import Study
from arch_bench.results import Row

DASH = units.DASH


def standing(rows: list[Row], task: str = "mqar") -> str:
    return standings.sentence(Study(rows), task)


def diverged(backbone: str, *seeds: int, n: int = 64) -> list[Row]:
    return [failure(backbone, "quality", n, "diverged", seed=seed) for seed in seeds]


# Level, ahead, or neither


def test_level_is_what_scores_alike_and_not_what_has_wide_intervals() -> None:
    rows = scores("transformer", [1.0] * 3) + scores("mamba", [1.0, 0.06, 0.06]) + scores("gru", [0.995] * 3)
    assert standing(rows) == (
        "On mqar at 64 tokens (3 seeds), transformer (100.0 %) and gru (99.5 %) are level in token accuracy "
        f"(within 1 point); 3 seeds cannot tell transformer from mamba (37.3 % [6.0{DASH}100.0])."
    )
    assert standing(rows[:6]) == (
        "On mqar at 64 tokens (3 seeds), transformer leads with 100.0 % token accuracy, "
        f"but 3 seeds cannot tell it from mamba (37.3 % [6.0{DASH}100.0])."
    )


def test_intervals_that_overlap_do_not_contradict_the_paired_test() -> None:
    values = [0.95, 0.75, 0.55, 0.85, 0.65]
    rows = scores("mamba", values) + scores("lstm", [value - 0.03 for value in values])
    first, second = findings(Study(rows))
    assert first == (
        f"On mqar at 64 tokens (5 seeds), mamba scores best: 75.0 % [63.0{DASH}87.0] token accuracy; "
        f"lstm (72.0 % [60.0{DASH}84.0]) is last."
    )
    assert "mamba is ahead of lstm by 3.0 points" in second


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_one_seed_or_two_rank_nobody(n_seeds: int) -> None:
    found = standing(scores("a", [0.9] * n_seeds) + scores("b", [0.5] * n_seeds))
    assert f"a leads with 90.0 % token accuracy, but {units.seeds(n_seeds)} cannot tell it from b (50.0 %)." in found
    assert "best" not in found
    assert "last" not in found


def test_the_last_is_last_of_all_and_not_only_of_those_clearly_behind() -> None:
    rows = scores("a", [0.9, 0.9, 0.9]) + scores("b", [0.5, 0.5, 0.5]) + scores("c", [0.1, 0.1, 0.95])
    assert standing(rows).endswith(f"cannot tell it from c (38.3 % [10.0{DASH}95.0]).")
    assert standing([*rows, *scores("d", [0.3] * 3)]).endswith("; d (30.0 %) is last.")


def test_many_that_are_level_or_cannot_be_told_apart_are_counted() -> None:
    rows = [score(f"level{n}", 1 - n / 1000) for n in range(4)] + [score(f"other{n}", 0.8 - n / 50) for n in range(5)]
    assert standing(rows) == (
        "On mqar at 64 tokens (1 seed), 4 of 9 are level in token accuracy (within 1 point), level0 (100.0 %) among "
        "them; 1 seed cannot tell level0 from other0 (80.0 %), other1 (78.0 %), other2 (76.0 %) and 2 more."
    )


def test_of_bits_less_is_better() -> None:
    rows = text("a", [1.0, 1.1, 1.2]) + text("b", [1.5, 1.6, 1.7]) + text("c", [1.1, 1.1, 1.12])
    assert standing(rows[:6], "text").endswith("a scores best: 1.100 [1.000\N{EN DASH}1.200] bits per byte; "
                                               "b (1.600 [1.500\N{EN DASH}1.700]) is last.")  # fmt: skip
    assert "are level in bits per byte (within 0.01); b" in standing(rows, "text")


# Seeds that failed


def test_survivors_are_not_ranked() -> None:
    rows = [*scores("mamba", [0.99]), *diverged("mamba", 1, 2), *scores("lstm", [0.9] * 3)]
    assert standing(rows) == (
        "On mqar at 64 tokens (3 seeds), lstm scores 90.0 % token accuracy; "
        "not ranked, for want of seeds: mamba (99.0 %, 1 of 3 seeds: 2 diverged)."
    )
    assert standing(rows[:3]) == (
        "On mqar at 64 tokens, nothing is ranked, for want of seeds: mamba (99.0 %, 1 of 3 seeds: 2 diverged)."
    )


def test_who_has_fewer_seeds_or_none_is_named_apart() -> None:
    rows = scores("a", [0.9] * 4) + scores("b", [0.5] * 4) + scores("c", [0.99, 0.2]) + diverged("d", 0, 1)
    rows += [failure("d", "quality", 64, "oom", seed=2), failure("e", "speed", 64)]
    assert standing(rows) == (
        "On mqar at 64 tokens (4 seeds), a scores best: 90.0 % token accuracy; b (50.0 %) is last; not ranked, for "
        f"want of seeds: c (59.5 % [20.0{DASH}99.0], 2 of 4 seeds) and d (0 of 4 seeds: 2 diverged, 1 oom)."
    )


def test_nothing_gets_past_guessing_only_if_nothing_does() -> None:
    rows = [score("a", 0.12, seed=seed) for seed in range(2)] + [score("b", 0.9), *diverged("b", 1)]
    found = standing(rows)
    assert "of those with every seed none gets past the value set baseline (12.5 %): the best is a (12.0 %)" in found
    assert found.endswith("; not ranked, for want of seeds: b (90.0 %, 1 of 2 seeds: 1 diverged).")
    assert "nothing gets past" in standing(rows[:2])


def test_by_survivors_nobody_is_ahead() -> None:
    rows = scores("a", [0.9] * 3) + scores("b", [0.5] * 4)
    assert "a is ahead of b" in pairs.sentences(Study(rows))[0]
    assert pairs.sentences(Study([*rows, *diverged("a", 3)])) == []


# Beyond the length of training


def test_a_score_is_followed_by_seed() -> None:
    rows = scores("mamba", [1.0, 0.1, 0.1]) + scores("mamba", [0.9, 0.05, 0.05], 256)[1:] + diverged("mamba", 0, n=256)
    rows += scores("lstm", [0.8] * 3) + scores("lstm", [0.4] * 3, 256) + scores("gru", [0.7] * 3)
    rows += [failure("gru", "quality", 256, seed=seed) for seed in range(3)]
    assert reach.sentence(Study(rows)) == (
        "Trained on mqar at 64 tokens and tested at 256 (3 seeds), lstm goes from 80.0 % to 40.0 %; "
        "mamba goes from 10.0 % to 5.0 % (2 of 3 seeds: 1 diverged); without a score there: gru (0 of 3 seeds: 3 oom)."
    )


def test_who_lacks_seeds_is_neither_the_best_nor_the_worst_beyond_training() -> None:
    rows = [each for n in range(4) for length in (64, 256) for each in scores(f"b{n}", [0.5 + n / 10] * 2, length)]
    rows += [*scores("x", [1.0, 1.0]), score("x", 1.0, 256), *diverged("x", 1, n=256)]
    assert reach.sentence(Study(rows)).endswith(
        "(2 seeds), b3 goes from 80.0 % to 80.0 % and b0 goes from 50.0 % to 50.0 % (the best and the worst of 4); "
        "x goes from 100.0 % to 100.0 % (1 of 2 seeds: 1 diverged)."
    )


def test_seeds_that_do_not_meet_are_not_compared() -> None:
    rows = [score("a", 0.9), score("a", 0.5, 256, seed=1)]
    assert reach.sentence(Study(rows)) == ""


def test_nothing_right_at_any_length_is_no_error() -> None:
    rows = [row("mamba", "quality", n, metrics={"token_accuracy": 0.0}) for n in (64, 256)]
    assert "mamba goes from 0.0 % to 0.0 %." in findings(Study(rows))[1]
