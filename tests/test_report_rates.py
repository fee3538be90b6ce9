"""Scans of the learning rate: what was tried, what was chosen, and that nothing else takes them for scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from test_report import everything, failure, row, score

from arch_bench.cell import progress
from arch_bench.report import build, learning_rates, plots, rate_panels, summary, tables
from arch_bench.report.findings import findings
from arch_bench.report.provenance import provenance
from arch_bench.report.study import Study
from arch_bench.results import Kind, Row


def tried(rate: float, loss: float | None, backbone: str = "mamba", name: str = "val_loss_nats", **more: Any) -> Row:
    """One rate; no loss means that it diverged."""
    changes = more | {"config": more.get("config", {}) | {"optim": {"lr": rate}}}
    if loss is None:
        return failure(backbone, "scan", 64, changes.pop("status", "diverged"), **changes)
    found = {name: loss, "val_token_accuracy": 0.5, "steps": 2000, "n_params": 1000, "train_s": 3.2, "step": "graph"}
    return row(backbone, "scan", **{"metrics": found} | changes)


def scan(rows: list[Row]) -> learning_rates.Scan:
    (found,) = learning_rates.scans(Study(rows))
    return found


def line(rows: list[Row]) -> dict[str, str]:
    table = learning_rates.numbers(Study(rows))
    assert table is not None
    return dict(zip(table.columns, (cell.text for cell in table.rows[0]), strict=True))


def test_the_lowest_validation_loss_chooses() -> None:
    rows = [tried(0.003, 0.41), tried(0.001, 0.5), tried(0.01, 0.62), tried(0.1, None)]
    found = scan(rows)
    assert [(trial.rate, trial.trouble) for trial in found.trials] == [
        (0.001, ""),
        (0.003, ""),
        (0.01, ""),
        (0.1, "diverged"),
    ]
    assert found.chosen is not None
    assert (found.chosen.rate, found.edge) == (0.003, "")
    assert line(rows) == {
        "task": "mqar", "backbone": "mamba", "trained at": "64", "loss": "nats", "lr 0.001": "0.5", "lr 0.003": "0.41",
        "lr 0.01": "0.62", "lr 0.1": "diverged", "chosen": "0.003", "seeds": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "edge"),
    [
        ({0.001: 0.1, 0.003: 0.2, 0.01: 0.3}, "lowest"),
        ({0.001: 0.3, 0.003: 0.2, 0.01: 0.1}, "highest"),
        ({0.001: 0.3, 0.003: 0.2, 0.01: None}, ""),
        ({0.001: 2e-8, 0.003: 4e-8, 0.01: 0.3}, ""),
        ({0.001: 0.3}, "only"),
        ({0.001: None, 0.003: None}, ""),
    ],
)
def test_a_choice_at_the_edge_of_what_was_tried_is_told(losses: dict[float, float | None], edge: str) -> None:
    rows = [tried(rate, loss) for rate, loss in losses.items()]
    assert scan(rows).edge == edge
    assert ("at the edge of what was tried" in " ".join(findings(Study(rows)))) == bool(edge)
    assert line(rows).get("caution", "") == {"only": "the only rate tried", "": ""}.get(edge, f"the {edge} tried")


def test_a_rate_that_ran_out_of_memory_says_nothing_of_those_below() -> None:
    assert scan([tried(0.001, 0.3), tried(0.003, 0.2), tried(0.01, None, status="oom")]).edge == "highest"
    nothing = [tried(0.001, None), tried(0.003, float("nan"))]
    assert [trial.trouble for trial in scan(nothing).trials] == ["diverged", "no loss"]
    assert line(nothing)["chosen"] == "none"
    assert not rate_panels.rates(Study(nothing))


def test_scored_runs_at_another_rate_are_told() -> None:
    rows = [tried(0.001, 0.4), tried(0.003, 0.2), tried(0.01, 0.4)]
    good, other = (score(config={"optim": {"lr": rate}}) for rate in (0.003, 0.001))
    assert scan([*rows, good]).strays == []
    assert not learning_rates.warning(Study([*rows, good]))
    assert scan([*rows, good, other]).strays == [0.001], "both are in the name of their series"
    assert "mamba on mqar at 64 tokens (0.001)" in learning_rates.warning(Study([*rows, other]))


def test_a_scan_splits_no_series_and_scores_at_several_rates_still_do() -> None:
    rows = [tried(rate, 0.3, name) for name in ("mamba", "lstm") for rate in (0.001, 0.003)]
    best = [score(name, config={"optim": {"lr": rate}}) for name, rate in (("mamba", 0.001), ("lstm", 0.003))]
    assert Study(rows + best).labels.series == ["lstm", "mamba"]
    several = [score(config={"optim": {"lr": rate}}) for rate in (0.001, 0.003)]
    assert Study(rows + several).series("quality") == ["mamba lr=0.001", "mamba lr=0.003"]
    assert Study(rows + several).series("scan") == ["lstm", "mamba"]


def test_other_dials_and_training_lengths_are_scans_of_their_own() -> None:
    rows = [tried(rate, rate, config={"d_model": d}) for rate in (0.001, 0.003) for d in (64, 128)]
    rows += [tried(rate, -rate, config={"d_model": 64}, train_seq_len=128) for rate in (0.001, 0.003)]
    found = learning_rates.scans(Study(rows))
    assert [(each.group.series, each.group.train_seq_len, each.chosen and each.chosen.rate) for each in found] == [
        ("mamba d_model=64", 64, 0.001),
        ("mamba d_model=64", 128, 0.003),
        ("mamba d_model=128", 64, 0.001),
    ]


def test_a_rate_chosen_per_length_is_no_part_of_a_name() -> None:
    rows = [score(train_seq_len=n, seq_len=n, config={"optim": {"lr": lr}}) for n, lr in ((64, 0.01), (128, 0.001))]
    assert Study(rows).labels.series == ["mamba"]
    assert "lr (0.001, 0.01)" in dict(provenance(Study(rows)))["differs, but is not in the names"]


def test_nothing_else_takes_a_scan_for_a_score_or_a_cost() -> None:
    rows, scans = everything(), [tried(0.001, 0.3), tried(0.003, None)]
    assert summary(rows + scans) == summary(rows)
    told = [each for each in findings(Study(rows + scans)) if "learning rate" not in each]
    assert told == findings(Study(rows)), "what a scan rules out is no missing result"
    failed = tables.failures(Study(scans))
    assert failed is not None
    assert [cell.text for cell in failed.rows[0]][:3] == ["scan", "mqar", "mamba lr=0.003"]
    eager = tried(0.01, 0.5, metrics={"val_loss_nats": 0.5, "step": "eager"})
    assert Study([eager, *scans]).labels.series == ["mamba"], "how a scan ran names nothing"


def test_a_summary_of_rates_alone_says_that_scores_are_to_come() -> None:
    assert summary([tried(rate, 1.0) for rate in (1e-3, 3e-3, 1e-2)]) == "no scores yet; 3 rows of kind scan"
    assert summary([tried(1e-3, 1.0)]) == "no scores yet; 1 row of kind scan"
    assert summary([]) == "no rows"


def test_rates_are_drawn_with_their_failures() -> None:
    rows = [tried(0.001, 2.0), tried(0.003, 0.01), tried(0.01, None), tried(0.001, 1.0, "lstm")]
    ((panel,),) = rate_panels.rates(Study(rows))
    assert {curve.series: list(curve.points) for curve in panel.curves} == {"lstm": [0.001], "mamba": [0.001, 0.003]}
    assert panel.metric.is_log, "a factor of 200 in loss"
    assert [(mark.length, mark.text) for mark in panel.marks] == [(0.01, "diverged")]
    assert panel.marks[0].y > 2.0
    go.Figure(plots.plot(panel))
    ((linear,),) = rate_panels.rates(Study([tried(0.001, 2.0), tried(0.003, 1.5)]))
    assert not linear.metric.is_log


def test_a_regression_is_chosen_by_its_squared_error(tmp_path: Path) -> None:
    rows = [tried(0.001, 0.02, name="val_mse"), tried(0.003, 0.01, name="val_mse"), tried(0.01, 0.3, name="val_mse")]
    assert (line(rows)["loss"], line(rows)["chosen"]) == ("squared error", "0.003")
    build([*rows, score()], tmp_path, "t")
    assert (tmp_path / "figures" / "rates.svg").exists()
    assert "Learning rates tried" in (tmp_path / "report.md").read_text()


def test_a_finished_scan_has_a_line_in_the_terminal() -> None:
    assert progress.line(tried(0.001, 0.41)).endswith("val_loss_nats 0.41 after 2,000 steps, 3.2 s")
    assert "diverged: too <big>" in progress.line(tried(0.1, None))


@pytest.mark.parametrize("kind", ["quality", "scan", "speed", "decode", "kernels"])
@pytest.mark.parametrize("value", [None, "x", True])
def test_a_row_of_odd_figures_has_a_line_nevertheless(kind: Kind, value: str | bool | None) -> None:
    odd = dict.fromkeys(("token_accuracy", "steps", "train_s", "val_mse", "train_step_ms", "peak_mem_bytes"), value)
    for metrics in ({}, odd):
        row = replace(tried(0.1, 0.41), kind=kind, metrics=metrics)
        assert progress.line(row).count("\n") == 0
        assert "ok, without the figures of a" in progress.line(row) or metrics
