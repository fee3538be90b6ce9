"""What a sweep has to do, by what is on disk."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from cells import cell, row

from arch_bench import results
from arch_bench.cell import match
from arch_bench.cell.run import final
from arch_bench.cell.shape import row_path
from arch_bench.config.schema import Cell, cell_of, compose
from arch_bench.sweep.plan import Plan, duration, plan


def put(one: Cell, kind: str = "quality", **outcome: object) -> Path:
    """A row of it on disk."""
    path = row_path(final(one)[0], kind, one.seq_len)  # type: ignore[arg-type]
    results.save(row(one, kind, **outcome), path)  # type: ignore[arg-type]
    return path


def counts(found: Plan) -> tuple[int, int, int]:
    return len(found.done), len(found.failed), len(found.missing)


def test_cells_are_done_failed_or_missing(tmp_path: Path) -> None:
    cells = [cell(tmp_path, seed=i) for i in range(8)]
    for one, status in zip(cells, ("ok", "oom", "unsupported", "diverged", "timeout", "crashed"), strict=False):
        put(one, status=status)
    put(cells[6]).write_text('{"experiment": "adh')
    found = plan(cells, [])
    assert (found.done, found.failed, found.missing) == (cells[:4], cells[4:6], cells[6:])
    assert found.text() == "8 cells, 4 done, 2 failed before, 4 to run"


def test_a_cell_is_done_when_all_of_it_is(tmp_path: Path) -> None:
    one = cell(tmp_path, phases=["decode", "quality"])
    put(one)
    assert counts(plan([one], [])) == (0, 0, 1)
    put(one, "decode", status="crashed")
    assert counts(plan([one], [])) == (0, 1, 0)
    put(one, "decode")
    assert counts(plan([one], [])) == (1, 0, 0)
    assert counts(plan([one.model_copy(update={"eval_scales": [1, 2]})], [])) == (0, 0, 1)
    assert counts(plan([one.model_copy(update={"rerun": True})], [])) == (0, 0, 1)


def test_what_only_comes_out_as_it_runs_is_never_done(tmp_path: Path) -> None:
    one = cell(tmp_path, phases=["speed"])
    put(one, "speed")
    assert counts(plan([one], [])) == (1, 0, 0)
    search = one.speed.model_copy(update={"search_max_len": True})
    assert counts(plan([one.model_copy(update={"speed": search})], [])) == (0, 0, 1)
    assert counts(plan([one.model_copy(update={"phases": ["kernels"]})], [])) == (0, 0, 1)


def test_cells_that_cannot_be_are_missing_and_mistakes_are_told_with_the_plan(tmp_path: Path) -> None:
    mistaken = cell(tmp_path, match=cell(tmp_path).match.model_copy(update={"params": 1}))
    foreign = mistaken.model_copy(update={"backbone": {"_target_": "collections.OrderedDict"}})
    buggy = cell(tmp_path, backbone={"_target_": "test_launchers.Broken", "d_model": 16})
    found = plan([mistaken, foreign, buggy, cell(tmp_path)], [])
    assert counts(found) == (0, 0, 4)
    told, other = found.mistakes
    assert told.startswith("match.params=1: transformer comes no closer than")
    assert other == "backbone._target_=collections.OrderedDict: needs a class derived from arch_bench.backbone.Backbone"


def test_what_a_task_or_a_backbone_refuses_is_told_with_the_plan_and_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(tmp_path)
    long = one.model_copy(update={"task": one.task | {"n_pairs": 5}})
    odd = one.model_copy(update={"backbone": one.backbone | {"mixer": one.backbone["mixer"] | {"n_heads": 3}}})
    assert plan([one, long, odd, cell(tmp_path, seed=1)], []).mistakes == [
        "task=mqar: seq_len=16 is too short for task.n_pairs=5: needs seq_len >= 4 * n_pairs = 20",
        "backbone=transformer: backbone.mixer.n_heads=3 must divide d_model=16",
    ]
    monkeypatch.setattr("arch_bench.sweep.plan.made", None)
    assert not plan([cell(tmp_path, seed=2), cell(tmp_path, lr=0.5)], []).mistakes
    put(long)
    assert not plan([long], []).mistakes, "what is done is not asked"


@pytest.mark.parametrize("backbone", ["lstm", "encoder_decoder"])
def test_a_plan_reads_no_corpus_and_knows_what_is_wrong_with_its_dials(tmp_path: Path, backbone: str) -> None:
    overrides = ["task=text", "task.path=/no/such/corpus", f"backbone={backbone}", "logger=none", "device=cpu"]
    text = cell_of(compose([*overrides, f"results_dir={tmp_path}"]))
    assert not plan([text], []).mistakes
    mistaken = text.model_copy(update={"task": text.task | {"tokenizer": "bpe", "bpe_vocab_size": 9}})
    (told,) = plan([mistaken], []).mistakes
    assert "task.bpe_vocab_size=9 is too small" in told


def test_time_is_estimated_by_cells_like_it(tmp_path: Path) -> None:
    known, other = cell(tmp_path), cell(tmp_path, d_model=32)
    history = [
        row(known.model_copy(update={"seed": i}), "quality", wall_s=wall_s) for i, wall_s in ((5, 1e3), (6, 4e3))
    ]
    cells = [known.model_copy(update={"seed": i, "eval_scales": [1, 2]}) for i in range(3)]
    assert plan(cells, []).seconds is None
    assert plan([other], history).seconds is None
    assert plan(cells, history).text() == "3 cells, 0 done, 3 to run, about 4.2 h of computing"
    assert plan([*cells, other], history).seconds == 4 * 5e3, "the unknown as the known on average"
    assert [duration(s) for s in (7.4, 600, 5399, 36_000)] == ["7 s", "10 min", "90 min", "10.0 h"]


def test_a_training_in_several_attempts_counts_whole(tmp_path: Path) -> None:
    long = cell(tmp_path, eval_scales=[1, 2])
    last = row(long, "quality", wall_s=100.0)  # of two rows, each with half of its process
    history = [dataclasses.replace(last, metrics={"train_s": 7200.0, "n_attempts": 3})]
    assert plan([long], history).seconds == 7200
    assert plan([long], [dataclasses.replace(last, metrics={"train_s": 150.0, "n_attempts": 1})]).seconds == 200
    scan = row(long, "scan", wall_s=100.0)
    once = long.model_copy(update={"phases": ["scan"]})
    assert plan([once], [dataclasses.replace(scan, metrics={"train_s": 7200.0})]).seconds == 7200


def test_a_width_is_solved_once_for_all_seeds_and_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = cell(tmp_path)
    budget = base.match.model_copy(update={"params": 22_000})
    monkeypatch.setattr(match, "_WIDTHS", {})
    first, n_params = final(base.model_copy(update={"match": budget}))
    assert first.d_model > 16
    monkeypatch.setattr(match, "_Counter", None)
    for again in (base, base.model_copy(update={"seed": 3}), cell(tmp_path, lr=0.5)):
        found = final(again.model_copy(update={"match": budget}))
        assert (found[0].d_model, found[0].backbone["d_model"], found[1]) == (first.d_model, first.d_model, n_params)


ABORTING = """\
import os
import time
from arch_bench.backbone import Backbone
class Aborts(Backbone):
    def __init__(self, *, d_model: int, vocab_size: int) -> None:
        os.abort()
"""


@pytest.mark.parametrize(
    ("params", "end"),
    [(None, "os.abort()"), (10_000, "os.abort()"), (None, "raise KeyboardInterrupt"), (9, "os._exit(0)")],
)
def test_a_constructor_that_aborts_ends_no_plan(
    params: int | None, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "aborting.py").write_text(ABORTING.replace("os.abort()", end))
    monkeypatch.setattr("arch_bench.sweep.plan._KNOWN", {})  # else the answers are those of the end before
    one = cell(tmp_path, isolate=True)
    match = one.match.model_copy(update={"params": params})
    dead = cell(tmp_path, backbone={"_target_": "aborting.Aborts", "d_model": 16}, match=match, isolate=True)
    odd = cell(tmp_path, backbone=one.backbone | {"mlp_ratio": 0}, isolate=True)
    found = plan([dead, one, odd], [])
    assert found.missing == [dead, one, odd]
    assert [each.partition(" leaves")[0] for each in found.mistakes] == ["backbone=transformer: backbone.mlp_ratio=0"]
