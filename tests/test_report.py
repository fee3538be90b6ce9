"""From rows to a report: names, intervals, failures, sentences, files and the command line."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from arch_bench import results
from arch_bench.config.usage import CONF, options
from arch_bench.report import (
    build,
    dials,
    figures,
    folder,
    metrics,
    panels,
    plots,
    summary,
    tables,
    ticks,
    units,
)
from arch_bench.report.__main__ import main
from arch_bench.report.facets import Facet
from arch_bench.report.findings import findings
from arch_bench.report.provenance import provenance
from arch_bench.report.study import Group, Study
from arch_bench.report.style import style
from arch_bench.results import Kind, Row


def row(backbone: str = "mamba", kind: Kind = "quality", seq_len: int = 64, **changes: Any) -> Row:
    """One row; `config` is merged into a small resolved configuration, and the key follows from the rest."""
    base: dict[str, Any] = {"experiment": "e", "task": "mqar", "train_seq_len": 64, "seed": 0, "kernel": "k"}
    base |= {
        "precision": "bf16",
        "status": "ok",
        "device": "GPU X",
        "created_at": "2026-01-01T00:00:00+00:00",
    } | changes
    config = {
        "d_model": 64,
        "device": "cuda",
        "seq_len": base["train_seq_len"],
        "seed": base["seed"],
        "backbone": {"_target_": backbone, "max_len": base["train_seq_len"]},
        "optim": {"lr": 0.001},
        "trainer": {"batch_size": 64},
        "speed": {"lengths": [64], "tokens_per_step": 4096},
    } | changes.get("config", {})
    keyed = [backbone, base["task"], base["experiment"], {k: v for k, v in config.items() if k != "speed"}]
    return Row(
        **{"key": repr(keyed)} | base | {"backbone": backbone, "kind": kind, "seq_len": seq_len, "config": config}
    )


def score(backbone: str = "mamba", accuracy: float = 0.9, seq_len: int = 64, **changes: Any) -> Row:
    found = {"token_accuracy": accuracy, "baseline_value_set": 0.125, "baseline_chance": 0.01, "n_params": 120_000}
    return row(backbone, "quality", seq_len, **{"metrics": found} | changes)


def timing(backbone: str = "mamba", step_ms: float = 10.0, seq_len: int = 64, **changes: Any) -> Row:
    found = {"train_step_ms": step_ms, "tokens_per_s": 4096e3 / step_ms, "peak_mem_bytes": 2**30, "batch_size": 8}
    found |= {"train_step_ms_p10": 0.9 * step_ms, "train_step_ms_p90": 1.3 * step_ms}
    return row(backbone, "speed", seq_len, **{"metrics": found} | changes)


def decode(backbone: str = "mamba", ms: float = 0.2, state_bytes: int = 2048, seq_len: int = 64, **changes: Any) -> Row:
    found = {"ms_per_token": ms, "prefill_ms": 3.0, "state_bytes": state_bytes, "batch_size": 1}
    return row(backbone, "decode", seq_len, **{"metrics": found} | changes)


def failure(backbone: str, kind: Kind, seq_len: int, status: results.Status = "oom", **changes: Any) -> Row:
    return row(backbone, kind, seq_len, **{"status": status, "reason": "too <big> | wide", "device": "cuda"} | changes)


def everything() -> list[Row]:
    """Two backbones, three seeds, every kind, two failures."""
    rows = []
    for seed in range(3):
        for n in (64, 128, 256):
            rows += [
                score("transformer", 0.995 - n / 400 + seed / 100, n, seed=seed),
                score("mamba", 0.97, n, seed=seed),
            ]
            rows += [
                timing("transformer", n / 10 + seed, n, seed=seed),
                decode("transformer", 0.3, n * 512, n, seed=seed),
            ]
            rows += [decode("mamba", 0.2, 2048, n, seed=seed)]
        rows += [timing("mamba", 10 + seed, n, seed=seed) for n in (64, 128)] + [
            failure("mamba", "speed", 256, seed=seed)
        ]
    return [*rows, failure("lstm", "quality", 64, "diverged")]


def series(rows: list[Row]) -> set[str]:
    return set(Study(rows).labels.series)


def panel(rows: list[Row], metric: metrics.Metric) -> panels.Panel:
    found = panels.panel(Study(rows), Facet("mqar"), metric)
    assert found
    return found


# Names


def test_a_dial_that_varies_within_a_backbone_is_named_everywhere() -> None:
    rows = [score(config={"d_model": 64}), score(config={"d_model": 128}), score("lstm")]
    assert Study(rows).labels.series == ["lstm d_model=64", "mamba d_model=64", "mamba d_model=128"]


def test_what_differs_between_backbones_or_tasks_is_no_dial() -> None:
    window = {"backbone": {"window": 32, "_target_": "w"}, "optim": {"lr": 0.01}}
    rows = [score("local_attention", config=window), score("mamba"), score(task="copy", config={"d_model": 128})]
    assert series(rows) == {"local_attention", "mamba"}


def test_what_follows_from_the_length_or_from_another_dial_is_disclosed_and_not_named() -> None:
    rows = [
        score(
            train_seq_len=n,
            seq_len=n,
            seed=seed,
            config={"d_model": d, "n_heads": d // 16, "trainer": {"batch_size": b}},
        )
        for n, b in ((64, 32), (256, 8))
        for d in (64, 128)
        for seed in (0, 1)
    ]
    assert series(rows) == {"mamba d_model=64", "mamba d_model=128"}
    told = dict(provenance(Study(rows)))["differs, but is not in the names"]
    assert "batch_size (8, 32)" in told
    assert "n_heads (4, 8)" in told


def test_a_width_never_passes_for_a_consequence_of_the_length() -> None:
    rows = [score(train_seq_len=n, seq_len=n, config={"d_model": n}) for n in (64, 256)]
    assert series(rows) == {"mamba d_model=64", "mamba d_model=256"}


def test_a_dial_of_the_task_names_the_task() -> None:
    rows = [score(config={"task": {"n_pairs": n}}) for n in (16, 4)]
    assert Study(rows).labels.tasks == ["mqar n_pairs=4", "mqar n_pairs=16"]
    assert series(rows) == {"mamba"}


def test_where_a_corpus_is_kept_names_no_task() -> None:
    rows = [score(seed=seed, config={"task": {"cache_dir": kept}}) for seed in (0, 1) for kept in (None, "/data")]
    assert Study(rows).labels.tasks == ["mqar"]
    assert "cache_dir" not in dict(provenance(Study(rows))).get("differs, but is not in the names", "")


def test_a_learning_rate_splits_scores_and_no_timings() -> None:
    swept = [{"optim": {"lr": lr}} for lr in (0.01, 0.001)]
    rows = [make(config=config) for make in (score, timing) for config in swept]
    assert Study(rows).labels.series == ["mamba", "mamba lr=0.001", "mamba lr=0.01"]
    assert Study(rows).series("speed") == ["mamba"]


def test_phase_settings_are_not_in_the_key_and_still_tell_timings_apart() -> None:
    rows = [timing(config={"speed": {"tokens_per_step": n, "n_steps": 5}}) for n in (4096, 65536)]
    assert rows[0].key == rows[1].key
    assert series(rows) == {"mamba tokens_per_step=4096", "mamba tokens_per_step=65536"}


def test_a_failed_cell_that_knows_only_the_type_of_its_device_joins_the_named_one() -> None:
    assert series([timing(), failure("mamba", "speed", 64, seed=1)]) == {"mamba"}
    assert Study([score(), failure("mamba", "quality", 64, seed=1)]).labels.tasks == ["mqar"]
    apart = Study([score(), score(device="GPU Y", seed=1)])
    assert apart.labels.tasks == ["mqar device=GPU X", "mqar device=GPU Y"]


def test_experiments_are_told_apart_only_where_they_measured_the_same() -> None:
    assert series([score(), score(experiment="f", seed=1)]) == {"mamba"}
    assert series([score(), score(experiment="f")]) == {"mamba experiment=e", "mamba experiment=f"}


def test_a_backbone_looks_the_same_in_every_report() -> None:
    both = Study([score("mamba"), score("transformer"), score("xyz")])
    assert both.style("mamba") == Study([score("mamba")]).style("mamba") == style("mamba", 0)
    assert len({both.style(name).colour for name in both.labels.series}) == 3


def test_no_two_backbones_of_a_report_share_colour_and_marker() -> None:
    names = options(CONF, "backbone")
    looks = {(look.colour, look.symbol) for look in (style(name, 0, names) for name in names)}
    assert len(looks) == len(names)
    few = ["based", "gla", "hyena", "linear_attention", "mamba2", "rwkv7"]
    assert len({style(name, 0, few).colour for name in few}) == len(few), "and few have colours of their own"


def test_settings_of_a_backbone_share_its_colour_and_differ_in_line_and_marker() -> None:
    looks = [style("lstm", rank) for rank in range(10)]
    assert len({look.colour for look in looks}) == 1
    assert len(set(looks)) == 10


# Values


def test_the_newest_of_repeated_rows_counts() -> None:
    old, new = score(accuracy=0.1), score(accuracy=0.9, created_at="2026-01-02T00:00:00+00:00")
    for rows in ([old, new], [new, old]):
        (points,) = Study(rows).points(metrics.ACCURACY).values()
        assert points[64].value == 0.9


def test_points_are_means_over_seeds_with_a_repeatable_interval() -> None:
    rows = [score(accuracy=value, seed=seed) for seed, value in enumerate((0.2, 0.31, 0.37, 0.43, 0.59, 0.7, 0.9))]
    point = Study(rows).points(metrics.ACCURACY)[Group("mqar", "mamba", 64)][64]
    assert point == Study(rows[::-1]).points(metrics.ACCURACY)[Group("mqar", "mamba", 64)][64]
    assert point.n_seeds == 7
    assert point.value == pytest.approx(0.5)
    assert point.low is not None
    assert point.high is not None
    assert (point.low, point.high) == pytest.approx((0.274722, 0.725278), abs=1e-6), "Student's t of six degrees"


def test_a_timing_of_one_seed_has_its_own_spread() -> None:
    point = Study([timing(step_ms=10)]).points(metrics.TRAIN_STEP)[Group("mqar", "mamba", 0)][64]
    assert (point.low, point.high) == (9, 13)
    assert Study([score()]).points(metrics.ACCURACY)[Group("mqar", "mamba", 64)][64].low is None


@pytest.mark.parametrize("value", [None, float("nan"), "high", True])
def test_what_is_no_number_is_no_point(value: Any) -> None:
    assert not Study([score(metrics={"token_accuracy": value})]).points(metrics.ACCURACY)


def test_seeds_that_diverged_count_against_the_share_that_solved() -> None:
    rows = [score(accuracy=0.995), score(accuracy=0.5, seed=1), failure("mamba", "quality", 64, "diverged", seed=2)]
    rows.append(failure("mamba", "quality", 64, "oom", seed=3))
    assert tables.solved(Study(rows), Group("mqar", "mamba", 64), 64) == (1, 3)


def test_bits_per_byte_lead_where_they_are_measured() -> None:
    rows = [score(task="text", metrics={"token_accuracy": 0.5, "bits_per_byte": 1.5}), score()]
    assert Study(rows).headline("text") is metrics.BITS_PER_BYTE
    assert Study(rows).headline("mqar") is metrics.ACCURACY


# Panels and both ways of drawing them


def test_failures_are_drawn_at_their_length_beyond_the_worst_value() -> None:
    rows = [timing("lstm", 5, n) for n in (64, 128)] + [failure("lstm", "speed", 256), timing("mamba", 9, 256)]
    for metric, is_worse in ((metrics.TRAIN_STEP, float.__gt__), (metrics.TOKENS_PER_S, float.__lt__)):
        shown = panel(rows, metric)
        (mark,) = shown.marks
        assert (mark.length, mark.text, mark.series) == (256, "oom", "lstm")
        assert shown.y_range[0] < mark.y < shown.y_range[1]
        assert all(is_worse(mark.y, point.value) for curve in shown.curves for point in curve.points.values())


def test_failing_series_do_not_cover_each_other_and_name_a_run_once() -> None:
    rows = [failure(name, "speed", n) for name in ("a", "b") for n in (128, 256)] + [timing("c", 5, 64)]
    marks = panel(rows, metrics.TRAIN_STEP).marks
    assert len({mark.y for mark in marks}) == 2
    assert [(mark.length, mark.text) for mark in marks if mark.text] == [(128, "oom"), (128, "oom")]


def test_some_seeds_failing_is_said_with_their_share() -> None:
    rows = [timing(), timing(seed=1), failure("mamba", "speed", 64, seed=2)]
    assert [mark.status for mark in panel(rows, metrics.PEAK_MEMORY).marks] == ["oom 1/3"]


def test_the_words_of_an_allocator_are_cut_and_those_of_others_are_not() -> None:
    words = "CUDA out of memory. Tried to allocate 16.00 GiB. " + "Of the allocated memory " * 20
    rows = [failure("lstm", "speed", 256, reason=words), failure("mamba", "speed", 256, "crashed", reason="a " * 100)]
    found = tables.failures(Study(rows))
    assert found is not None
    cut, whole = (line[-1].text for line in found.rows)
    assert cut.startswith("CUDA out of memory. Tried to allocate 16.00 GiB.")
    assert cut.endswith(" …")
    assert len(cut) <= 130
    assert whole == "a " * 100


def test_a_task_where_everything_failed_still_has_a_panel() -> None:
    ((shown,),) = panels.costs(Study([failure("lstm", "speed", 64)]), "speed")
    assert len(shown.marks) == 1


def test_baselines_are_lines_and_those_off_the_scale_are_labels() -> None:
    def text(bits: float, **more: float) -> Row:
        found = {"bits_per_byte": bits, "baseline_unigram": 2.2, "baseline_uniform": 8.0} | more
        return score(f"b{bits}", metrics=found)

    shown = {baseline.name: baseline for baseline in panel([text(1.5), text(2.0)], metrics.BITS_PER_BYTE).baselines}
    assert shown["unigram"].points == {64: 2.2}
    assert not shown["uniform"].points
    assert shown["uniform"].label == "uniform 8.000 ↑"


def test_one_training_length_is_marked_and_several_make_faint_lines() -> None:
    short = [score(seq_len=n) for n in (64, 128)]
    long = [score(seq_len=n, train_seq_len=128) for n in (128, 256)]
    assert panel(short, metrics.ACCURACY).trained_at == 64
    both = panel(short + long, metrics.ACCURACY)
    assert both.trained_at is None
    assert [(list(curve.points), curve.is_faint) for curve in both.curves] == [
        ([64, 128], False),
        ([64, 128], True),
        ([128, 256], True),
    ]


def test_plotly_accepts_every_figure_and_draws_the_panels_values() -> None:
    for section in folder.sections(Study(everything())):
        for each in (each for line in section.rows for each in line):
            spec = plots.plot(each)
            figure = go.Figure(spec)  # raises on an attribute that Plotly does not know
            drawn = {trace.name: list(trace.y) for trace in figure.data if trace.mode == "lines+markers"}
            assert drawn == {
                curve.series: [p.value for p in curve.points.values()] for curve in each.curves if curve.points
            }


def test_figures_are_the_same_bytes_every_time() -> None:
    section = folder.sections(Study([timing(), timing(r"a$\q$", 7, 128), failure("lstm", "speed", 64)]))[0]
    first, second = (figures.draw(section.rows, section.styles, section.x_label) for _ in range(2))
    assert first == second
    assert first["png"].startswith(b"\x89PNG")
    assert b"<dc:date>" not in first["svg"]


def test_a_crowd_of_settings_can_be_drawn() -> None:
    rows = [
        score(accuracy=n / 40, seq_len=length, config={"optim": {"lr": n / 1000}})
        for n in range(1, 41)
        for length in (64, 128, 256)
    ]
    (section,) = folder.sections(Study(rows))
    assert len(section.styles) == 40
    assert figures.draw(section.rows, section.styles, section.x_label)["png"]


@pytest.mark.parametrize(("low", "high"), [(0.07, 0.4), (1, 1e6), (8, 40), (1e-3, 1e9)])
@pytest.mark.parametrize("metric", [metrics.TRAIN_STEP, metrics.STATE, metrics.BITS_PER_BYTE])
def test_ticks_are_few_and_inside(low: float, high: float, metric: metrics.Metric) -> None:
    found = ticks.ticks(low, high, metric)
    assert 2 <= len(found) <= ticks.MOST + 1
    assert all(low <= value <= high for value in found)


def test_labels_are_pushed_apart_in_order() -> None:
    placed = ticks.spread([0.1, 0.11, 0.5, 0.99, 1.0], gap=0.07)
    assert all(b - a >= 0.07 - 1e-9 for a, b in pairwise(placed))
    assert (placed[0], placed[-1]) == (0.1, 1.0)


# Words


def test_findings_say_who_leads_who_guesses_and_how_many_seeds() -> None:
    rows = [score("transformer", 0.998), score("lstm", 0.13), score("mamba", 0.8)]
    assert findings(Study(rows)) == [
        "On mqar at 64 tokens (1 seed), transformer has the highest mean: 99.8 % token accuracy, but 1 seed cannot "
        "tell it from mamba (80.0 %); lstm (13.0 %) does not get past the value set baseline (12.5 %)."
    ]


def test_findings_are_silent_without_a_comparison() -> None:
    assert findings(Study([timing(), decode()])) == []
    assert "nothing gets past the value set baseline" in findings(Study([score(accuracy=0.12), score("b", 0.11)]))[0]


def test_a_small_model_does_not_win_against_a_large_one() -> None:
    rows = [timing(name, ms * d / 64, config={"d_model": d}) for name, ms in (("a", 10), ("b", 30)) for d in (64, 128)]
    speed, *_ = findings(Study(rows))
    assert "a d_model=64 trains fastest (410k tokens/s), 3x as fast as b d_model=64." in speed
    alone = findings(Study([timing("a", d, config={"d_model": d}) for d in (64, 128)]))
    assert "a d_model=64 trains fastest" in alone[0], "one backbone at two widths is a contest of its own"


def test_findings_tell_speed_crossover_state_and_what_is_missing() -> None:
    rows = [timing("transformer", ms, n) for n, ms in ((64, 5), (256, 10), (1024, 40))]
    rows += [timing("mamba", 20, n) for n in (64, 256, 1024)]
    rows += [decode("transformer", 0.3, 2**21), decode("mamba", 0.1), failure("lstm", "decode", 64)]
    speed, decoding, crossover, growth, missing = findings(Study(rows))
    assert "At 1,024 tokens (mqar, 1 seed), mamba trains fastest (205k tokens/s), 2x as fast as transformer" in speed
    assert crossover == "mamba passes transformer at 1,024 tokens in training tokens/s (mqar, 1 seed)."
    assert growth.startswith("From 64 to 1,024 tokens a training step of transformer grows as L^0.75 ")
    assert "mamba carries the smallest state (2 KiB), transformer the largest (2 MiB)" in decoding
    assert missing.startswith("1 of 9 rows have no result, lstm at 64 tokens (decode: oom)")


def test_findings_tell_what_becomes_of_a_score_at_longer_lengths() -> None:
    rows = [score("a", 0.99), score("a", 0.4, 256), score("lost", 0.12), score("lost", 0.12, 256)]
    assert (
        findings(Study(rows))[1]
        == "Trained on mqar at 64 tokens and tested at 256 (1 seed), a goes from 99.0 % to 40.0 %."
    )


def test_the_summary_fits_a_terminal_and_shows_scores_costs_and_failures() -> None:
    text = summary(everything())
    assert max(map(len, text.splitlines())) <= 120
    line = next(line for line in text.splitlines() if line.startswith("  transformer"))
    for expected in (f"84.5 % [82.0{units.DASH}87.0]", "value set 12.5 %", "0/3", "3 ", "120k"):
        assert expected in line
    assert re.search(r"mamba +128 +\S+ +1 GiB +256 +0.2 +2 KiB +oom at 256", text)
    assert text.index("lstm") < text.index("mamba") < text.index("transformer")
    assert summary([]) == "no rows"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.count(1_234_567), "1.23M"),
        (units.count(999_999), "1M"),
        (units.count(64), "64"),
        (units.size(34 * 1024), "34 KiB"),
        (units.size(1000), "1,000 B"),
        (units.percent(0.998), "99.8 %"),
        (units.percent(0.0001), "0.01 %"),
        (units.plain(0.21349), "0.213"),
        (units.plain(1239.7), "1,240"),
        (units.length(4096), "4k"),
        (units.length(1000), "1,000"),
        (units.seeds(1), "1 seed"),
        (units.seeds(3, 2), f"2{units.DASH}3 seeds"),
    ],
)
def test_numbers_read_well(shown: str, expected: str) -> None:
    assert shown == expected


def test_cells_of_a_markdown_table_stay_in_their_columns() -> None:
    table = tables.failures(Study([failure("lstm", "speed", 64)]))
    assert table
    assert "too <big> \\| wide" in table.markdown()


# Files


def test_a_report_is_complete_and_needs_nothing_else(tmp_path: Path) -> None:
    page = build(everything(), tmp_path / "out", "what <b> & c")
    written = {str(path.relative_to(page.parent)) for path in page.parent.rglob("*") if path.is_file()}
    drawn = {
        f"figures/{name}.{end}" for name in ("quality", "fronts", "training", "decoding") for end in ("png", "svg")
    }
    assert written == drawn | {"report.html", "report.md", "rows.csv"}
    (script,) = re.findall(r'id="plotly">(.*?)</script>', page.read_text())
    assert "plotly.js" in gzip.decompress(base64.b64decode(script)).decode()[:200]
    own = page.read_text().replace(script, "")
    assert "http" not in own
    assert not re.findall(r"<link(?! rel=\"icon\" href=\"data:,\")|<img|@import|url\(|\ssrc=", own)
    assert "<h1>what &lt;b&gt; &amp; c</h1>" in own
    assert "too &lt;big&gt; | wide" in own
    assert len((page.parent / "rows.csv").read_text().splitlines()) == 1 + len(everything())


def test_a_failing_build_leaves_the_old_page_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = build([score()], tmp_path, "old")
    before = page.read_bytes()

    def fail(self: Path, target: Path) -> Path:
        raise OSError(f"disk full at {target}")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        build([score()], tmp_path, "new")
    assert page.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_figures_of_an_earlier_report_do_not_linger(tmp_path: Path) -> None:
    build([score(), timing()], tmp_path, "both")
    build([score()], tmp_path, "scores only")
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"quality"}


def test_building_a_report_loads_no_training_library(tmp_path: Path) -> None:
    save([score(), timing()], tmp_path)
    code = "import sys; from arch_bench.report.__main__ import main; main(sys.argv[1:]); print(set(sys.modules) & "
    code += "{'torch', 'lightning', 'wandb', 'hydra'})"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


# Command line


def save(rows: list[Row], below: Path) -> None:
    for place, each in enumerate(rows):
        results.save(each, below / "rows" / f"{place}.json")


def test_each_experiment_gets_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save([score(), score(experiment="f")], tmp_path)
    main([str(tmp_path)])
    printed = capsys.readouterr().out.split()
    assert {Path(path) for path in printed} == {
        path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "rows"
    }
    assert {str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.html")} == {"e/report.html", "f/report.html"}


def test_out_merges_what_is_selected(tmp_path: Path) -> None:
    save([score(), score(experiment="f"), score(experiment="g")], tmp_path / "in")
    main([str(tmp_path / "in"), "--out", str(tmp_path / "all")])
    assert "# e + f + g" in (tmp_path / "all" / "report.md").read_text()
    main([str(tmp_path / "in"), "--experiment", "f", "--out", str(tmp_path / "f")])
    assert "# f\n" in (tmp_path / "f" / "report.md").read_text()


def test_a_folder_named_like_its_experiment_holds_the_report(tmp_path: Path) -> None:
    save([score()], tmp_path / "e")
    main([str(tmp_path / "e")])
    assert (tmp_path / "e" / "report.html").exists()


def test_whoever_reads_may_stop_reading(tmp_path: Path) -> None:
    save([score()], tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "arch_bench.report", str(tmp_path)]
    with os.fdopen(writer) as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "e" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["empty"], "no rows in empty"),
        (["full", "--experiment", "x"], "no experiment x in these rows; there is e"),
        (["full", "--out", "full/rows/0.json"], "cannot write to full/rows/0.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    save([score()], Path("full"))
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2
    assert complaint in line


def test_every_column_of_a_row_reaches_the_csv() -> None:
    header = folder.rows_csv([score()]).decode().splitlines()[0].split(",")
    flat = {name.partition(".")[0] for name in header}
    assert flat >= {field.name for field in dataclasses.fields(Row)} - {"versions", "data", "curve"}, (
        "these may be empty"
    )
    assert "metrics.token_accuracy" in header
    assert dials.flatten({"a": {"b": [1]}}) == {"a.b": "[1]"}


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "", ".", "a/../../b", "rows", "x" * 500, "a\nb\0c"])
def test_a_report_stays_in_its_folder_whatever_its_experiment_is_called(name: str, tmp_path: Path) -> None:
    found = folder.place(tmp_path / "results", name)
    assert found.parent == tmp_path / "results"
    assert found.name not in ("", "..", "rows")
    found.mkdir(parents=True)
    assert folder.place(tmp_path, "mqar_lengths d=64") == tmp_path / "mqar_lengths d=64"


ODD: list[dict[str, Any]] = [
    {"config": {"n_layers": "x", "d_model": [1]}},
    {"config": {"optim": {"lr": None}}},
    {"config": {"trial": {"a": 1}}},
    {"config": {"trial": {"study": [1], "number": "x", "values": {}}}},
    {"config": {"speed": {}, "match": {}, "backbone": {"a": {"b": [{"c": 1}]}}}},
    {"metrics": {"token_accuracy": 1e308, "train_step_ms": -1.0, "n_params": "many", "state_bytes": 0}},
    {"metrics": {"token_accuracy": "x", "train_step_ms": 1e-300, "ms_per_token": 0, "batch_size": "x"}},
    {"metrics": {}},
    {"backbone": "a\n|b<", "task": "", "precision": "", "device": ""},
    {"reason": "a" * 100_000, "status": "crashed"},
]


@pytest.mark.parametrize("odd", ODD)
def test_a_row_that_is_odd_but_valid_costs_no_report(odd: dict[str, Any]) -> None:
    kinds: tuple[Kind, ...] = ("quality", "scan", "speed", "decode", "kernels")
    rows = [*everything(), *(row(kind=kind, **{"backbone": "z"} | odd) for kind in kinds)]
    study = Study(rows)
    assert summary(rows)
    assert findings(study)
    assert folder.sections(study)
    assert folder.rows_csv(study.every).count(b"\n") > len(rows) - len(kinds)
