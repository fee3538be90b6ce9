"""A budget of parameters is met by every backbone, and what was chosen is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import BACKBONES, depth, on_cpu

from arch_bench import results
from arch_bench.cell import match, run
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, ConfigError, cell_of, compose
from arch_bench.sweep import protocols


def cell(name: str, *overrides: str) -> Cell:
    return cell_of(compose([f"backbone={name}", depth(name, 2), "logger=none", *overrides]))


@pytest.mark.parametrize("name", [*map(on_cpu, BACKBONES)])
def test_every_backbone_meets_a_budget(name: str) -> None:
    budget = 1_000_000
    found, n_params = match.matched(cell(name, f"match.params={budget}", "task.vocab_size=256"))
    model = build(found, "backbone", vocab_size=256)
    assert model.n_params() == n_params == pytest.approx(budget, rel=match.GOOD)
    assert model.embedding.embedding_dim == found.d_model == found.backbone["d_model"]
    assert match.matched(found) == (found, n_params), "it is settled"


def test_without_a_budget_nothing_changes() -> None:
    plain = cell("lstm", "d_model=40")
    assert match.matched(plain) == (plain, None)


@pytest.mark.parametrize("d_model", [50, 300])
def test_whose_parameters_are_the_budget_keeps_its_width(d_model: int) -> None:
    lstm, mamba = protocols.matched([cell("lstm", f"d_model={d_model}"), cell("mamba", f"d_model={d_model}")])
    first, rival = (lstm, mamba) if lstm.match.params == match.n_params(lstm) else (mamba, lstm)
    assert match.matched(first) == (first, first.match.params)
    assert match.matched(rival)[1] == pytest.approx(first.match.params, rel=match.GOOD)


def test_a_width_that_kernels_like_is_preferred() -> None:
    assert match.matched(cell("lstm", "match.params=1000000"))[0].d_model % 8 == 0


def test_heads_that_divide_few_widths_are_respected() -> None:
    found, _ = match.matched(cell("transformer", "match.params=1000000", "backbone.mixer.n_heads=12"))
    assert found.d_model % 12 == 0


@pytest.mark.slow
def test_widths_that_are_taken_may_be_far_apart() -> None:
    """Multiples of 100: fifty heads, of even width."""
    fifty = ["backbone.mixer.n_heads=50", "task.vocab_size=256"]
    budget = match.n_params(cell("transformer", "d_model=100", *fifty))
    found, n_params = match.matched(cell("transformer", f"match.params={budget}", *fifty))
    assert (found.d_model, n_params) == (100, budget)
    with pytest.raises(ConfigError, match=rf"30000: transformer comes no closer than {budget:,} .*, at d_model=100; "):
        match.matched(cell("transformer", "match.params=30000", *fifty))


def test_where_widths_are_coarse_the_nearest_is_taken_within_a_tolerance_that_can_be_set() -> None:
    budget = 657_664  # of an LSTM of the same width
    assert match.matched(cell("transformer", f"match.params={budget}"))[1] == 623_872
    with pytest.raises(ConfigError, match=r"raise match.tolerance=0.05$"):
        match.matched(cell("transformer", f"match.params={budget}", "match.tolerance=0.05"))
    exact = match.matched(cell("lstm", "match.params=1000000", "match.tolerance=0.004"))[1]
    assert exact == pytest.approx(1_000_000, rel=0.004)


def test_the_key_of_published_rows_does_not_see_the_tolerance_but_another_one() -> None:
    usual, other = cell("lstm"), cell("lstm", "match.tolerance=0.2")
    config = usual.model_dump()
    before = config | {"match": {"params": None}}
    assert results.cell_key(config) == results.cell_key(before) != results.cell_key(other.model_dump())


def test_a_small_budget_takes_any_width() -> None:
    found, n_params = match.matched(cell("lstm", "match.params=6000", "task.vocab_size=256"))
    assert n_params == pytest.approx(6000, rel=match.GOOD)
    assert found.d_model % 8


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["match.params=100"],
            r"match.params=100: lstm comes no closer than [\d,]+ parameters, at d_model=1; ",
        ),
        (["match.params=0"], "match.params=0: input should be greater than or equal to 1"),
    ],
)
def test_a_budget_that_cannot_be_met_is_told(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        match.matched(cell("lstm", *overrides))


def test_what_a_backbone_refuses_at_any_width_is_told() -> None:
    with pytest.raises(ConfigError, match="n_kv_heads=3 must divide n_heads=4"):
        match.matched(cell("transformer", "match.params=100000", "backbone.mixer.n_kv_heads=3"))


def test_a_row_has_the_width_that_was_chosen_and_the_user_hears_of_it(tmp_path: Path) -> None:
    told: list[str] = []
    small = ["phases=[decode]", "decode.lengths=[16]", "decode.n_tokens=2", f"results_dir={tmp_path}", "isolate=false"]
    chosen = cell("lstm", "match.params=50000", "task.vocab_size=256", *small)
    (row,) = run.run_cell(chosen, say=lambda row: None, tell=told.append)
    assert row.config["d_model"] == row.config["backbone"]["d_model"] != chosen.d_model
    assert told == [f"d_model {row.config['d_model']}: {match.matched(chosen)[1]:,} parameters (match.params=50000)"]
    assert run.run_cell(chosen, say=lambda row: None) == [row], "the second time it is there"
