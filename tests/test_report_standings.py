"""What the sentences on scores may claim: who is level, who leads, and what became of seeds that failed."""

from __future__ import annotations

import pytest
from test_report import failure, row, score
from test_report_statistics import scores, text

from arch_bench.report import pair_tables, pairs, reach, standings, units
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
        "(within 1 point); 3 seeds cannot tell transformer from mamba (37.3 % (100.0, 6.0, 6.0))."
    )
    assert standing(rows[:6]) == (
        "On mqar at 64 tokens (3 seeds), transformer has the highest mean: 100.0 % token "
        "accuracy, but 3 seeds cannot tell it from mamba (37.3 % (100.0, 6.0, 6.0))."
    )


def test_the_last_is_named_only_if_all_others_are_ahead_of_it() -> None:
    rows = scores("a", [0.9, 0.91, 0.92]) + scores("b", [0.5, 0.52, 0.51])
    close = scores("c", [0.49, 0.53, 0.45])
    assert standing(rows).endswith(f"b (51.0 % [48.5{DASH}53.5]) is last.")
    assert "a scores best" in standing(rows + close)
    assert "last" not in standing(rows + close), "b and c may have changed places"


def stopped(backbone: str, *values: float, steps: int = 500) -> list[Row]:
    trainer = {"trainer": {"batch_size": 64, "max_steps": 1000, "stop_at": 0.95}}
    found = [{"token_accuracy": value, "steps": steps} for value in values]
    return [score(backbone, seed=seed, metrics=each, config=trainer) for seed, each in enumerate(found)]


def test_trainings_that_stopped_because_they_had_learned_are_level() -> None:
    rows = stopped("a", 0.99, 0.991, 0.992) + stopped("b", 0.95, 0.951, 0.952)
    assert standing(rows) == (
        f"On mqar at 64 tokens (3 seeds), a (99.1 % [98.9{DASH}99.3]) and b (95.1 % [94.9{DASH}95.3]) are level in "
        "token accuracy (within 1 point, or all stopped at trainer.stop_at)."
    )
    assert not pairs.sentences(Study(rows))
    assert not any("*" in cell.text for line in pair_tables.matrices(Study(rows))[0].rows for cell in line)
    went_on = stopped("a", 0.99, 0.991, 0.992) + stopped("b", 0.95, 0.951, 0.952, steps=1000)
    assert "a scores best" in standing(went_on)


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_one_seed_or_two_rank_nobody(n_seeds: int) -> None:
    found = standing(scores("a", [0.9] * n_seeds) + scores("b", [0.5] * n_seeds))
    assert f"a has the highest mean: 90.0 % token accuracy, but {units.seeds(n_seeds)} cannot tell it from b" in found
    assert "best" not in found
    assert "last" not in found


def test_many_that_are_level_or_cannot_be_told_apart_are_counted() -> None:
    rows = [score(f"level{n}", 1 - n / 1000) for n in range(4)] + [score(f"other{n}", 0.8 - n / 50) for n in range(5)]
    assert standing(rows) == (
        "On mqar at 64 tokens (1 seed), 4 of 9 are level in token accuracy (within 1 point), level0 (100.0 %) among "
        "them; 1 seed cannot tell level0 from other0 (80.0 %), other1 (78.0 %), other2 (76.0 %) and 2 more."
    )


def test_of_bits_less_is_better() -> None:
    rows = text("a", [1.0, 1.1, 1.2]) + text("b", [1.5, 1.6, 1.7]) + text("c", [1.1, 1.1, 1.12])
    assert standing(rows[:6], "text").endswith("a scores best: 1.100 [0.852\N{EN DASH}1.348] bits per byte; "
                                               "b (1.600 [1.352\N{EN DASH}1.848]) is last.")  # fmt: skip
    assert "a has the lowest mean" in standing(text("a", [1.0, 1.2]) + text("b", [1.3, 1.4]), "text")
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
        f"want of seeds: c (59.5 % [0.0{DASH}100.0], 2 of 4 seeds) and d (0 of 4 seeds: 2 diverged, 1 oom)."
    )


def test_nothing_gets_past_guessing_only_if_nothing_does() -> None:
    rows = [score("a", 0.12, seed=seed) for seed in range(2)] + [score("b", 0.9), *diverged("b", 1)]
    found = standing(rows)
    assert "of those with every seed none gets past the value set baseline (12.5 %): the highest mean is a" in found
    assert found.endswith("; not ranked, for want of seeds: b (90.0 %, 1 of 2 seeds: 1 diverged).")
    assert "nothing gets past" in standing(rows[:2])


def test_by_survivors_nobody_is_ahead() -> None:
    rows = scores("a", [0.9] * 3) + scores("b", [0.5] * 4)
    assert not pairs.sentences(Study(rows)), "a lacks a seed that b has"
    assert "a is ahead of b" in pairs.sentences(Study(rows[:6]))[0]
    assert pairs.sentences(Study([*rows[:6], *diverged("a", 3)])) == []


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
        "(2 seeds), b3 goes from 80.0 % to 80.0 % and b0 goes from 50.0 % to 50.0 % (the ends of 4, by their means "
        "there); x goes from 100.0 % to 100.0 % (1 of 2 seeds: 1 diverged)."
    )


def test_seeds_that_do_not_meet_are_not_compared() -> None:
    rows = [score("a", 0.9), score("a", 0.5, 256, seed=1)]
    assert reach.sentence(Study(rows)) == ""


def test_nothing_right_at_any_length_is_no_error() -> None:
    rows = [row("mamba", "quality", n, metrics={"token_accuracy": 0.0}) for n in (64, 256)]
    assert "mamba goes from 0.0 % to 0.0 %." in findings(Study(rows))[1]
