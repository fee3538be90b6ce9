"""Kernels of one layer, side by side: their names, looks, panels, tables and sentences."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from arch_bench.report import (
    build,
    contenders,
    cost_tables,
    figures,
    folder,
    kernel_table,
    metrics,
    outliers,
    panels,
    parts,
    picks,
    plots,
    summary,
    tables,
    units,
)
from arch_bench.report.facets import Facet
from arch_bench.report.findings import findings
from arch_bench.report.provenance import provenance
from arch_bench.report.scale import Scale
from arch_bench.report.study import Group, Study
from arch_bench.results import Row, Status

K = 1024
LENGTHS = (K, 4 * K, 16 * K)
BARE = "lib.Layer"


def row(backbone: str, kernel: str, seq_len: int, found: dict[str, Any], **changes: Any) -> Row:
    """As the phase writes it: one cell for all contenders, whose configuration asks for `kernel: auto`."""
    batching, seed = changes.pop("batching", "constant_tokens"), changes.pop("seed", 0)
    config = {"d_model": 64, "n_layers": 1, "kernel": "auto", "step": "auto", "optim": {"lr": 0.1}} | {
        "backbone": {"mixer": {"kernel": "auto"}},
        "speed": {"batching": batching, "tokens_per_step": 64 * K, "lengths": list(LENGTHS)},
    }
    config |= changes.pop("config", {})
    task = changes.pop("task", "some_task")
    fixed = {"experiment": "e", "task": task, "train_seq_len": K, "precision": "bf16", "device": "GPU X"}
    key = repr((backbone, task, seed, {name: value for name, value in config.items() if name != "speed"}))
    asked = {"key": key, "seed": seed, "config": config, "status": "ok", "metrics": found | {"batching": batching}}
    return Row(
        **fixed | asked | changes | {"backbone": backbone, "kernel": kernel, "seq_len": seq_len, "kind": "kernels"}
    )


def timed(backbone: str, kernel: str, seq_len: int, ms: float, *, auto: bool = False, **changes: Any) -> Row:
    """Times that spread by 2 % to both sides; what has a dot in its name is a bare call."""
    is_bare = "." in kernel
    found = {"forward_backward_ms": ms, "forward_backward_ms_p10": 0.98 * ms, "forward_backward_ms_p90": 1.02 * ms}
    found |= {"forward_ms": ms / 3, "peak_mem_bytes": 2**30, "batch_size": 1, "is_auto": int(auto)}
    found |= {"is_bare": int(is_bare), "step": "graph"} | ({} if is_bare else {"gate_error": 0.002})
    return row(backbone, kernel, seq_len, found | changes.pop("found", {}), **changes)


def failed(backbone: str, kernel: str, seq_len: int, status: Status = "oom", **changes: Any) -> Row:
    """It still names the contender, and has no metrics."""
    bad = row(backbone, kernel, seq_len, {}, status=status, reason="no | room", **changes)
    return dataclasses.replace(bad, metrics={})


def speed(backbone: str, **changes: Any) -> Row:
    """A training step."""
    found = {"train_step_ms": 10.0, "tokens_per_s": 5.0, "kernel": "given"}
    made = row(backbone, "given", K, found, task="mqar", **changes)
    return dataclasses.replace(made, kind="speed")


def curve(backbone: str, kernel: str, *times: float, **changes: Any) -> list[Row]:
    return [timed(backbone, kernel, n, ms, **changes) for n, ms in zip(LENGTHS, times, strict=False)]


def contest(backbone: str = "mamba", **changes: Any) -> list[Row]:
    """The kernel that `auto` picks wins everywhere, and is 10 % slower than the bare call."""
    rows = curve(backbone, "fast", 1.1, 2.2, 4.4, auto=True, **changes) + curve(backbone, "slow", 3, 6, **changes)
    rows += [failed(backbone, "slow", 16 * K, **changes), *curve(backbone, BARE, 1, 2, 4, **changes)]
    return rows + [failed(backbone, "never", n, "unsupported", **changes) for n in LENGTHS]


def shown(rows: list[Row]) -> dict[str, parts.Panel]:
    """Title -> panel."""
    return {panel.facet.title: panel for row in panels.kernels(Study(rows)) for panel in row}


def panel(rows: list[Row]) -> parts.Panel:
    (only,) = shown(rows).values()
    return only


def looks(rows: list[Row]) -> dict[str, Any]:
    return {name.series: name.style for name in panel(rows).names}


def lines(table: tables.Table | None) -> list[dict[str, str]]:
    """Column -> text, of each line."""
    assert table
    return [dict(zip(table.columns, (cell.text for cell in line), strict=True)) for line in table.rows]


# Names


def test_a_backbone_and_a_batch_policy_have_a_panel_and_the_task_is_nowhere() -> None:
    rows = [*contest("mamba"), *contest("lstm"), *contest("lstm", batching="single")]
    assert list(shown(rows)) == [
        "lstm, constant tokens per step",
        "lstm, batch 1",
        "mamba, constant tokens per step",
    ]
    rows += curve("mamba", "other", 1, task="mqar", config={"task": {"n": 3}})
    assert len(shown(rows)) == 3, "a layer alone has no task"
    study = Study(rows)
    for text in (summary(rows), *findings(study), *(str(table) for table in folder._context(study, [], "")["tables"])):
        assert "some_task" not in text
        assert "mqar" not in text


def test_contenders_of_one_cell_are_told_apart_and_the_newest_of_each_counts() -> None:
    late = {"created_at": "2036-01-01T00:00:00+00:00"}
    study = Study([*contest(), timed("mamba", "slow", K, 2.5, **late)])
    assert {group.series for group in study.groups("kernels")} == {"fast", "slow", "never", BARE}
    (slow,) = [group for group in study.groups("kernels") if group.series == "slow"]
    assert study.points(metrics.KERNEL)[slow][K].value == 2.5


def test_processes_of_one_point_are_seeds() -> None:
    study = Study([timed("mamba", "fast", K, ms, seed=seed) for seed, ms in enumerate((1, 2, 6))])
    (points,) = study.points(metrics.KERNEL).values()
    assert (points[K].value, points[K].n_seeds) == (3, 3)


def test_widths_have_panels_of_their_own_and_name_them() -> None:
    rows = [*contest(config={"d_model": 64}), *contest(config={"d_model": 1024})]
    assert [title.partition(",")[0] for title in shown(rows)] == ["mamba d_model=64", "mamba d_model=1024"]
    captions = [folder.sections(Study(each))[0].caption for each in (rows, contest())]
    assert "throughout" not in captions[0]
    assert captions[1].endswith("d_model is 64 throughout.")


@pytest.mark.parametrize("dial", ["kernel", "n_layers", "loss_kernel", "step", "optim.lr", "task.n"])
def test_what_a_layer_alone_does_not_depend_on_names_nothing(dial: str) -> None:
    first, _, last = dial.partition(".")
    rows = [each for value in (7, 8) for each in contest(config={first: {last: value} if last else value})]
    assert list(shown(rows)) == ["mamba, constant tokens per step"]
    assert Study(rows).labels.dials == []
    assert len({each.key for each in rows}) == 2


def test_how_many_tokens_a_step_has_is_told_apart() -> None:
    settings = [{"speed": {"batching": "constant_tokens", "tokens_per_step": n}} for n in (K, 2 * K)]
    rows = [timed("mamba", "fast", K, 1, config=config) for config in settings]
    assert rows[0].key == rows[1].key
    assert [title.partition(",")[0] for title in shown(rows)] == [
        "mamba tokens_per_step=1024",
        "mamba tokens_per_step=2048",
    ]


def test_a_contender_that_ran_in_two_ways_is_two_and_its_namesake_elsewhere_is_not() -> None:
    eager = {"found": {"step": "eager"}}
    rows = [timed("mamba", "reference", K, 1), timed("mamba", "reference", 4 * K, 9, **eager)]
    rows += [failed("mamba", "reference", 16 * K), timed("lstm", "reference", K, 1)]
    names = {title: [name.text for name in each.names] for title, each in shown(rows).items()}
    assert names == {
        "lstm, constant tokens per step": ["reference"],
        "mamba, constant tokens per step": ["reference (eager)", "reference (graph)"],
    }
    eagerly, captured = (name.style for name in shown(rows)["mamba, constant tokens per step"].names)
    assert eagerly.colour == captured.colour == shown(rows)["lstm, constant tokens per step"].names[0].style.colour
    assert eagerly.dash != captured.dash
    study = Study([*rows, speed("reference")])
    assert study.trouble("kernels", Group("mamba", "reference (eager)", 0, "constant_tokens"), 16 * K) == "oom"
    assert study.labels.series == ["reference"], "a backbone that is called like a contender"


# Panels


def test_what_auto_picks_is_thick_and_a_bare_call_is_dashed_and_grey() -> None:
    found, drawn = looks(contest()), panel(contest())
    assert [name for name, style in found.items() if style.is_heavy] == ["fast"]
    assert [name.text for name in drawn.names if name.text.endswith("(auto)")] == ["fast (auto)"]
    assert [name for name, style in found.items() if style.dash != "solid"] == [BARE]
    assert found[BARE].symbol not in {style.symbol for name, style in found.items() if name != BARE}
    red, green, blue = (int(found[BARE].colour[i : i + 2], 16) for i in (1, 3, 5))
    assert max(red, green, blue) - min(red, green, blue) < 20
    first, *_, last = drawn.curves
    assert (first.series, first.style) == ("fast", found["fast"]), "thin lines are drawn over the thick one"
    assert last.series == BARE


def test_kernels_of_a_backbone_differ_in_colour_and_keep_it_in_every_panel() -> None:
    names = ["reference", *(f"k{i}" for i in range(7))]
    rows = [timed("mamba", name, K, 1, batching=policy) for name in names for policy in ("single", "constant_tokens")]
    rows = [each for each in rows if (each.kernel, each.metrics["batching"]) != ("k0", "single")]
    one, other = ({name.series: name.style for name in each.names} for each in shown(rows).values())
    assert len({style.colour for style in one.values()}) == len(names)
    assert one.items() > other.items()
    assert looks([timed("lstm", "reference", K, 1)])["reference"] == one["reference"]


def test_a_bare_call_that_never_ran_is_known_by_its_dot_or_by_another_row() -> None:
    study = Study([failed("a", "torch.f", K), failed("a", "plain", K), timed("b", "plain", K, 1, found={"is_bare": 1})])
    assert all(contenders.is_bare(study, group) for group in study.groups("kernels"))
    assert not contenders.is_bare(Study([failed("a", "plain", K)]), Group("a", "plain", 0, "constant_tokens"))


def test_failures_are_crosses_and_a_name_that_has_nothing_else_says_why() -> None:
    drawn = panel(contest())
    assert drawn.band
    marks = [(mark.series, mark.length, mark.text) for mark in drawn.marks]
    assert marks == [*(("never", n, "") for n in LENGTHS), ("slow", 16 * K, "oom")]
    assert {mark.style for mark in drawn.marks} == {looks(contest())[name] for name in ("never", "slow")}
    names = {name.series: name for name in drawn.names}
    assert names["never"].text == "never: unsupported"
    assert names["never"].y == drawn.marks[0].y
    assert names["slow"].text == "slow"
    assert names["slow"].y < drawn.band[0]


@pytest.mark.parametrize("n", [5, 25])
def test_names_stand_apart_inside_the_panel_and_below_the_failures(n: int) -> None:
    rows = [timed("mamba", f"k{i}", K, 1 + i / 1000) for i in range(n)] + [failed("mamba", "never", K)]
    drawn = panel(rows)
    assert drawn.band
    scale = Scale(*drawn.y_range, is_log=True)
    heights = sorted(scale.share(name.y) for name in drawn.names if name.series != "never")
    assert len(heights) == n
    assert min(b - a for a, b in pairwise(heights)) > min(panels.SLOPE_GAP, 0.8 / n) - 1e-9
    assert -1e-9 <= heights[0] < heights[-1] < scale.share(drawn.band[0])


def test_a_backbone_whose_contenders_all_failed_has_a_panel() -> None:
    drawn = panel([failed("mamba", "never", n) for n in LENGTHS])
    assert ([name.text for name in drawn.names], len(drawn.marks)) == (["never: oom"], 3)
    assert not any(curve.points for curve in drawn.curves)
    assert figures.draw([[drawn]], {}, "x")["png"].startswith(b"\x89PNG")


def test_plotly_draws_the_values_and_leaves_the_names_to_the_page() -> None:
    drawn = panel(contest())
    figure = go.Figure(plots.plot(drawn))  # raises on an attribute that Plotly does not know
    values = {trace.name: list(trace.y) for trace in figure.data if trace.mode == "lines+markers"}
    assert values["fast"] == [1.1, 2.2, 4.4]
    widths = {trace.name: trace.line.width for trace in figure.data if trace.mode == "lines+markers"}
    assert widths["fast"] > 1.5 * max(width for name, width in widths.items() if name != "fast")
    assert "(auto)" not in str(plots.plot(drawn))


def test_figures_have_names_and_are_the_same_bytes_every_time() -> None:
    (section,) = folder.sections(Study([*contest(), *contest("lstm")]))
    first, second = (figures.draw(section.rows, section.styles, section.x_label) for _ in range(2))
    assert first == second
    assert first["svg"].count(b"fast (auto)") == 2
    assert section.styles == {}


# Tables


def test_the_table_tells_times_of_the_fastest_and_of_the_bare_call() -> None:
    found = lines(kernel_table.numbers(Study(contest())))
    assert [(line["length"], line["kernel"]) for line in found[:4]] == [
        ("1,024", BARE),
        ("1,024", "fast"),
        ("1,024", "slow"),
        ("1,024", "never"),
    ]
    bare, fast, slow, never = found[:4]
    assert (
        fast.items()
        >= {
            "backbone": "mamba",
            "forward + backward ms": f"1.1 [1.08{units.DASH}1.12]",
            "forward ms": "0.367",
            "of fastest": "1.10x",
            "of bare call": "1.10x",
            "peak memory": "1 GiB",
            "role": "auto",
            "gate error": "2.0e-03",
            "step": "graph",
        }.items()
    )
    assert (bare["of fastest"], bare["of bare call"], bare["role"], bare["gate error"]) == (
        *("1.00x", "1.00x", "bare"),
        units.DASH,
    )
    assert (slow["of fastest"], slow["role"]) == ("3.00x", "")
    assert (never["forward + backward ms"], never["of fastest"]) == ("unsupported", units.DASH)
    assert "batching" not in bare


def test_comparisons_stay_within_one_policy_and_width() -> None:
    rows = [*curve("mamba", "fast", 8, auto=True), *curve("mamba", "fast", 1, batching="single", auto=True)]
    rows += curve("mamba", BARE, 2, batching="single")
    found = lines(kernel_table.numbers(Study(rows)))
    assert [(line["batching"], line["of fastest"], line["of bare call"]) for line in found] == [
        ("constant tokens per step", "1.00x", units.DASH),
        ("batch 1", "1.00x", "0.50x"),
        ("batch 1", "2.00x", "1.00x"),
    ]


def test_the_worst_gate_error_of_all_seeds_is_told() -> None:
    rows = [timed("mamba", "fast", K, 1, seed=s, found={"gate_error": e}) for s, e in enumerate((0.0, 0.03))]
    assert [line["gate error"] for line in lines(kernel_table.numbers(Study(rows)))] == ["3.0e-02"]
    assert [line["gate error"] for line in lines(kernel_table.numbers(Study(rows[:1])))] == ["0"]


def test_failures_name_the_kernel_and_no_task() -> None:
    other = dataclasses.replace(failed("lstm", "", K), kind="speed", kernel="")
    found = lines(tables.failures(Study([*contest(), other])))
    named = [(line["kind"], line["task"], line["backbone"], line["kernel"], line["length"]) for line in found]
    assert named == [
        *(("kernels", "", "mamba", "never", f"{n:,}") for n in LENGTHS),
        ("kernels", "", "mamba", "slow", "16,384"),
        ("speed", "some_task", "lstm", "", "1,024"),
    ]
    assert "kernel" not in lines(tables.failures(Study([other])))[0]


def test_a_backward_far_longer_than_its_forward_is_flagged() -> None:
    (odd,) = outliers.outliers(Study([timed("mamba", "fast", K, 80, found={"forward_ms": 10})]))
    assert (odd.kind, odd.reason) == ("kernels", "backward 7.0x its forward")


def test_a_time_off_its_line_is_flagged() -> None:
    rows = [timed("mamba", "fast", n, n * (4 if n == 4 * K else 1)) for n in LENGTHS]
    (odd,) = outliers.outliers(Study(rows))
    assert (odd.kind, odd.length) == ("kernels", 4 * K)
    flagged = [line["outlier"] for line in lines(kernel_table.numbers(Study(rows)))]
    assert flagged == [units.DASH, odd.reason, units.DASH]


# Sentences


def told(*curves: list[Row]) -> list[str]:
    return [text for text in picks.sentences(Study([row for rows in curves for row in rows])) if text]


def test_it_is_said_that_auto_is_right() -> None:
    right, distance = told(contest("lstm"), contest("mamba"))
    assert right == (
        "At every length kernel=auto picks the fastest of our kernels, or one level with it, for lstm and mamba "
        "(constant tokens per step, 1 seed)."
    )
    assert distance == (
        f"At 16,384 tokens and with kernel=auto, lstm is slower than {BARE} by 10 % and mamba is slower than {BARE} "
        "by 10 % (constant tokens per step, 1 seed)."
    )
    assert findings(Study([*contest("lstm"), *contest("mamba")]))[:2] == [right, distance]


def test_it_is_said_where_another_kernel_is_how_much_faster() -> None:
    rows = curve("a", "picked", 3, 4, 5, auto=True), curve("a", "x", 2, 3.9, 5), curve("a", "y", 2.5, 2.5, 9)
    assert told(*rows) == [
        "For a kernel=auto picks picked, which is not the fastest at 2 of 3 lengths: at 4,096 tokens y is 1.60x as "
        "fast (constant tokens per step, 1 seed)."
    ]


def test_it_is_said_where_what_auto_picks_has_no_result() -> None:
    picked = [*curve("a", "picked", 1, 1, auto=True), failed("a", "picked", 16 * K)]
    assert told(picked, curve("a", "x", 2, 2, 2)) == [
        "For a kernel=auto picks picked, which is not the fastest at 1 of 3 lengths: at 16,384 tokens it has no "
        "result and x has (constant tokens per step, 1 seed)."
    ]


@pytest.mark.parametrize(("other", "is_right"), [(0.96, True), (0.93, False)])
def test_what_is_level_is_no_loss(other: float, is_right: bool) -> None:
    (text,) = told(curve("a", "picked", 1, auto=True), curve("a", "x", other))
    assert text.startswith("At every length") == is_right


def test_right_under_one_policy_and_wrong_under_another() -> None:
    right = [curve("a", "p", 1, auto=True, batching="single"), curve("a", "x", 2, batching="single")]
    wrong = [curve("a", "p", 2, auto=True), curve("a", "x", 1)]
    first, second = told(*right, *wrong)
    assert first.endswith("for a (batch 1, 1 seed).")
    assert second.endswith("(constant tokens per step, 1 seed).")
    (both,) = told(*right, curve("a", "p", 1, auto=True), curve("a", "x", 2))
    assert both.endswith("for a (1 seed).")


def test_a_crowd_of_wrong_choices_is_counted() -> None:
    rows = [curve(name, "p", 2, auto=True) + curve(name, "x", 1 / place) for place, name in enumerate("abcde", start=1)]
    *three, rest = told(*rows)
    assert [text.split()[1] for text in three] == ["e", "d", "c"]
    assert rest.startswith("For 2 more, kernel=auto does not pick the fastest either")


def test_a_crowd_of_right_choices_is_counted_and_so_are_near_calls() -> None:
    right, distance = told(*(contest(name) for name in "abcdefg"), curve("z", "p", 5, auto=True), curve("z", BARE, 1))
    assert "for 7 of 7 comparisons (" in right
    assert distance.startswith("With kernel=auto, a is slower")
    assert f"z takes 5.00x as long as {BARE} at 1,024 tokens" in distance
    assert distance.endswith("; 4 more are in the table of kernels.")


def test_of_two_policies_the_one_that_was_followed_further_is_told() -> None:
    short = [curve("a", "p", 2, auto=True), curve("a", BARE, 1)]
    long = [curve("a", name, 1, 1, batching="single", auto=name == "p") for name in ("p", BARE)]
    (text,) = told(*short, *long)
    assert text == f"At 4,096 tokens and with kernel=auto, a is within 1 % of {BARE} (batch 1, 1 seed)."
    (text,) = told(*short, *(rows[:1] for rows in long))
    assert text.endswith("(constant tokens per step, 1 seed).")


@pytest.mark.parametrize(
    ("ms", "expected"),
    [
        (1.03, f"a is within 3 % of {BARE}"),
        (0.999, f"a is within 1 % of {BARE}"),
        (1.12, f"a is slower than {BARE} by 12 %"),
        (0.8, f"a is faster than {BARE} by 25 %"),
        (2.5, f"a takes 2.50x as long as {BARE}"),
        (0.25, f"a is 4.00x as fast as {BARE}"),
    ],
)
def test_how_far_auto_is_from_the_bare_call_at_the_longest_length_of_both(ms: float, expected: str) -> None:
    rows = curve("a", "p", 9, ms, 5, auto=True), curve("a", BARE, 1, 1), curve("a", "other.Layer", 1, 1.5)
    assert told(*rows) == [f"At 4,096 tokens and with kernel=auto, {expected} (constant tokens per step, 1 seed)."]


def test_a_graph_is_not_compared_with_eager_calls_in_silence() -> None:
    rows = curve("a", "p", 1, auto=True), curve("a", BARE, 1, found={"step": "eager"})
    assert f"a is within 1 % of {BARE} (graph against eager)" in told(*rows)[0]


def test_lengths_that_differ_are_told_one_by_one() -> None:
    (text,) = told(*(curve(b, "p", *[1] * n, auto=True) + curve(b, BARE, *[1] * n) for b, n in (("a", 1), ("b", 2))))
    assert text == (
        f"With kernel=auto, a is within 1 % of {BARE} at 1,024 tokens and b is within 1 % of {BARE} at 4,096 tokens "
        "(constant tokens per step, 1 seed)."
    )


def test_without_a_choice_or_a_comparison_nothing_is_said() -> None:
    assert told(curve("a", "p", 1), curve("a", "x", 2)) == []
    assert told(curve("a", "p", 1, auto=True)) == []
    assert told() == []


def test_the_example_of_a_missing_result_names_kernel_and_backbone() -> None:
    *_, missing = findings(Study([timed("mamba", "fast", K, 1), failed("mamba", "slow", K)]))
    assert missing == (
        "1 of 2 rows have no result, slow of mamba at 1,024 tokens (kernels: oom) for one; each is listed below."
    )


# Terminal


def test_the_summary_has_a_line_per_contender_at_its_longest_length() -> None:
    text = summary(contest("local_attention", config={"d_model": 1024}) + contest("mamba"))
    assert max(map(len, text.splitlines())) <= 120
    of_mamba = text[text.index("mamba, constant") :].splitlines()
    assert [line.split() for line in of_mamba[1:]] == [
        [BARE, "(bare)", "16k", "4", "1", "GiB", "1.00x", "1.00x"],
        ["fast", "(auto)", "16k", "4.4", "1", "GiB", "1.10x", "1.10x"],
        ["slow", "4k", "6", "1", "GiB", "3.00x", "3.00x", "oom", "at", "16k"],
        ["never", "unsupported", "at", "1k", "to", "16k"],
    ]
    bare = [timed("mamba", "fast", K, 1, found={"peak_mem_bytes": None})]
    assert "peak memory" not in summary(bare)


# Together with other kinds


def test_other_kinds_are_named_drawn_and_counted_as_without_kernels() -> None:
    rows = [speed("mamba"), speed("fast")]
    alone, both = Study(rows), Study([*rows, *contest()])
    assert both.labels.series == alone.labels.series == ["fast", "mamba"]
    assert both.facets("speed") == alone.facets("speed")
    assert both.facets("kernels") == [Facet("mamba", "constant_tokens")]
    assert panels.costs(both, "speed") == panels.costs(alone, "speed")
    assert lines(cost_tables.training(both)) == lines(cost_tables.training(alone))
    assert cost_tables.scaling(both) is None
    assert folder._styles(both, panels.kernels(both)) == {}, "a contender may be called like a backbone"
    facts = dict(provenance(both))
    assert facts["rows"] == "14 (12 kernels, 2 speed)"
    assert facts["kernels"] == "fast: given, mamba: given", "contenders have a table of their own"


def test_a_report_of_kernels_alone_is_whole(tmp_path: Path) -> None:
    page = build([*contest("lstm"), *contest("mamba")], tmp_path, "kernels").read_text()
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"report.html", "report.md", "rows.csv", "figures/kernels.png", "figures/kernels.svg"}
    assert page.count('<div class="legend">') == 2, "each panel explains its own lines"
    assert '<div class="legend top">' not in page
    assert page.count('data-series="fast"') == 2
    assert page.count("<b>fast (auto)</b>") == 2
    assert 'button.closest("figure, section")' in page, "a button of one panel leaves the others alone"
    text = (tmp_path / "report.md").read_text()
    for expected in ("## Kernels\n", "## Kernels in numbers", "## Without a result", "no \\| room", "kernel=auto"):
        assert expected in text
    assert (tmp_path / "rows.csv").read_text().count("\n") == 1 + 24


def test_the_figure_goes_when_its_rows_do_and_stands_beside_the_others(tmp_path: Path) -> None:
    page = build([*contest(), speed("mamba")], tmp_path, "both").read_text()
    drawn = tmp_path / "figures"
    assert {path.name for path in drawn.iterdir()} == {
        f"{s}.{e}" for s in ("kernels", "training") for e in ("png", "svg")
    }
    assert page.count('<div class="legend top">') == 1
    build([speed("mamba")], tmp_path, "speed alone")
    assert {path.stem for path in drawn.iterdir()} == {"training"}


@pytest.mark.parametrize(("factor", "expected"), [(1, "1.00x"), (0.997, "1.00x"), (9.99, "9.99x"), (118.4, "118x")])
def test_factors_read_well(factor: float, expected: str) -> None:
    assert units.times(factor) == expected
