"""Where and how cells ran: what may be compared, what names and words disclose, and which cost goes with a score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_report import decode, failure, row, score, timing

from arch_bench.report import (
    build,
    cost_tables,
    crossovers,
    folder,
    fronts,
    metrics,
    panels,
    search_table,
    summary,
    tables,
)
from arch_bench.report.facets import Facet
from arch_bench.report.findings import findings
from arch_bench.report.provenance import provenance
from arch_bench.report.study import Study, newest
from arch_bench.results import Row

H200, A100 = "NVIDIA H200", "NVIDIA A100"
"""Names of devices have spaces."""
STEPS = {"mamba": (6, 10, 20), "transformer": (2, 8, 50)}
"""Milliseconds at 64, 128 and 256 tokens: mamba passes the transformer."""
UNNAMED = "differs, but is not in the names"


def steps(backbone: str, factor: float = 1.0, **changes: Any) -> list[Row]:
    return [timing(backbone, factor * ms, n, **changes) for n, ms in zip((64, 128, 256), STEPS[backbone], strict=True)]


def on_two_devices() -> list[Row]:
    return [row for name in STEPS for row in [*steps(name, device=H200), *steps(name, 3, device=A100)]]


def told(rows: list[Row]) -> str:
    return dict(provenance(Study(rows))).get(UNNAMED, "")


# Devices


def test_times_on_different_devices_are_never_compared() -> None:
    apart = [*steps("mamba", device=H200), *steps("transformer", device=A100)]
    study = Study(apart)
    assert study.facets("speed") == [Facet("mqar", "", A100), Facet("mqar", "", H200)]
    assert not crossovers.crossovers(study)
    assert not any("fastest" in text or "passes" in text for text in findings(study))
    together = findings(Study([*steps("mamba"), *steps("transformer")]))
    assert sum("fastest" in text or "passes" in text for text in together) == 2


def test_two_devices_with_one_key_are_two_measurements(tmp_path: Path) -> None:
    rows = on_two_devices()
    assert len(Study(rows).rows) == len(rows) == 12
    study = Study(rows)
    assert study.labels.series == ["mamba", "transformer"]
    assert {found.facet.device for found in crossovers.crossovers(study)} == {H200, A100}
    assert any("(mqar, NVIDIA A100, 1 seed), mamba trains fastest" in text for text in findings(study))
    for table in (cost_tables.training(study), cost_tables.crossovers(study)):
        assert table
        place = table.columns.index("device")
        assert {line[place].text for line in table.rows} == {H200, A100}
    assert summary(rows).count(A100) == 2
    build(rows, tmp_path, "t")
    assert "mqar, NVIDIA A100" in (tmp_path / "report.html").read_text()


def test_one_device_is_named_nowhere_but_in_the_provenance() -> None:
    rows = [row for name in STEPS for row in steps(name, device=H200)]
    assert H200 not in summary(rows)
    assert not any(H200 in text for text in findings(Study(rows)))


def test_the_newest_row_counts_on_its_own_device_only() -> None:
    old, new = timing(device=H200), timing(device=H200, created_at="2027")
    other = timing(device=A100, created_at="2028")
    assert newest([new, other, old]) == [new, other]
    crashed = failure("mamba", "speed", 64, "crashed", created_at="2025")
    assert newest([crashed, new]) == [new], "it can only have been the one device that is known"
    assert newest([crashed, new, other]) == [crashed, new, other], "nobody knows where it crashed"


def test_what_failed_somewhere_is_a_facet_of_its_own_among_several_devices(tmp_path: Path) -> None:
    rows = [*on_two_devices(), failure("lstm", "speed", 64, "crashed")]
    assert [facet.device for facet in Study(rows).facets("speed")] == [A100, H200, "cuda"]
    table = tables.failures(Study(rows))
    assert table
    assert "cuda" in [cell.text for cell in table.rows[0]]
    build(rows, tmp_path, "t")


def test_rankings_are_of_one_device() -> None:
    rows = [timing(f"b{i}", i + 1, device=(H200, A100)[i % 2]) for i in range(24)]
    (section,) = folder.sections(Study(rows))
    assert [len(shown.entries) for of in section.rankings for shown in of[:1]] == [12, 12]


def tasks(rows: list[Row]) -> list[str]:
    return Study(rows).tasks("quality")


def test_scores_on_several_devices_say_so_also_if_each_backbone_had_its_own() -> None:
    rows = [score("a", device=H200), score("b", device=A100)]
    assert tasks(rows) == ["mqar device=NVIDIA A100", "mqar device=NVIDIA H200"]
    assert Study(rows).labels.series == ["a", "b"]


# What was learned otherwise is no rival

RECIPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pairs": ("n_pairs", {"task": {"n_pairs": 2}}, {"task": {"n_pairs": 8}}),
    "words": ("vocab_size", {"task": {"vocab_size": 64}}, {"task": {"vocab_size": 512}}),
    "steps": ("max_steps", {"trainer": {"max_steps": 100}}, {"trainer": {"max_steps": 400}}),
    "batch": ("batch_size", {"trainer": {"batch_size": 8}}, {"trainer": {"batch_size": 64}}),
    "stop": ("stop_at", {"trainer": {"stop_at": 0.9}}, {"trainer": {"stop_at": None}}),
    "decay": ("weight_decay", {"optim": {"weight_decay": 0.0}}, {"optim": {"weight_decay": 0.1}}),
    "schedule": ("schedule", {"optim": {"schedule": "cosine"}}, {"optim": {"schedule": "constant"}}),
    "betas": ("betas", {"optim": {"betas": [0.9, 0.95]}}, {"optim": {"betas": [0.9, 0.999]}}),
}


@pytest.mark.parametrize("other", ["mamba", "lstm"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_other_tasks_budgets_and_recipes_share_no_panel_no_ranking_and_no_baseline(recipe: str, other: str) -> None:
    dial, one, two = RECIPES[recipe]
    rows = [score(seed=n, accuracy=0.9 + n / 100, config=one) for n in range(3)]
    guess = {"token_accuracy": 0.1, "baseline_chance": 0.05, "baseline_value_set": 0.5}
    rows += [score(other, seed=n, metrics=guess, config=two, key=f"two{other}") for n in range(3)]
    study = Study(rows)
    names = study.tasks("quality")
    assert len(names) == 2
    assert all(f"{dial}=" in name for name in names)
    ((first, second),) = panels.quality(study)
    assert sorted(first.facet.task for first in (first, second)) == sorted(names)
    assert sorted(study.best_baseline(name, 64) or () for name in names) == [("value set", 0.125), ("value set", 0.5)]
    told = findings(study)
    assert sum(text.startswith("On mqar") for text in told) == 2
    assert not any("is ahead of" in text or "is last" in text or "scores best" in text for text in told)


def test_what_makes_a_backbone_itself_stays_in_one_panel_and_is_listed() -> None:
    one = {"d_model": 64, "optim": {"lr": 0.1}, "backbone": {"mixer": {"n_heads": 4}}}
    two = {"d_model": 80, "optim": {"lr": 0.01}, "backbone": {"mixer": {"d_state": 16}}}
    rows = [score("a", config=one), score("b", config=two)]
    assert tasks(rows) == ["mqar"]
    assert "d_model (80 for b, else 64)" in told(rows)
    assert "lr (0.1 for a, else 0.01)" in told(rows)


def test_a_corpus_that_changed_under_its_path_is_another_task() -> None:
    bits: dict[str, Any] = {"metrics": {"bits_per_byte": 1.5}, "task": "text"}
    rows = [row("a", data={"sha256": "1" * 64}, key="x", **bits), row("b", data={"sha256": "2" * 64}, key="y", **bits)]
    assert tasks(rows) == ["text corpus=11111111", "text corpus=22222222"]
    assert tasks([rows[0], row("a", status="diverged", task="text", key="x", seed=1)]) == ["text"]


def test_a_baseline_is_never_a_mean() -> None:
    def at(trained: int, guess: float) -> Row:
        metrics = {"token_accuracy": 0.9, "baseline_value_set": guess}
        return row("a", "quality", 128, train_seq_len=trained, metrics=metrics, config={"task": {"n_pairs": trained}})

    assert Study([at(64, 0.1), at(128, 0.05)]).best_baseline("mqar", 128) == ("value set", 0.05), "that of its length"
    assert Study([at(32, 0.1), at(64, 0.05)]).best_baseline("mqar", 128) == ("value set", 0.1), "else the hardest"


def test_a_score_meets_the_cost_of_its_task_whatever_its_budget() -> None:
    rows = [score(name, config={"trainer": {"max_steps": n}}) for name in "ab" for n in (100, 400)]
    rows += [timing("a", 5), timing("b", 6)]
    found = [(each.facet.task, len(each.rivals)) for of in fronts.fronts(Study(rows)) for each in of]
    assert {task for task, _ in found} == {"mqar max_steps=100", "mqar max_steps=400"}
    assert {n for _, n in found} == {2}
    pairs = [score(name, config={"task": {"n_pairs": n}}) for name in "ab" for n in (2, 8)]
    pairs += [timing(name, n, config={"task": {"n_pairs": n}}) for name in "ab" for n in (2, 8)]
    (two, eight) = (of[0] for of in fronts.fronts(Study(pairs)))
    assert (two.priced.task, eight.priced.task) == ("mqar n_pairs=2", "mqar n_pairs=8")


# Other conditions, and what no name tells


def test_precisions_and_numbers_of_devices_are_named_also_if_each_backbone_has_its_own() -> None:
    rows = [timing("a", precision="bf16"), timing("b", precision="fp32")]
    assert Study(rows).tasks("speed") == ["mqar precision=bf16", "mqar precision=fp32"]
    assert not any("fastest" in text for text in findings(Study(rows)))
    rows = [timing("a"), timing("b", config={"trainer": {"devices": 2, "strategy": "single"}})]
    assert Study(rows).tasks("speed") == ["mqar devices=1", "mqar devices=2"], "rows from before had one device"


def test_a_depth_that_only_some_backbones_have_is_told_twice() -> None:
    depths = {"a": 2, "b": 8, "c": 2, "d": 2}
    rows = [timing(name, 5 + n, config={"n_layers": n}) for name, n in depths.items()]
    rows += [decode(name, n, config={"n_layers": n}) for name, n in depths.items()]
    assert Study(rows).labels.series == ["a", "b", "c", "d"]
    assert told(rows) == "n_layers (8 for b, else 2)"
    assert sum("with 2 to 8 layers)" in text for text in findings(Study(rows))) == 2
    assert not any("layers" in text for text in findings(Study(rows[:1] + rows[2:4])))


def test_widths_of_a_contest_are_told_unless_they_match_parameters() -> None:
    def rows(**more: Any) -> list[Row]:
        return [timing(name, d, config={"d_model": d} | more) for name, d in (("a", 64), ("b", 128))]

    assert any("d_model 64 to 128)" in text for text in findings(Study(rows())))
    assert not any("d_model" in text for text in findings(Study(rows(match={"params": 10**6}))))
    assert told(rows()) == "d_model (128 for b, else 64)"


def test_a_contest_is_as_uneven_as_its_contenders_only() -> None:
    rows = [timing(name, d, config={"d_model": d}) for name in "ab" for d in (64, 128)]
    assert not any("d_model 64 to 128" in text for text in findings(Study(rows)))


def test_many_backbones_or_values_are_told_in_few_words() -> None:
    rows = [timing(f"b{i:02}", config={"n_layers": 1 + i // 5}) for i in range(11)]
    assert told(rows) == "n_layers (2 for b05, b06, b07 and 2 more, 3 for b10, else 1)"
    assert told([timing(f"b{i}", config={"n_layers": i}) for i in range(9)]) == "n_layers (0 to 8, 9 values)"


def test_a_dial_that_differs_between_score_and_cost_is_told() -> None:
    assert told([score(config={"d_model": 72}), timing(config={"d_model": 64})]) == "d_model (64, 72)"


# Scores and costs of one model


def rivals(rows: list[Row], metric: metrics.Metric = metrics.TOKENS_PER_S) -> dict[str, float]:
    """Of the first front of a cost: series -> the step time that was taken for it."""
    found = [each for of in fronts.fronts(Study(rows)) for each in of if each.metric is metric]
    return {rival.group.series: round(4096e3 / rival.cost.value, 3) for rival in found[0].rivals} if found else {}


def sized(n_params: int) -> dict[str, Any]:
    return timing().metrics | {"n_params": n_params}


OTHERS = {
    "parameters": {"metrics": sized(90_000)},
    "width": {"config": {"d_model": 128}},
    "precision": {"precision": "fp32"},
    "dial of the backbone": {"config": {"backbone": {"_target_": "mamba", "window": 32}}},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_score_meets_no_cost_of_another_model(other: dict[str, Any]) -> None:
    def rows(**changes: Any) -> list[Row]:
        own: dict[str, Any] = {"config": {"backbone": {"_target_": "mamba", "window": 16}}}
        scored = [score("a", 0.9, **own), score("b", 0.5), score("c", 0.4)]
        timed = timing("a", 5, **own | {"metrics": sized(120_000)} | changes)
        return [*scored, timed, timing("b", 6), timing("c", 7)]

    assert set(rivals(rows())) == {"a", "b", "c"}
    assert not any(name.startswith("a") for name in rivals(rows(**other)))


def test_a_cost_may_be_of_a_longer_cell_whose_dials_follow_from_its_length() -> None:
    longer = {"backbone": {"_target_": "a", "max_len": 256}}
    rows = [score("a"), score("b"), timing("b", 6), timing("a", 5, train_seq_len=256, config=longer)]
    assert set(rivals(rows)) == {"a", "b"}


def test_a_learned_table_of_positions_is_as_long_as_what_is_timed() -> None:
    learned: dict[str, Any] = {"config": {"backbone": {"_target_": "a", "positions": "learned"}}}
    rows = [score("a", **learned), score("b"), timing("b", 6), timing("a", 5, **learned | {"metrics": sized(150_000)})]
    assert set(rivals(rows)) == {"a", "b"}


def test_a_search_is_of_one_device() -> None:
    trial = {"study": "s", "number": 0, "values": {"optim.lr": 0.1}}
    kept: dict[str, Any] = {"metrics": {"val_loss_nats": 1.0}, "config": {"trial": trial}}
    found = search_table.searches(Study([row("mamba", "scan", device=device, **kept) for device in (H200, A100)]))
    assert [(search.task, len(search.rows)) for search in found] == [
        ("mqar device=NVIDIA A100", 1),
        ("mqar device=NVIDIA H200", 1),
    ]


def test_lists_in_names_are_told_apart() -> None:
    def pattern(*mixers: str) -> dict[str, Any]:
        return {"config": {"backbone": {"_target_": "hybrid", "pattern": list(mixers)}}}

    one, other = pattern("mamba", "mamba", "attention"), pattern("mamba", "attention")
    scored = [score("hybrid", 0.9, **one), score("hybrid", 0.8, **other), score("lstm", 0.5)]
    rows = [*scored, timing("hybrid", 7, **other), timing("lstm", 3)]
    assert rivals(rows) == {'hybrid pattern=["mamba", "attention"]': 7.0, "lstm": 3.0}


def test_values_with_spaces_are_told_apart() -> None:
    labels = Study([score(device=device) for device in (H200, A100)]).labels
    assert not labels.is_one_task(*labels.tasks)
    kernels = Study([score(config={"kernel": kernel}) for kernel in ("one way", "other way")]).labels
    assert not kernels.agree(*kernels.series)


def test_a_front_is_of_the_device_where_most_have_a_cost() -> None:
    rows = [score("a", 0.9), score("b", 0.5), score("c", 0.4)]
    rows += [timing(name, 9, device=A100) for name in "ab"] + [timing(name, 3, device=H200) for name in "abc"]
    (front,) = (each for of in fronts.fronts(Study(rows)) for each in of if each.metric is metrics.TOKENS_PER_S)
    assert front.title == "training tokens/s, at 64 tokens, NVIDIA H200"
    assert [rival.group.series for rival in front.rivals] == ["a", "b", "c"]
