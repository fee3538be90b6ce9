"""Cost against length, on curves whose exponents, crossovers, limits and outliers are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from arch_bench.report import (
    build,
    cost_tables,
    crossovers,
    folder,
    growth,
    metrics,
    outliers,
    panels,
    plots,
    scaling,
    summary,
    tables,
    ticks,
    units,
)
from arch_bench.report.crossovers import Crossover
from arch_bench.report.facets import Facet
from arch_bench.report.findings import findings
from arch_bench.report.metrics import Metric
from arch_bench.report.scale import Scale
from arch_bench.report.study import Group, Study
from arch_bench.results import Kind, Row, Status

K = 1024
LENGTHS = (K, 4 * K, 16 * K, 64 * K)
Law = Callable[[int], float]


def row(backbone: str, kind: Kind, seq_len: int, found: dict[str, Any], **changes: Any) -> Row:
    """`batching` and `settings` (of the phase) go to the configuration, as does everything in `config`."""
    batching, settings = changes.pop("batching", ""), changes.pop("settings", {})
    policy = {"batching": batching} if batching else {}
    config = {"d_model": 64, "step": "auto", kind: policy | settings} | changes.pop("config", {})
    seed = changes.pop("seed", 0)
    asked = {"key": repr((backbone, config, seed)), "config": config, "seed": seed, "kernel": "k", "precision": "bf16"}
    fixed = {"experiment": "e", "task": "mqar", "train_seq_len": 64, "status": "ok", "device": "GPU X"}
    return Row(
        **fixed | asked | {"backbone": backbone, "kind": kind, "seq_len": seq_len} | changes, metrics=found | policy
    )


def speed(backbone: str, seq_len: int, step_ms: float, *, batch: int = 1, **changes: Any) -> Row:
    """A training step whose times spread by 2 % to both sides."""
    found = {"train_step_ms": step_ms, "train_step_ms_p10": 0.98 * step_ms, "train_step_ms_p90": 1.02 * step_ms}
    found |= {"tokens_per_s": 1e3 * batch * seq_len / step_ms, "batch_size": batch, "peak_mem_bytes": 2**30}
    return row(backbone, "speed", seq_len, found | changes.pop("found", {}), **changes)


def decode(backbone: str, seq_len: int, ms: float, **changes: Any) -> Row:
    found = {"ms_per_token": ms, "ms_per_token_p10": 0.98 * ms, "ms_per_token_p90": 1.02 * ms, "batch_size": 1}
    return row(backbone, "decode", seq_len, found | changes.pop("found", {}), **changes)


def failed(backbone: str, kind: Kind, seq_len: int, status: Status = "oom", **changes: Any) -> Row:
    """Without metrics, the batch policy among them."""
    return dataclasses.replace(row(backbone, kind, seq_len, {}, status=status, **changes), metrics={})


def curve(backbone: str, law: Law, lengths: Iterable[int] = LENGTHS, **changes: Any) -> list[Row]:
    return [speed(backbone, n, law(n), **changes) for n in lengths]


def group(series: str = "a", batching: str = "") -> Group:
    return Group("mqar", series, 0, batching)


def exponent(rows: list[Row], metric: Metric = metrics.TRAIN_STEP, batching: str = "") -> scaling.Exponent | None:
    return scaling.exponent(Study(rows), group(batching=batching), metric)


# Exponents


@pytest.mark.parametrize("power", [0, 1, 2])
def test_a_power_of_the_length_is_found_exactly(power: int) -> None:
    for rows, metric in (
        (curve("a", lambda n: 3 * (n / K) ** power), metrics.TRAIN_STEP),
        ([decode("a", n, 0.1 * n**power) for n in LENGTHS], metrics.MS_PER_TOKEN),
        ([decode("a", n, 1, found={"prefill_ms": 5 * n**power}) for n in LENGTHS], metrics.PREFILL),
        (curve("a", lambda n: 1, found={"activation_bytes": 7}), metrics.ACTIVATIONS) if power == 0 else (None, None),
    ):
        if rows and metric:
            found = exponent(rows, metric)
            assert found
            assert (found.value, found.low, found.high) == pytest.approx((power, power, power), abs=1e-9)
            assert found.lengths == LENGTHS[1:]


def bent(n: int) -> float:
    """2, 17 and 257 at the three longest lengths: slopes of log4(17 / 2) and log4(257 / 17)."""
    return 1 + (n / (4 * K)) ** 2


def test_a_fixed_cost_under_a_square_shows_in_slopes_that_rise_towards_2() -> None:
    found = exponent(curve("a", bent))
    assert found
    assert (found.low, found.high) == pytest.approx((1.54373, 1.95908), abs=1e-5)
    assert found.value == pytest.approx((1.54373 + 1.95908) / 2, abs=1e-5)


def test_a_slope_that_falls_is_the_lower_end_too() -> None:
    found = exponent(curve("a", lambda n: min(n, 16 * K) * n))
    assert found
    assert (found.low, found.value, found.high) == pytest.approx((1, 1.5, 2))


def test_more_processes_do_not_narrow_the_brackets() -> None:
    """Ten that agree are as far from a power as one, and so are ten of which each is off and none on average."""
    one = exponent(curve("a", bent))
    agreeing = [row for seed in range(10) for row in curve("a", bent, seed=seed)]
    noisy = [
        row for seed in range(10) for row in curve("a", lambda n, up=seed % 2: bent(n) * 1.1 ** (2 * up - 1), seed=seed)
    ]
    assert one
    for rows in (agreeing, noisy):
        found = exponent(rows)
        assert found
        assert (found.value, found.low, found.high) == pytest.approx((one.value, one.low, one.high))
        assert found.n_seeds == 10


def test_each_length_counts_once_by_the_geometric_mean_of_its_processes() -> None:
    """16 is that of 4, 8 and 128; the lengths have one, three and two processes."""
    times = {4 * K: (1,), 16 * K: (4, 8, 128), 64 * K: (32, 128)}
    found = exponent([speed("a", n, ms, seed=seed) for n, of in times.items() for seed, ms in enumerate(of)])
    assert found
    assert (found.low, found.value, found.high) == pytest.approx((1, 1.5, 2))


def test_only_the_three_longest_lengths_count() -> None:
    found = exponent(curve("a", lambda n: max(4 * K, n) ** 2, (K, 2 * K, 4 * K, 8 * K, 16 * K)))
    assert found
    assert found.value == pytest.approx(2)
    assert found.lengths == (4 * K, 8 * K, 16 * K)


def test_lengths_of_another_batch_are_left_out() -> None:
    """Of 64k tokens a step, twice the length is half the batch, down to one sequence."""
    lengths = [2**k * K for k in range(10)]
    rows = [speed("a", n, 1e-9 * max(64 * K, n) * n, batch=max(1, 64 * K // n)) for n in lengths]
    found = exponent(rows)
    assert found
    assert (found.value, found.batch_size) == (pytest.approx(2), 1)
    assert found.lengths == (128 * K, 256 * K, 512 * K)
    assert exponent(rows[:8]) is None
    assert exponent(curve("a", float, LENGTHS[:2])) is None


def test_lengths_that_stand_close_together_are_joined_by_a_further_one() -> None:
    found = exponent(curve("a", float, (16 * K, 64 * K, 256 * K, 384 * K, 448 * K)))
    assert found
    assert found.lengths == (64 * K, 256 * K, 384 * K, 448 * K)


# What no exponent is stated of


def doubt(rows: list[Row], metric: Metric = metrics.TRAIN_STEP) -> str:
    found = exponent(rows, metric)
    assert found
    return found.doubt


def noisy(ms: float, factor: float) -> dict[str, float]:
    return {"train_step_ms_p10": ms / factor, "train_step_ms_p90": ms * factor}


def test_times_that_scatter_have_no_exponent() -> None:
    def rows(factor: float) -> list[Row]:
        made = [speed("a", n, n / 64) for n in (64, 128, 256)]
        for each in made:
            each.metrics.update(noisy(each.seq_len / 64, factor))
        return made

    assert doubt(rows(1.1)) == ""
    assert doubt(rows(2.0)) == "times spread by 4.0x, exponent unsure by 1.0"
    processes = [speed("a", n, ms, seed=seed) for n in (64, 128, 256) for seed, ms in enumerate((1.0, 3.0))]
    assert "times spread by 3.1x" in doubt(processes)
    assert growth.steepness(Study(rows(2.0))).startswith("No exponent is stated of a training step: a (")
    table = cost_tables.scaling(Study(rows(2.0)))
    assert table
    assert table.rows[0][table.columns.index("time as L^")].text.startswith("none: times spread")
    ((panel, *_),) = panels.costs(Study(rows(2.0)), "speed")
    assert not panel.slopes


def test_growth_that_only_a_machine_can_have_is_no_exponent() -> None:
    assert doubt([speed("a", n, ms) for n, ms in ((64, 1.0), (128, 9.0), (256, 9.2))]).startswith(
        "slopes fall from 3.2"
    )
    assert doubt([speed("a", n, ms) for n, ms in ((64, 1.0), (128, 1.1), (256, 10.0))]).startswith("a slope of 3.2")
    assert doubt(curve("a", lambda n: n**2)) == ""


def test_a_decoded_token_that_reads_as_much_at_every_context_does_not_grow() -> None:
    def rows(size: Law) -> list[Row]:
        made = [decode("a", n, ms) for n, ms in ((64, 1.0), (128, 3.0), (256, 9.0))]
        for each in made:
            each.metrics["state_bytes"] = size(each.seq_len)
        return made

    assert doubt(rows(lambda n: 2048), metrics.MS_PER_TOKEN) == "the state is as large at 256 as at 64"
    assert doubt(rows(lambda n: 32 * n), metrics.MS_PER_TOKEN) == ""
    assert "grows as L^" not in growth.steepness(Study(rows(lambda n: 2048)))


def test_a_busy_cpu_has_neither_exponents_nor_crossovers() -> None:
    def rows(load: float, device: str = "cpu") -> list[Row]:
        made = curve("a", lambda n: 8 * n / K) + curve("b", lambda n: (n / K) ** 2)
        for each in made:
            each.config["device"] = device
            each.metrics["load_average"] = load
        return made

    assert doubt(rows(4.2)) == "load average 4.2"
    assert doubt(rows(0.4)) == doubt(rows(4.2, "cuda")) == ""
    for load, is_told in ((4.2, False), (0.4, True)):
        study = Study(rows(load))
        assert crossovers.crossovers(study)
        assert any(growth.passing(study)) == is_told
        table = cost_tables.crossovers(study)
        assert table
        assert ("doubt" in table.columns) == (not is_told)


def test_memory_is_that_of_activations_and_the_peak_where_they_are_missing() -> None:
    def grow(n: int, **more: float) -> Row:
        return speed("a", n, 1, found={"peak_mem_bytes": 8 * n**0.5} | more)

    old, new = [grow(n) for n in LENGTHS], [grow(n, activation_bytes=3 * n) for n in LENGTHS]
    for rows, metric, power in ((old, metrics.PEAK_MEMORY, 0.5), (new, metrics.ACTIVATIONS, 1.0)):
        found = scaling.memory(Study(rows), group())
        assert found
        assert (found[0], found[1].value) == (metric, pytest.approx(power))


# Limits and state


def test_the_longest_length_that_fits_and_what_stops_it() -> None:
    rows = curve("a", float, seed=0) + curve("a", float, seed=1)
    stopped = [*rows, *(failed("a", "speed", 256 * K, "timeout", seed=s) for s in (0, 1))]
    partly = [*rows, speed("a", 256 * K, 9e5), failed("a", "speed", 256 * K, seed=1)]
    hole = [row for row in rows if row.seq_len != 4 * K] + [failed("a", "speed", 4 * K, "crashed")]
    for each, expected in (
        (rows, (64 * K, "", None)),
        (stopped, (64 * K, "timeout", 256 * K)),
        (partly, (256 * K, "oom 1/2", 256 * K)),
        (hole, (64 * K, "", None)),
        ([failed("a", "speed", 4 * K)], (None, "oom", 4 * K)),
    ):
        assert scaling.limit(Study(each), "speed", group()) == expected


def test_state_is_told_for_each_token_of_the_longest_context() -> None:
    rows = [decode("a", n, 1, found={"state_bytes": 4096 + 24 * n}) for n in (64, 4096)]
    assert scaling.state_per_token(Study(rows), group()) == (25.0, 4096)
    assert scaling.state_per_token(Study([decode("a", 64, 1)]), group()) is None


# Crossovers


def crossed(*curves: Iterable[Row]) -> list[Crossover]:
    return crossovers.crossovers(Study([row for rows in curves for row in rows]))


def steps(backbone: str, *times: float, **changes: Any) -> list[Row]:
    return [speed(backbone, n, ms, **changes) for n, ms in zip(LENGTHS, times, strict=False)]


def test_a_crossover_is_the_first_length_of_a_lead_that_lasts() -> None:
    (found,) = crossed(steps("a", 10, 10, 10, 10), steps("b", 4, 8, 16, 40))
    assert (found.ahead.series, found.behind.series) == ("a", "b")
    assert (found.before, found.length, found.longest) == (4 * K, 16 * K, 64 * K)
    assert (found.metric, found.lead) == (metrics.TOKENS_PER_S, pytest.approx(4))


def test_of_two_crossings_the_last_counts() -> None:
    (found,) = crossed(steps("a", 10, 10, 10, 10), steps("b", 20, 5, 5, 20))
    assert (found.ahead.series, found.before, found.length) == ("a", 16 * K, 64 * K)
    (found,) = crossed(steps("a", 10, 10, 10, 10), steps("b", 5, 20, 5, 5))
    assert (found.ahead.series, found.before, found.length) == ("b", 4 * K, 16 * K)


@pytest.mark.parametrize(
    "times",
    [
        (20, 30, 40, 50),  # ahead from the start
        (10, 10.1, 20, 40),  # level at first, never ahead of the other
        (5, 5, 20, 10.1),  # level again at the longest length
    ],
)
def test_without_a_change_of_places_that_lasts_there_is_no_crossover(times: tuple[float, ...]) -> None:
    assert crossed(steps("a", 10, 10, 10, 10), steps("b", *times)) == []


def test_what_is_close_puts_a_crossover_off() -> None:
    """10.45 is within 5 % of 10, and no crossover though the 2 % that each spreads to both sides do not meet."""
    (found,) = crossed(steps("a", 10, 10, 10), steps("b", 5, 10.45, 10.6))
    assert (found.before, found.length) == (K, 16 * K)


def test_with_several_seeds_their_range_decides() -> None:
    noisy = [row for seed, ms in enumerate((9, 10, 14)) for row in steps("b", 4, ms + 1, 30, seed=seed)]
    flat = [row for seed in range(3) for row in steps("a", 10, 10, 10, seed=seed)]
    (found,) = crossed(flat, noisy)
    assert (found.before, found.length, found.n_seeds) == (K, 16 * K, (3, 3))


def test_a_value_without_any_spread_leads_by_five_percent_too() -> None:
    def states(backbone: str, *sizes: int) -> list[Row]:
        return [decode(backbone, n, 1, found={"state_bytes": s}) for n, s in zip(LENGTHS, sizes, strict=False)]

    (found,) = crossed(states("a", 1000, 1000, 1000), states("b", 500, 1040, 1060))
    assert (found.metric, found.ahead.series, found.length) == (metrics.STATE, "a", 16 * K)


def test_series_of_different_facets_never_meet() -> None:
    flat, steep = (10, 10, 10, 10), (4, 8, 16, 40)
    assert not crossed(steps("a", *flat, batching="single"), steps("b", *steep, batching="constant_tokens"))
    assert not crossed(steps("a", *flat), steps("b", *steep, task="copy"))
    (found,) = crossed(steps("a", *flat, batching="single"), steps("b", *steep, batching="single"))
    assert found.facet.title == "mqar, batch 1"


def test_batches_that_are_as_large_as_fits_are_compared_by_rate() -> None:
    """A step of 64 sequences takes longer than one of 2, and still decodes more tokens a second."""

    def largest(backbone: str, batch: int, n: int, ms: float) -> Row:
        found = {"batch_size": batch, "tokens_per_s_decode": 1e3 * batch / ms}
        return decode(backbone, n, ms, found=found, batching="largest")

    rows = [largest("a", 64, K, 20), largest("a", 64, 4 * K, 20), largest("b", 512, K, 30), largest("b", 2, 4 * K, 9)]
    (found,) = crossed(rows)
    assert (found.metric, found.ahead.series, found.length) == (metrics.DECODE_RATE, "a", 4 * K)


def test_the_spread_of_one_seeds_rate_is_that_of_its_times() -> None:
    point = Study([speed("a", 1000, 10)]).points(metrics.TOKENS_PER_S)[group()][1000]
    assert point.value == 100_000
    assert (point.low, point.high) == (pytest.approx(1e5 / 1.02), pytest.approx(1e5 / 0.98))


# Outliers


def odd(rows: list[Row]) -> list[tuple[int, str]]:
    return [(each.length, each.reason) for each in outliers.outliers(Study(rows))]


@pytest.mark.parametrize(("factor", "expected"), [(1.4, None), (1.6, "1.6x above"), (4, "4.0x above")])
def test_a_time_off_the_line_of_its_neighbours_is_flagged_and_kept(factor: float, expected: str | None) -> None:
    rows = [speed("a", n, n * (factor if n == 16 * K else 1)) for n in (*LENGTHS, 256 * K)]
    reason = f"step {expected} the line between its neighbours"
    assert odd(rows) == ([(16 * K, reason)] if expected else [])
    assert Study(rows).points(metrics.TRAIN_STEP)[group()][16 * K].value == pytest.approx(16 * K * factor)


def test_a_time_that_is_too_short_is_flagged() -> None:
    rows = [decode("a", n, n / (8 if n == 16 * K else 1)) for n in (*LENGTHS, 256 * K)]
    assert odd(rows) == [(16 * K, "ms per token 8.0x below the line between its neighbours")]


def test_two_outliers_are_both_found_and_spoil_no_third_point() -> None:
    off = {4 * K: 10, 64 * K: 3}
    rows = curve("a", lambda n: n * off.get(n, 1), (*LENGTHS, 256 * K, 1024 * K))
    assert [length for length, _ in odd(rows)] == [4 * K, 64 * K]


@pytest.mark.parametrize("factor", [2, 4])
def test_fixed_cost_that_gives_way_to_a_quadratic_one_is_no_outlier(factor: int) -> None:
    lengths = [K * factor**k for k in range(9)]
    assert odd(curve("a", lambda n: 5 + 1e-8 * n**2 + 1e-5 * n, lengths)) == []


def test_the_end_of_constant_tokens_is_no_outlier() -> None:
    lengths = [K * 4**k for k in range(6)]
    rows = [speed("a", n, 5 + 1e-8 * max(64 * K, n) * n, batch=max(1, 64 * K // n)) for n in lengths]
    assert odd(rows) == []
    rows[2] = speed("a", 16 * K, 5 * rows[2].metrics["train_step_ms"], batch=4)
    assert [length for length, _ in odd(rows)] == [16 * K]


def test_times_of_unlike_batches_are_not_held_against_each_other() -> None:
    rows = [decode("a", n, ms, found={"batch_size": b}) for n, ms, b in ((K, 1, 3), (4 * K, 9, 50), (16 * K, 2, 7))]
    assert odd(rows) == []
    assert odd([decode("a", n, ms) for n, ms in ((K, 1), (4 * K, 9), (16 * K, 2))]) != []


def test_a_backward_far_longer_than_its_forward_is_flagged() -> None:
    """A published table has a forward of 1.2 ms with a backward of 51 ms."""
    times = {"forward_ms": 1.2, "forward_backward_ms": 52.2}
    assert odd([speed("a", K, 55, found=times)]) == [(K, "backward 42.5x its forward")]
    assert odd([speed("a", K, 55, found=times | {"forward_backward_ms": 8.3})]) == []


def test_outliers_stand_in_the_table_and_in_a_sentence() -> None:
    rows = [speed("a", n, n * (3 if n == 16 * K else 1), batching="single") for n in (*LENGTHS, 256 * K)]
    table = cost_tables.training(Study(rows))
    assert table
    flagged = {line[1].text: line[table.columns.index("outlier")].text for line in lines(table)}
    assert flagged.pop("16,384") == "step 3.0x above the line between its neighbours"
    assert set(flagged.values()) == {units.DASH}
    assert growth.suspicion(Study(rows)) == (
        "Look twice at a at 16,384 tokens (mqar, batch 1: step 3.0x above the line between its neighbours)."
    )
    assert growth.suspicion(Study(curve("a", float))) == ""


def lines(table: tables.Table) -> list[list[tables.Cell]]:
    """Without the column of the batch policy, to count from the left as if there were one facet."""
    place = table.columns.index("batching") if "batching" in table.columns else len(table.columns)
    table.columns[place : place + 1] = []
    return [line[:place] + line[place + 1 :] for line in table.rows]


# Sentences


def test_findings_tell_who_passes_whom_and_how_steeply_cost_grows() -> None:
    rows = []
    for seed in range(3):
        rows += curve("transformer", lambda n: 10 * (n / K) ** 2, seed=seed, batching="single")
        rows += curve("mamba", lambda n: 100 * n / K, seed=seed, batching="single")
    assert findings(Study(rows))[1:] == [
        "mamba passes transformer at 16,384 tokens in training tokens/s (mqar, batch 1, 3 seeds).",
        "From 4,096 to 65,536 tokens a training step of transformer grows as L^2.00 and of mamba as L^1.00 "
        "(mqar, batch 1, 3 seeds).",
    ]


def test_growth_over_different_lengths_is_told_with_them() -> None:
    rows = curve("a", lambda n: n**2, (K, 2 * K, 4 * K)) + curve("b", float) + curve("c", lambda n: n**1.5)
    assert growth.steepness(Study(rows)) == (
        "A training step of a grows as L^2.00 from 1,024 to 4,096 tokens and of b as L^1.00 from 4,096 to 65,536 "
        "tokens (mqar, 1 seed, the steepest and the flattest of 3)."
    )
    assert growth.steepness(Study(curve("a", float, (K, 4 * K)))) == ""


def test_a_sentence_with_brackets_says_what_they_are() -> None:
    assert growth.steepness(Study(curve("a", bent) + curve("b", float))) == (
        f"From 4,096 to 65,536 tokens a training step of a grows as L^1.75 [1.54{units.DASH}1.96] and of b as L^1.00 "
        "(mqar, 1 seed; in brackets the least and the greatest slope between neighbouring lengths)."
    )


def test_the_widest_of_many_crossovers_is_told_and_the_others_are_counted() -> None:
    rows = steps("a", 10, 10, 10, 10)
    for place, name in enumerate("bcdef"):
        rows += steps(name, 2, 4, 40, 400 + 50 * place)
    (sentence,) = growth.passing(Study(rows))
    assert sentence == (
        "a passes f at 16,384 tokens, e at 16,384 tokens and d at 16,384 tokens in training tokens/s (mqar, 1 seed); "
        "2 more crossovers are in the table."
    )
    table = cost_tables.crossovers(Study(rows))
    assert table
    assert len(table.rows) == 5


def test_of_two_winners_the_one_with_the_wider_lead_is_told() -> None:
    rows = steps("a", 10, 10, 10) + steps("b", 4, 20, 20) + steps("a", 9, 9, 9, task="copy")
    (sentence,) = growth.passing(Study(rows + steps("b", 4, 20, 200, task="copy")))
    assert "(copy, 1 seed); 1 more crossover is in the table." in sentence


def test_backbones_of_one_size_are_told_before_others() -> None:
    """The lead over the small one is wider, and says nothing of the architecture."""
    small, large = {"d_model": 64}, {"d_model": 256}
    rows = [*steps("a", 10, 10, 10, config=large), *steps("b", 5, 20, 30, config=large)]
    rows += steps("b", 5, 100, 300, config=small)
    (sentence,) = growth.passing(Study(rows))
    assert sentence.startswith("a d_model=256 passes b d_model=256 at 4,096 tokens in training tokens/s")
    table = cost_tables.crossovers(Study(rows))
    assert table
    assert table.rows[0][3].text == "b d_model=256"


def test_decoding_is_told_apart_from_training() -> None:
    rows = [
        decode(b, n, ms) for b, times in (("a", (3, 3)), ("b", (1, 9))) for n, ms in zip(LENGTHS, times, strict=False)
    ]
    assert growth.passing(Study(rows)) == ["a passes b at 4,096 tokens in time per decoded token (mqar, 1 seed)."]


def test_only_equal_batches_are_said_to_be_faster() -> None:
    rows = [decode(b, K, ms, batching="largest", found={"batch_size": n}) for b, ms, n in (("a", 1, 2), ("b", 5, 64))]
    assert findings(Study(rows)) == []


# Facets


def both() -> list[Row]:
    policies = {"constant_tokens": 4, "single": 1}
    rows = [speed("a", n, n * b, batch=b, batching=p) for p, b in policies.items() for n in (K, 4 * K)]
    return [*rows, failed("a", "speed", 16 * K, batching="single"), decode("a", K, 1, batching="largest")]


def test_each_batch_policy_has_its_own_panels_and_a_failure_finds_its_own() -> None:
    shown = {row[0].facet.title: row[0] for row in panels.costs(Study(both()), "speed")}
    assert list(shown) == ["mqar, constant tokens per step", "mqar, batch 1"]
    for panel, expected in zip(shown.values(), (0, 1), strict=True):
        assert [list(each.points) for each in panel.curves] == [[K, 4 * K]]
        assert len(panel.marks) == expected
    ((decoding, *_),) = panels.costs(Study(both()), "decode")
    assert decoding.facet.title == "mqar, largest batch"


def test_each_batch_policy_has_its_own_lines_in_tables_and_in_the_summary() -> None:
    table = cost_tables.training(Study(both()))
    assert table
    times = [(line[1].text, line[2].text, line[6].text.partition(" ")[0]) for line in table.rows]
    assert times == [
        ("constant tokens per step", "1,024", "4,100"),
        ("constant tokens per step", "4,096", "16,400"),
        ("batch 1", "1,024", "1,020"),
        ("batch 1", "4,096", "4,100"),
        ("batch 1", "16,384", "oom"),
    ]
    text = summary(both())
    assert [line.split()[1] for line in text.splitlines() if line.startswith("  a ")] == [
        "constant",
        "batch",
        "largest",
    ]


def test_the_summary_has_one_line_where_each_phase_has_one_policy() -> None:
    rows = [speed("a", K, 1, batching="constant_tokens"), decode("a", K, 7, batching="single")]
    (line,) = [line for line in summary(rows).splitlines() if line.startswith("  a ")]
    assert line.split()[1:] == ["1k", "1.02M", "1", "GiB", "1k", "7"]


def test_batch_policies_and_what_follows_from_them_name_no_series() -> None:
    rows = [speed("a", K, 1, batching=p, settings={"tokens": n}) for p, n in (("single", 1), ("constant_tokens", 9))]
    assert Study(rows).labels.series == ["a"]
    rows += [speed("a", K, 1, batching="single", settings={"tokens": 2})]
    assert Study(rows).labels.series == ["a tokens=1", "a tokens=2", "a tokens=9"]


def test_a_search_for_the_longest_length_is_no_other_series() -> None:
    rows = [speed("a", n, 1, settings={"search_max_len": is_on}) for n, is_on in ((K, False), (4 * K, True))]
    assert Study(rows).labels.series == ["a"]


def test_rows_from_before_the_policy_had_a_name_look_as_they_did() -> None:
    study = Study(curve("a", float))
    assert [panel.facet.title for panel in panels.costs(study, "speed")[0]] == ["mqar"] * 3
    table = cost_tables.training(study)
    assert table
    assert "batching" not in table.columns
    assert "batching" not in summary(study.rows)


# How the step ran


def ran(length: int, way: str, **changes: Any) -> Row:
    return decode("a", length, 1 if way == "graph" else 5, found={"step": way}, **changes)


def test_ways_to_run_a_step_are_never_averaged() -> None:
    study = Study([ran(K, "graph"), ran(K, "eager", seed=1), *curve("a", float)])
    assert study.series("decode") == ["a (eager)", "a (graph)"]
    assert study.series("speed") == ["a"]
    points = study.points(metrics.MS_PER_TOKEN)
    assert {g.series: of[K].value for g, of in points.items()} == {"a (graph)": 1, "a (eager)": 5}
    assert study.style("a (eager)") != study.style("a (graph)")


def test_a_series_that_ran_one_way_keeps_its_name() -> None:
    assert Study([ran(K, "graph"), ran(4 * K, "graph"), failed("a", "decode", 16 * K)]).series("decode") == ["a"]


@pytest.mark.parametrize(
    ("length", "asked", "expected"),
    [(64, "auto", "eager"), (12, "auto", "graph"), (0.5, "auto", "graph"), (64, "graph", "graph")],
)
def test_a_failure_joins_the_way_it_was_asked_for_or_its_nearest_neighbour_ran(
    length: float, asked: str, expected: str
) -> None:
    config = {"step": asked}
    rows = [ran(n * K, way, config=config) for n, way in ((1, "graph"), (4, "graph"), (16, "eager"))]
    study = Study([*rows, failed("a", "decode", int(length * K), config=config)])
    (found,) = [each for each in study.groups("decode") if study.trouble("decode", each, int(length * K))]
    assert found.series == f"a ({expected})"


# Tables and figures


def test_the_table_of_scaling_has_exponents_limits_and_state() -> None:
    rows = curve("a", lambda n: n**2, batching="single", found={"activation_bytes": 1000})
    rows += [failed("a", "speed", 256 * K, batching="single")]
    rows += [decode("a", n, n, batching="single", found={"state_bytes": 24 * n, "prefill_ms": n**2}) for n in LENGTHS]
    table = cost_tables.scaling(Study(rows))
    assert table
    shown = [{name: cell.text for name, cell in zip(table.columns, line, strict=True)} for line in table.rows]
    assert shown == [
        {
            "task": "mqar",
            "measured": f"{phase}, batch 1",
            "backbone": "a",
            "time as L^": power,
            "prefill as L^": prefill,
            "activations as L^": memory,
            "fitted over": f"4k{units.DASH}64k, batch 1",
            "longest that fits": "65,536",
            "stopped by": stopped,
            "state per token": state,
        }
        for phase, power, prefill, memory, stopped, state in (
            ("training", "2.00", units.DASH, "0.00", "oom at 262,144", units.DASH),
            ("decoding", "1.00", "2.00", units.DASH, "nothing so far", "24 B at 65,536"),
        )
    ]


def test_without_an_exponent_or_a_limit_there_is_no_table_of_scaling() -> None:
    assert cost_tables.scaling(Study(curve("a", float, LENGTHS[:2]))) is None
    assert cost_tables.crossovers(Study(curve("a", float))) is None


def test_utilisation_is_shown_where_it_was_measured() -> None:
    used = {"tflops": 412.0, "matmul_share": 0.55, "mfu": 0.417, "joules_per_token": 0.0021, "activation_bytes": 2**30}
    full, bare = (cost_tables.training(Study([speed("a", K, 1, found=found)])) for found in (used, {}))
    assert full
    assert bare
    shown = dict(zip(full.columns, (cell.text for cell in full.rows[0]), strict=True))
    expected = {"TFLOP/s": "412", "of matrix product": "55.0 %", "MFU": "41.7 %", "mJ per token": "2.1"}
    assert shown.items() >= (expected | {"activations": "1 GiB"}).items()
    assert not expected.keys() & set(bare.columns)


def test_decoding_shows_bandwidth_as_a_share_of_a_copy_and_eager_beside_the_graph() -> None:
    used = {"gb_per_s": 975.0, "copy_gb_per_s": 3900.0, "ms_per_token_eager": 4.5, "step": "graph"}
    table = cost_tables.decoding(Study([decode("a", K, 0.5, found=used)]))
    assert table
    shown = dict(zip(table.columns, (cell.text for cell in table.rows[0]), strict=True))
    assert shown.items() >= {"GB/s": "975", "of copy rate": "25.0 %", "eager ms": "4.5", "step": "graph"}.items()
    assert "prefill ms" not in table.columns


def panel(rows: list[Row], metric: Metric) -> panels.Panel:
    found = panels.panel(Study(rows), Facet("mqar"), metric)
    assert found
    return found


def test_exponents_stand_beside_the_axes_apart_and_below_the_failures() -> None:
    rows = [row for place, name in enumerate("abcdef") for row in curve(name, lambda n, i=place: n + i)]
    shown = panel([*rows, *(failed(name, "speed", 256 * K) for name in "abc")], metrics.TRAIN_STEP)
    assert shown.band
    scale = Scale(*shown.y_range, is_log=True)
    shares = [scale.share(slope.y) for slope in shown.slopes]
    assert {slope.text for slope in shown.slopes} == {"L^1.00"}
    assert len(shares) == 6
    assert min(np.diff(shares)) > panels.SLOPE_GAP - 1e-9
    assert 0 < shares[0] < shares[-1] < scale.share(shown.band[0])
    assert not panel(rows, metrics.TOKENS_PER_S).slopes
    drawn = [trace for trace in go.Figure(plots.plot(shown)).data if trace.text and trace.text[0].strip() == "L^1.00"]
    assert {trace.meta for trace in drawn} == set("abcdef")


def test_too_many_exponents_are_left_to_the_table() -> None:
    rows = [row for place in range(panels.MOST_SLOPES + 1) for row in curve(f"b{place}", float)]
    assert panel(rows, metrics.TRAIN_STEP).slopes == []
    assert len(panel(rows[4:], metrics.TRAIN_STEP).slopes) == panels.MOST_SLOPES


def test_energy_has_a_panel_where_it_was_measured() -> None:
    with_energy = curve("a", float, found={"joules_per_token": 0.002})
    assert panels.costs(Study(with_energy), "speed")[0][-1].metric is metrics.TRAIN_ENERGY
    assert metrics.TRAIN_ENERGY not in {each.metric for each in panels.costs(Study(curve("a", float)), "speed")[0]}
    mixed = Study([*with_energy, decode("a", K, 1, found={"joules_per_token": 7.0})])
    assert mixed.points(metrics.DECODE_ENERGY)[group()][K].value == 7
    assert mixed.points(metrics.TRAIN_ENERGY)[group()][K].value == 0.002


def test_axes_up_to_a_million_tokens_read_well() -> None:
    lengths = [2**k * K for k in range(11)] + [1280 * K, 1536 * K]
    assert [units.length(n) for n in ticks.thinned(lengths)] == ["1k", "4k", "16k", "64k", "256k", "1M"]
    assert [units.length(n) for n in (1280 * K, 1536 * K, 448 * K, 2048 * K)] == ["1.25M", "1.5M", "448k", "2M"]
    assert ticks.thinned([100, 300, 1000]) == [100, 300, 1000]


def test_a_run_of_failures_is_named_once_whatever_lengths_others_have() -> None:
    rows = [speed("a", K, 1), *(failed("a", "speed", n) for n in (4 * K, 16 * K)), speed("b", 8 * K, 1)]
    assert [(m.length, m.text) for m in panel(rows, metrics.TRAIN_STEP).marks] == [(4 * K, "oom"), (16 * K, "")]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.power(1.98, 1.951, 2.009), f"1.98 [1.95{units.DASH}2.01]"),
        (units.power(0.001, -0.012, 0.01), "0.00 [-0.01 to 0.01]"),
        (units.power(2.0, 1.999, 2.001), "2.00"),
        (units.exponent(-0.001), "0.00"),
        (units.milli(0.0021), "2.1"),
        (units.tokens(16384), "16,384 tokens"),
        (units.listed(["a"]), "a"),
        (units.listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_read_well(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_report_of_both_policies_is_written_whole(tmp_path: Path) -> None:
    rows = [*both(), *curve("b", float, batching="single", found={"joules_per_token": 0.1})]
    page = build(rows, tmp_path, "costs")
    text = (tmp_path / "report.md").read_text()
    for expected in ("## Scaling", "## Crossovers" if crossed(rows) else "", "constant tokens per step", "L^1.00"):
        assert expected in text
    assert "mqar, batch 1 <span>" in page.read_text()
    assert {section.stem for section in folder.sections(Study(rows))} == {"training", "decoding"}
