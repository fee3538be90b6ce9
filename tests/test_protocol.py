"""Which cells a sweep runs: a fair comparison chooses its rates by validation, and never by half of the evidence."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from cells import cell, row

from arch_bench.cell import match
from arch_bench.cell.match import n_params
from arch_bench.config.instantiate import made
from arch_bench.config.schema import Cell, ConfigError, compose, sweeping_of
from arch_bench.results import Row
from arch_bench.sweep.protocols import Answers, Fair, Grid, Quick, Round, matched

HERE = Path("unused")
BASE = 1e-2


def fair(**dials: Any) -> Fair:
    return Fair(
        **{"n_rates": 3, "n_scan_seeds": 1, "first_scan_seed": 1000, "ratio": 10.0, "max_extensions": 3, "match": False}
        | dials
    )


def played(protocol: Fair | Grid | Quick, cells: list[Cell], answer: Callable[[Cell], list[Row]]) -> list[Round]:
    """Every round of a protocol, where `answer` measures a cell."""
    rounds = protocol.rounds(cells)
    found: list[Round] = []
    answers: Answers | None = None
    while True:
        try:
            found.append(rounds.send(answers) if answers is not None else next(rounds))  # type: ignore[arg-type]
        except StopIteration:
            return found
        answers = [(each, answer(each)) for each in reversed(found[-1].cells)]


def by_loss(loss: Callable[[float], float | None]) -> Callable[[Cell], list[Row]]:
    """Rows of trainings whose validation loss is a function of the rate; None diverges."""

    def answer(one: Cell) -> list[Row]:
        found = loss(one.optim.lr)
        if one.phases != ["scan"]:
            return [row(one, "quality")]
        return [row(one, loss=found)] if found is not None else [row(one, status="diverged", reason="step 3")]

    return answer


def bowl(best: float) -> Callable[[Cell], list[Row]]:
    return by_loss(lambda lr: abs(math.log(lr / best)) + 1.0)


def rates(round_: Round) -> list[float]:
    return [one.optim.lr for one in round_.cells]


def seeds(*numbers: int) -> list[Cell]:
    return [cell(HERE, lr=BASE, seed=seed) for seed in numbers]


def test_every_seed_runs_at_the_rate_that_one_seed_chose() -> None:
    first, last = played(fair(), seeds(4, 5, 6), bowl(BASE))
    assert rates(first) == [1e-3, 1e-2, 1e-1]
    assert {(one.seed, tuple(one.phases)) for one in first.cells} == {(1000, ("scan",))}
    assert first.n_later == 3
    assert [(one.seed, one.optim.lr, one.phases) for one in last.cells] == [(i, BASE, ["quality"]) for i in (4, 5, 6)]
    assert {one.chosen for one in last.cells} == {
        "optim.lr=0.01: validation loss 1, the lowest of 3 rates from 0.001 to 0.1 at seed 1000"
    }


def test_an_even_number_of_rates_has_one_more_below() -> None:
    assert rates(played(fair(n_rates=2), seeds(0), bowl(BASE))[0]) == [1e-3, 1e-2]


def test_all_rates_that_are_given_are_tried() -> None:
    given = [cell(HERE, lr=lr) for lr in (1e-3, 1e-2, 1e-1)]
    assert rates(played(fair(), given, bowl(BASE))[0]) == [1e-3, 1e-2, 1e-1]


def test_rates_further_out_are_reckoned_from_those_before_rounding() -> None:
    rounds = played(fair(ratio=math.sqrt(10)), seeds(0), bowl(10.0))
    assert [rates(each) for each in rounds[1:4]] == [[0.1], [0.316], [1.0]]


def test_the_first_rate_of_each_backbone_comes_before_the_second() -> None:
    given = [cell(HERE, f"backbone={name}", lr=BASE) for name in ("transformer", "lstm")]
    first, *_ = played(fair(n_rates=2), given, bowl(BASE))
    assert rates(first) == [1e-3, 1e-3, 1e-2, 1e-2]
    assert [one.backbone_name for one in first.cells] == ["transformer", "lstm"] * 2


def test_cells_with_other_test_lengths_are_others() -> None:
    given = [cell(HERE, f"eval_scales=[{scales}]", lr=BASE) for scales in ("1", "1,2")]
    assert [one.eval_scales for one in played(fair(), given, bowl(BASE))[-1].cells] == [[1], [1, 2]]


def test_a_best_rate_at_an_edge_is_looked_beyond() -> None:
    rounds = played(fair(), seeds(0), bowl(10.0))
    assert [rates(each) for each in rounds] == [[1e-3, 1e-2, 1e-1], [1.0], [10.0], [100.0], [10.0]]
    rounds = played(fair(), seeds(0), bowl(1e-4))
    assert [rates(each) for each in rounds] == [[1e-3, 1e-2, 1e-1], [1e-4], [1e-5], [1e-4]]
    rounds = played(fair(max_extensions=1), seeds(0), bowl(10.0))
    assert [rates(each) for each in rounds] == [[1e-3, 1e-2, 1e-1], [1.0], [1.0]]
    assert len(played(fair(max_extensions=0), seeds(0), bowl(10.0))) == 2


@pytest.mark.parametrize(
    ("losses", "tried", "chosen"),
    [
        ({1e-3: 2e-8, 1e-2: 4e-8, 1e-1: 2.7}, [1e-3, 1e-2, 1e-1], 1e-3),
        ({1e-3: 2e-8, 1e-2: 4e-8, 1e-1: 9e-5}, [1e-3, 1e-2, 1e-1], 1e-2),
        ({1e-3: 2.0, 1e-2: 1.3, 1e-1: 1.29995}, [1e-3, 1e-2, 1e-1], 1e-2),
        ({1e-3: 2.0, 1e-2: 1.3, 1e-1: 1.2998, 1.0: 9.0}, [1e-3, 1e-2, 1e-1, 1.0], 1e-1),
    ],
)
def test_of_rates_that_learn_the_same_the_middle_one_is_chosen_and_none_further_out_is_tried(
    losses: dict[float, float], tried: list[float], chosen: float
) -> None:
    *scans, last = played(fair(), seeds(0), by_loss(losses.__getitem__))
    assert [rate for each in scans for rate in rates(each)] == tried
    assert rates(last) == [chosen]
    n = sum(loss <= min(losses.values()) + 1e-4 for loss in losses.values())
    assert ("the lowest of" if n == 1 else f"in the middle of {n} as good, of") in last.cells[0].chosen


def test_a_rate_that_diverges_is_an_edge_that_was_looked_beyond() -> None:
    loss = by_loss(lambda lr: None if lr > BASE else 1 / lr)
    assert [rates(each) for each in played(fair(), seeds(0), loss)] == [[1e-3, 1e-2, 1e-1], [1e-2]]


def test_a_backbone_that_no_rate_trains_has_rows_that_say_so() -> None:
    first, last = played(fair(), seeds(0, 1), by_loss(lambda lr: None))
    assert rates(first) == [1e-3, 1e-2, 1e-1]
    assert rates(last) == [BASE, BASE]
    assert last.cells[0].chosen == "optim.lr=0.01: none of 3 rates could be trained"


def test_rates_that_are_given_are_those_tried() -> None:
    given = [cell(HERE, lr=lr, seed=seed) for lr in (3e-2, 3e-3) for seed in (0, 1)]
    first, second, last = played(fair(ratio=math.sqrt(10), max_extensions=1), given, bowl(1.0))
    assert (rates(first), rates(second)) == ([3e-3, 3e-2], [0.0949])
    assert [(one.seed, one.optim.lr) for one in last.cells] == [(0, 0.0949), (1, 0.0949)]


@pytest.mark.parametrize(
    ("n", "rate", "seeds_told"), [(1, 0.1, "at seed 1000"), (2, 0.01, "as a mean of seeds 1000, 1001")]
)
def test_luck_at_one_seed_chooses_no_rate_of_several(n: int, rate: float, seeds_told: str) -> None:
    def answer(one: Cell) -> list[Row]:
        is_lucky = (one.optim.lr, one.seed) == (0.1, 1000)
        return by_loss(lambda lr: 0.1 if is_lucky else {1e-3: 3.0, 1e-2: 1.0, 1e-1: 2.0}[lr])(one)

    first, last = played(fair(n_scan_seeds=n, max_extensions=0), seeds(4, 5, 6), answer)
    assert [(one.optim.lr, one.seed) for one in first.cells] == [
        (lr, i) for lr in (1e-3, 1e-2, 1e-1) for i in [1000, 1001][:n]
    ]
    assert [(one.optim.lr, one.seed) for one in last.cells] == [(rate, 4), (rate, 5), (rate, 6)]
    assert last.cells[0].chosen.endswith(f"from 0.001 to 0.1 {seeds_told}")


def test_of_trainings_that_stop_early_the_first_is_best() -> None:
    """Their losses say how far each had passed the line when validation looked."""

    def answer(one: Cell) -> list[Row]:
        steps, loss = {1e-3: (1250, 0.006), 1e-2: (500, 0.024), 1e-1: (3000, 0.001)}[one.optim.lr]
        return [row(one, loss=loss, steps=steps)]

    stopping = [cell(HERE, "trainer.max_steps=3000", "trainer.stop_at=0.995", lr=BASE, seed=seed) for seed in (0, 1)]
    last = played(fair(), stopping, answer)[-1]
    assert rates(last) == [1e-2, 1e-2]
    assert last.cells[0].chosen == (
        "optim.lr=0.01: validation loss 0.024, stopped after 500 steps, "
        "the first of 3 rates from 0.001 to 0.1 at seed 1000"
    )


def test_a_rate_that_fails_at_one_of_its_seeds_is_not_chosen() -> None:
    def answer(one: Cell) -> list[Row]:
        return by_loss(lambda lr: None if (lr, one.seed) == (1e-1, 1001) else 1 / lr)(one)

    first, last = played(fair(n_scan_seeds=2), seeds(0, 1), answer)
    assert (len(first.cells), rates(last)) == (6, [1e-2, 1e-2])


def test_a_seed_that_chooses_is_never_scored() -> None:
    """A rate that a lucky seed chose would take the luck into its score: 53 % reported where 33 % solve."""
    first, last = played(fair(n_scan_seeds=2, max_extensions=0), seeds(0, 1000, 1002), bowl(BASE))
    assert {one.seed for one in first.cells} == {1001, 1003}
    assert {one.seed for one in last.cells} == {0, 1000, 1002}


def test_where_rates_do_not_matter_the_reported_share_of_solving_seeds_is_the_true_one() -> None:
    """Every training solves the task with probability 1/3, whatever its rate and seed."""
    rng = random.Random(0)
    reported = []
    for _ in range(300):
        solves = {(lr, seed): rng.random() < 1 / 3 for lr in (1e-3, 1e-2, 1e-1) for seed in (0, 1, 2, 1000)}

        def answer(one: Cell, solves: dict[tuple[float, int], bool] = solves) -> list[Row]:
            return [row(one, loss=0.02 if solves[one.optim.lr, one.seed] else 3.0)]

        last = played(fair(max_extensions=0), seeds(0, 1, 2), answer)[-1]
        reported += [solves[one.optim.lr, one.seed] for one in last.cells]
    standard_error = math.sqrt(1 / 3 * 2 / 3 / len(reported))
    assert abs(sum(reported) / len(reported) - 1 / 3) < 4 * standard_error


def test_each_backbone_has_its_own_rate() -> None:
    lstm, rival = cell(HERE, "backbone=lstm", lr=BASE), cell(HERE, lr=BASE)
    best = {"lstm": 1e-1, "transformer": 1e-3}
    rounds = played(fair(max_extensions=0), [lstm, rival], lambda one: bowl(best[one.backbone_name])(one))
    assert len(rounds[0].cells) == 6
    assert {one.backbone_name: one.optim.lr for one in rounds[-1].cells} == best


def test_cells_that_train_nothing_are_as_they_are_given() -> None:
    timed = cell(HERE, lr=BASE, phases=["decode"])
    rounds = played(fair(), [timed, *seeds(0)], bowl(BASE))
    assert timed not in rounds[0].cells
    assert rounds[-1].cells[0] == timed
    assert rounds[0].n_later == 2
    assert [each.cells for each in played(fair(), [timed], bowl(BASE))] == [[timed]]


def test_phases_may_be_swept() -> None:
    given = [
        cell(HERE, lr=lr, seed=seed, phases=phases)
        for phases in (["quality"], ["speed", "quality"])
        for lr in (1e-3, 1e-2)
        for seed in (4, 5)
    ]
    assert [each.cells for each in played(Quick(), given, bowl(BASE))] == [[given[0], given[4]]]
    first, last = played(fair(max_extensions=0), given, bowl(BASE))
    assert rates(first) == [1e-3, 1e-2], "both choose by the same trainings"
    assert [(one.seed, one.optim.lr, one.phases) for one in last.cells] == [
        (seed, BASE, phases) for phases in (["quality"], ["speed", "quality"]) for seed in (4, 5)
    ]


def test_what_is_timed_has_the_widths_of_what_is_scored_also_in_a_sweep_of_its_own() -> None:
    names = "transformer", "lstm"

    def budgets(*phases: str) -> set[tuple[str, int | None]]:
        given = [cell(HERE, f"backbone={name}", lr=BASE, phases=[*phases]) for name in names]
        rounds = played(fair(match=True), given, bowl(BASE))
        return {(one.backbone_name, one.match.params) for round_ in rounds for one in round_.cells}

    assert budgets("quality") == {(name, n_params(cell(HERE))) for name in names}
    for phases in (["speed"], ["decode"], ["speed", "decode"], ["quality", "speed"]):
        assert budgets(*phases) == budgets("quality")
    assert budgets("kernels") == {(name, None) for name in names}, "a layer alone"


def test_what_trains_and_what_does_not_have_the_same_parameters() -> None:
    timed, trained = cell(HERE, "backbone=lstm", lr=BASE, phases=["speed"]), cell(HERE, lr=BASE)
    rounds = played(fair(match=True), [timed, trained], bowl(BASE))
    assert {one.match.params for round_ in rounds for one in round_.cells} == {n_params(trained)}


@pytest.mark.parametrize("status", ["crashed", "timeout", None])
def test_no_rate_is_chosen_while_one_may_still_have_a_result(
    status: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """None: the cell could not even begin."""

    def answer(one: Cell) -> list[Row]:
        if one.backbone_name == "lstm" and one.optim.lr == BASE:
            return [row(one, status=status, reason="ended")] if status else []
        return bowl(BASE)(one)

    rounds = played(fair(), [cell(HERE, "backbone=lstm", lr=BASE), *seeds(0)], answer)
    assert [one.backbone_name for one in rounds[-1].cells] == ["transformer"]
    assert capsys.readouterr().err == "lstm on mqar, seq_len 16: no rate is chosen while one has no result\n"


@pytest.mark.slow
def test_the_parameters_do_not_depend_on_the_order() -> None:
    names = "transformer", "local_attention", "lstm", "mamba"
    given = [cell(HERE, f"backbone={name}", "d_model=64", lr=BASE) for name in names]
    found = [matched([*order]) for order in permutations(given)]
    assert {one.match.params for order in found for one in order} == {n_params(given[0])}, "which has the fewest widths"
    widths = {one.backbone_name: match.matched(one)[1] for one in found[0]}
    assert widths == pytest.approx(dict.fromkeys(names, n_params(given[0])), rel=match.GOOD)


def test_all_have_the_same_parameters() -> None:
    first, rival = cell(HERE, lr=BASE), cell(HERE, "backbone=lstm", lr=BASE)
    own = cell(HERE, lr=BASE, match=first.match.model_copy(update={"params": 4300}))
    rounds = played(fair(match=True), [first, rival, own], bowl(BASE))
    for round_ in rounds:
        budgets = {(one.backbone_name, one.match.params) for one in round_.cells}
        assert budgets == {("transformer", n_params(first)), ("lstm", n_params(first)), ("transformer", 4300)}
    assert {one.match.params for one in played(fair(), [first, rival], bowl(BASE))[0].cells} == {None}


@pytest.mark.parametrize("size", ["d_model=64", "n_layers=3", "task.vocab_size=128"])
def test_each_size_and_task_has_its_own_parameters(size: str) -> None:
    given = [
        cell(HERE, f"backbone={name}", *more, lr=BASE) for more in ([], [size]) for name in ("transformer", "lstm")
    ]
    budgets = [n_params(given[0])] * 2 + [n_params(given[2])] * 2
    assert budgets[0] != budgets[2]
    assert [one.match.params for one in played(fair(match=True), given, bowl(BASE))[-1].cells] == budgets


def test_what_is_scored_has_matched_widths_when_its_kernels_are_timed_too() -> None:
    phases = ["quality", "kernels"]
    given = [cell(HERE, f"backbone={name}", lr=BASE, phases=phases) for name in ("transformer", "lstm")]
    last = played(fair(match=True), given, bowl(BASE))[-1]
    assert {one.match.params for one in last.cells} == {n_params(given[0])}


def test_a_first_backbone_that_cannot_be_built_ends_nothing() -> None:
    broken = cell(HERE, lr=BASE)
    broken = broken.model_copy(update={"backbone": broken.backbone | {"positions": "polar"}})
    lstm = cell(HERE, "backbone=lstm", lr=BASE)

    def answer(one: Cell) -> list[Row]:
        return bowl(BASE)(one) if one.backbone_name == "lstm" else []

    rounds = played(fair(match=True), [broken, lstm], answer)
    assert {one.match.params for one in rounds[0].cells} == {n_params(lstm)}, "the budget of what can be counted"
    assert [one.backbone_name for one in rounds[-1].cells] == ["lstm"]


def test_the_others_take_all_cells_or_the_first_of_each() -> None:
    cells = [cell(HERE, lr=lr, seed=seed, seq_len=n) for n in (16, 32) for lr in (1e-3, 1e-2) for seed in (0, 1)]
    assert [each.cells for each in played(Grid(), cells, bowl(BASE))] == [cells]
    assert [each.cells for each in played(Quick(), cells, bowl(BASE))] == [[cells[0], cells[4]]]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("protocol.n_scan_seeds=0", "protocol=fair: protocol.n_scan_seeds=0: needs at least 1"),
        ("protocol.first_scan_seed=-1", "protocol=fair: protocol.first_scan_seed=-1: needs at least 0"),
        ("protocol.n_rates=0", "protocol=fair: protocol.n_rates=0, max_extensions=3: needs at least 1 and 0"),
        ("protocol.ratio=1.0", "protocol=fair: protocol.ratio=1: needs more than 1"),
        ("protocol.match=maybe", "protocol.match=maybe: input should be a valid boolean"),
    ],
)
def test_mistakes_name_the_key(override: str, words: str) -> None:
    sweeping = sweeping_of(compose(["protocol=fair", override]))
    with pytest.raises(ConfigError, match="^" + words.replace("(", r"\(")):
        made("protocol", sweeping.protocol, "fair")
