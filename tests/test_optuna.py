"""A search by Optuna: what it tries, what it makes of the rows, and that it goes on where it stopped."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Timer
from time import sleep
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileOpenLock
from optuna.trial import TrialState

from arch_bench import report, results
from arch_bench.cell import run
from arch_bench.cell.claim import claimed
from arch_bench.cell.shape import Shape, row_path
from arch_bench.config.schema import Cell, ConfigError, Trial, cell_of, compose
from arch_bench.report import learning_rates, search_table, tables
from arch_bench.report.study import Study
from arch_bench.results import Row, Status
from arch_bench.sweep.protocols import Round
from arch_bench.sweep.search import Optuna
from arch_bench.train import journal

RATES = {"optim.lr": [1e-4, 0.1, "log"]}
Objective = Callable[[Cell], float | Status]


def protocol(space: dict[str, Any] = RATES, **changes: Any) -> Optuna:
    options: dict[str, Any] = {"n_trials": 5, "n_at_once": 1, "sampler": "tpe", "n_random": 3, "pruner": "median"}
    options |= {"prune_from_trial": 2, "prune_from": 0.25, "first_scan_seed": 1000, "match": False, "dry_run": False}
    return Optuna(space=space, **options | changes)


def cells(folder: Path, *overrides: str, seeds: Sequence[int] = (0,)) -> list[Cell]:
    fixed = ["backbone=lstm", f"results_dir={folder}", "logger=none", "phases=[quality]", *overrides]
    return [cell_of(compose([*fixed, f"seed={seed}"])) for seed in seeds]


def bowl(cell: Cell) -> float:
    return (math.log10(cell.optim.lr) + 2) ** 2 + 0.1 * cell.n_layers


def row(cell: Cell, outcome: float | Status) -> Row:
    kind = "scan" if cell.trial else "quality"
    status: Status = outcome if isinstance(outcome, str) else "ok"
    found = Row(
        experiment=cell.name,
        backbone=cell.backbone_name,
        task=cell.task_name,
        seq_len=cell.seq_len,
        train_seq_len=cell.seq_len,
        seed=cell.seed,
        kernel="reference",
        precision="fp32",
        key=results.cell_key(cell.model_dump()),
        kind=kind,  # type: ignore[arg-type]
        status=status,
        reason="" if status == "ok" else "for a reason",
        metrics={"val_loss_nats": outcome, "token_accuracy": 0.5} if isinstance(outcome, float) else {},
        config=cell.model_dump(),
        chosen=cell.chosen,
    )
    results.save(found, row_path(cell, found.kind, cell.seq_len))
    return found


def drive(searching: Optuna, given: list[Cell], objective: Objective = bowl, n_rounds: int = 99) -> list[Round]:
    """The rounds of a protocol whose cells are answered by a function; of so many, the last has no answer."""
    rounds, found = searching.rounds(given), []
    try:
        found.append(next(rounds))
        while len(found) < n_rounds:
            found.append(rounds.send([(cell, [row(cell, objective(cell))]) for cell in found[-1].cells]))
    except StopIteration:
        pass
    return found


def tried(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    return [cell.trial.values for round_ in rounds for cell in round_.cells if cell.trial]


def study_of(folder: Path) -> optuna.Study:
    (path,) = (folder / "optuna").glob("*.log")
    return journal.study(path)


def test_every_seed_is_run_at_the_best_values(tmp_path: Path) -> None:
    *rounds, last = drive(protocol(), cells(tmp_path, seeds=(3, 4)))
    assert [len(round_.cells) for round_ in rounds] == [1] * 5
    assert [round_.n_later for round_ in rounds] == [6, 5, 4, 3, 2]
    assert tried(rounds)[0] == {"optim.lr": 1e-3}, "what the sweep gives comes first"
    assert {(cell.seed, *cell.phases) for round_ in rounds for cell in round_.cells} == {(1000, "scan")}
    rates = [values["optim.lr"] for values in tried(rounds)]
    assert all(1e-4 <= rate <= 0.1 and rate == float(f"{rate:.3g}") for rate in rates)
    assert len(set(rates)) == 5
    best = min(rates, key=lambda rate: abs(math.log10(rate) + 2))
    assert [(cell.seed, cell.optim.lr, cell.phases, cell.trial) for cell in last.cells] == [
        (seed, best, ["quality"], None) for seed in (3, 4)
    ]
    loss = f"validation loss {(math.log10(best) + 2) ** 2 + 0.2:.4g}"
    assert last.cells[0].chosen == f"optim.lr={best:g}: {loss}, the lowest of 5 trials at seed 1000"


def test_what_follows_from_a_searched_dial_follows_in_a_trial(tmp_path: Path) -> None:
    rounds = drive(protocol({"d_model": [16, 32]}, n_trials=3), cells(tmp_path))
    found = {cell.d_model: cell.backbone["d_model"] for round_ in rounds[:-1] for cell in round_.cells}
    assert found == {16: 16, 32: 32}


def test_an_interrupted_search_goes_on_as_it_would_have(tmp_path: Path) -> None:
    whole = tried(drive(protocol(n_trials=4), cells(tmp_path / "whole")))
    drive(protocol(n_trials=2), cells(tmp_path / "parts"), n_rounds=2)
    rounds = drive(protocol(n_trials=4), cells(tmp_path / "parts"))
    assert whole == tried(rounds)
    assert [(len(round_.cells), round_.n_later) for round_ in rounds[:-1]] == [(2, 3), (1, 2), (1, 1)]


def test_what_became_of_trials_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endings: Iterator[float | Status] = iter([2.0, "pruned", "diverged", "crashed", 1.0])
    speed = cells(tmp_path, "phases=[speed]")
    (*_, last) = drive(protocol(), [*cells(tmp_path), *speed], lambda cell: next(endings) if cell.trial else 3.0)
    trials = study_of(tmp_path).trials
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.RUNNING, TrialState.COMPLETE]
    assert [trial.state for trial in trials] == states
    assert [trial.value for trial in trials] == [2.0, None, None, None, 1.0]
    assert last.cells == speed, "the trial that crashed might be the best"
    told = capsys.readouterr().err
    assert told == "lstm on mqar, seq_len 64: no values are chosen while a trial has no result\n"
    fates: list[float | Status] = [2.0, "pruned", "diverged", 0.5, 1.0]
    first, last = drive(protocol(), cells(tmp_path), lambda cell: fates[cell.trial.number] if cell.trial else 3.0)
    assert len(first.cells) == 5, "the rows say which of them to run again"
    assert "validation loss 0.5, the lowest of 5 trials (1 given up) at seed 1000" in last.cells[0].chosen
    assert study_of(tmp_path).trials[3].state == TrialState.COMPLETE


def test_a_trial_that_cannot_be_run_is_not_counted_and_given_out_once(tmp_path: Path) -> None:
    rounds = protocol().rounds(cells(tmp_path))
    found, answers = [next(rounds)], []
    with suppress(StopIteration):
        while True:
            is_refused = len(found) == 2
            answers = [(cell, [] if is_refused else [row(cell, bowl(cell))]) for cell in found[-1].cells]
            found.append(rounds.send(answers))
    assert len(found) == 6
    assert "the lowest of 4 trials at seed 1000" in found[-1].cells[0].chosen


def answered(round_: Round) -> list[tuple[Cell, list[Row]]]:
    return [(cell, [row(cell, bowl(cell))]) for cell in round_.cells]


@pytest.mark.parametrize("n_at_once", [1, 2])
def test_two_sweeps_at_once_make_one_search(tmp_path: Path, n_at_once: int) -> None:
    searching = protocol(n_trials=4, n_at_once=n_at_once)
    alone = drive(searching, cells(tmp_path / "alone"))
    both = [searching.rounds(cells(tmp_path / "both")) for _ in range(2)]
    found = [[next(one)] for one in both]
    for _ in alone[1:]:
        for one, rounds in zip(both, found, strict=True):
            rounds.append(one.send(answered(rounds[-1])))
    for rounds in found:
        assert tried(rounds) == tried(alone)
        assert rounds[-1].cells[0].chosen == alone[-1].cells[0].chosen != ""
    assert [trial.state for trial in study_of(tmp_path / "both").trials] == [TrialState.COMPLETE] * 4
    assert not list((tmp_path / "both" / "claims").iterdir())


def test_a_sweep_that_is_behind_takes_up_what_the_other_has_proposed(tmp_path: Path) -> None:
    ahead, behind = (protocol(n_trials=4).rounds(cells(tmp_path)) for _ in range(2))
    begun, same = next(ahead), next(behind)
    rounds = [begun]
    for _ in range(3):
        rounds.append(ahead.send(answered(rounds[-1])))
    rest = behind.send(answered(same))
    assert tried([same, rest]) == tried(rounds)
    assert ahead.send(answered(rounds[-1])).cells == behind.send(answered(rest)).cells


def test_one_sweep_proposes_at_a_time(tmp_path: Path) -> None:
    rounds = protocol().rounds(cells(tmp_path))
    first = next(rounds)
    (path,) = (tmp_path / "optuna").glob("*.log")
    begun = Event()

    def propose() -> None:
        with claimed(journal.claim_of(path)):
            begun.set()
            sleep(0.3)
            journal.study(path).ask({"optim.lr": optuna.distributions.FloatDistribution(1e-4, 0.1, log=True)})

    with ThreadPoolExecutor() as threads:
        other = threads.submit(propose)
        assert begun.wait(60)
        second = rounds.send(answered(first))
        other.result()
    assert [cell.trial.number for cell in second.cells if cell.trial] == [1]
    assert len(study_of(tmp_path).trials) == 2, "it waited, and proposed nothing itself"


def test_a_search_without_a_success_ends_at_the_given_values(tmp_path: Path) -> None:
    (*_, last) = drive(protocol(n_trials=2), cells(tmp_path, "optim.lr=0.02"), lambda _: "diverged")
    (cell,) = last.cells
    assert cell.optim.lr == 0.02
    assert cell.chosen == "optim.lr=0.02: none of 2 trials could be trained"


def test_nothing_is_tried_twice(tmp_path: Path) -> None:
    rounds = drive(protocol({"backbone.d_conv": [0, 4]}, n_trials=8, n_at_once=3), cells(tmp_path), lambda _: 1.0)
    values = [values["backbone.d_conv"] for values in tried(rounds)]
    assert sorted(values) == [0, 4]
    assert [trial.state for trial in study_of(tmp_path).trials] == [TrialState.COMPLETE] * 8


def test_each_contender_has_a_search_and_what_the_grid_tries_comes_first(tmp_path: Path) -> None:
    given = [
        cell
        for n_layers, rate, seeds in ((1, "1e-3", (0, 1)), (1, "2e-3", (0,)), (2, "1e-3", (0,)))
        for cell in cells(tmp_path, f"n_layers={n_layers}", f"optim.lr={rate}", seeds=seeds)
    ]
    speed = cells(tmp_path, "phases=[speed]")
    *rounds, last = drive(protocol(n_at_once=2, n_trials=2), [*given, *speed])
    first = [(cell.n_layers, cell.optim.lr) for cell in rounds[0].cells]
    assert first[:3] == [(1, 1e-3), (1, 2e-3), (2, 1e-3)]
    assert len(list((tmp_path / "optuna").glob("*.log"))) == 2
    assert [(len(round_.cells), round_.n_later) for round_ in rounds] == [(4, 3)]
    assert last.cells[0] == speed[0], "what trains nothing is as it is given"
    assert [(cell.n_layers, cell.seed) for cell in last.cells[1:]] == [(1, 0), (1, 1), (2, 0)]


def test_a_budget_holds_in_every_trial(tmp_path: Path) -> None:
    small = ["n_layers=1", "d_model=16", "task.vocab_size=64"]
    given = [*cells(tmp_path, *small), *cells(tmp_path, *small, "phases=[speed]")]
    rounds = drive(protocol({"backbone.d_conv": [0, 4]}, match=True, n_trials=2), given)
    budgets = {cell.match.params for round_ in rounds for cell in round_.cells}
    assert len(budgets) == 1
    assert None not in budgets
    with pytest.raises(ConfigError, match=r"^protocol.space: d_model is what match.params=5000 chooses$"):
        drive(protocol({"d_model": [16, 32]}), cells(tmp_path, "match.params=5000"))


def test_a_dry_run_leaves_no_trace_and_a_rerun_begins_anew(tmp_path: Path) -> None:
    (planned,) = drive(protocol(dry_run=True), cells(tmp_path), n_rounds=1)
    assert not (tmp_path / "optuna").exists()
    drive(protocol(n_trials=2), cells(tmp_path), n_rounds=2)
    assert tried([planned]) == [{"optim.lr": 1e-3}]
    (planned,) = drive(protocol(dry_run=True), cells(tmp_path), n_rounds=1)
    assert len(planned.cells) == len(study_of(tmp_path).trials) == 2
    (planned,) = drive(protocol(dry_run=True), cells(tmp_path, "rerun=true"), n_rounds=1)
    assert len(planned.cells) == 1
    assert len(study_of(tmp_path).trials) == 2
    (first,) = drive(protocol(), cells(tmp_path, "rerun=true"), n_rounds=1)
    assert len(first.cells) == len(study_of(tmp_path).trials) == 1


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"backbone.mixer": [1, 2]}, "backbone.mixer is a group of dials"),
        ({"optim.schedule": ["cosine", "step"]}, "optim.schedule=step: input should be 'cosine'"),
        ({"trainer.batch_size": [0, 64]}, "trainer.batch_size=0: input should be greater"),
    ],
)
def test_what_a_dial_does_not_take_shows_before_anything_is_run(
    tmp_path: Path, space: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        next(protocol(space).rounds(cells(tmp_path)))
    assert not (tmp_path / "optuna").exists()


def test_a_torn_line_is_cut_off_and_a_foreign_file_is_named(tmp_path: Path) -> None:
    drive(protocol(), cells(tmp_path), n_rounds=2)
    (path,) = (tmp_path / "optuna").glob("*.log")
    whole = path.read_text()
    path.write_text(whole + '{"op_code":4,"wor')
    (first,) = drive(protocol(), cells(tmp_path), n_rounds=1)
    assert len(first.cells) == 2
    assert path.read_text() == whole
    path.write_text("not a journal\nat all\n")
    with pytest.raises(ConfigError, match=r"no journal of a search .* move it away, rows are kept"):
        next(protocol().rounds(cells(tmp_path)))


def test_a_line_that_is_just_being_written_is_left_alone(tmp_path: Path) -> None:
    drive(protocol(), cells(tmp_path), n_rounds=2)
    (path,) = (tmp_path / "optuna").glob("*.log")
    whole = path.read_text()
    path.write_text(whole[:-9])
    lock = JournalFileOpenLock(str(path))
    lock.acquire()

    def write_on() -> None:
        with path.open("a") as file:
            file.write(whole[-9:])
        lock.release()

    Timer(0.3, write_on).start()
    journal.begin(path, anew=False)
    assert path.read_text() == whole


def test_without_optuna_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"^protocol=optuna: .*; pip install 'arch-bench\[sweep\]'$"):
        drive(protocol(), cells(tmp_path))


def a_trial(cell: Cell, number: int, study: str = "search") -> Cell:
    of = {"values": {"optim.lr": cell.optim.lr}, "prune_from_trial": 2, "prune_from_step": 10}
    trial = Trial.model_validate({"study": study, "number": number, **of})
    return cell.model_copy(update={"trial": trial, "phases": ["scan"]})


def test_what_one_search_gave_up_is_no_answer_to_anybody_else(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path)
    scan, mine, other = (
        cell.model_copy(update={"phases": ["scan"]}),
        a_trial(cell, 0),
        a_trial(cell, 0, study="another"),
    )
    assert len({results.cell_key(each.model_dump()) for each in (scan, mine, other)}) == 1
    row(mine, "pruned")
    assert [run.is_done(each) for each in (scan, mine, other)] == [False, True, False]
    row(mine, 1.0)
    assert [run.is_done(each) for each in (scan, mine, other)] == [True, True, True]
    assert Shape("scan", [cell.seq_len]).paths(mine)[0].exists()


def test_a_report_shows_the_best_trials_and_no_failures(tmp_path: Path) -> None:
    given = [cell for n_layers in (1, 2) for cell in cells(tmp_path, f"n_layers={n_layers}")]

    def objective(cell: Cell) -> float | Status:
        return "pruned" if cell.trial and cell.trial.number == 1 else bowl(cell)

    drive(protocol({**RATES, "backbone.d_conv": [0, 4]}, n_trials=3), given, objective)
    rows = results.load([tmp_path])
    study = Study(rows)
    assert [group.series for group in study.groups("quality")] == ["lstm n_layers=1", "lstm n_layers=2"]
    table = search_table.numbers(study)
    assert table is not None
    assert len(table.rows) == 6
    assert table.columns[-5:] == ["backbone.d_conv", "optim.lr", "loss", "validation", "status"]
    of_first = [[cell.text for cell in line] for line in table.rows if line[1].text == "lstm n_layers=1"]
    assert {line[3] for line in of_first} == {"3 (2 ok, 1 pruned)"}
    assert [line[-1] for line in of_first] == ["ok", "ok", "pruned"]
    assert tables.failures(study) is None
    assert learning_rates.numbers(study) is None
    best = search_table.searches(study)[0].best
    assert best is not None
    assert f"optim.lr={best[0].config['optim']['lr']:g}" in report.summary(rows)
    page = report.build(rows, tmp_path / "report", "a search")
    assert "pruned" in page.read_text()
    assert len((tmp_path / "report" / "rows.csv").read_text().splitlines()) == 1 + len(rows)


def test_trials_alone_make_a_report(tmp_path: Path) -> None:
    drive(protocol(), cells(tmp_path), n_rounds=2)
    rows = [each for each in results.load([tmp_path]) if each.kind == "scan"]
    assert "lstm" in report.summary(rows)
    assert "## Searches" in report.build(rows, tmp_path / "report", "begun").with_name("report.md").read_text()


TINY = [
    *("logger=none", "seq_len=16", "d_model=16", "n_layers=1", "task.n_pairs=2", "task.vocab_size=64"),
    *("eval_scales=[1]", "phases=[quality]", "trainer.max_steps=60", "trainer.batch_size=16", "trainer.val_every=10"),
]


@pytest.mark.slow
def test_a_search_from_the_command_line(tmp_path: Path) -> None:
    def search(n_trials: int) -> subprocess.CompletedProcess[str]:
        space = "protocol.space={optim.lr:[1e-5,1e-1,log],backbone.d_conv:[0,4]}"
        few = ["protocol.sampler=random", "protocol.prune_from_trial=2", "protocol.prune_from=0.1"]
        args = ["-m", *TINY, "backbone=lstm", "seed=0,1", "protocol=optuna", f"protocol.n_trials={n_trials}"]
        return subprocess.run(
            [sys.executable, "-m", "arch_bench", *args, *few, space],
            cwd=tmp_path,
            env=os.environ | {"ARCH_BENCH_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    done = search(4)
    assert done.returncode == 0, done.stderr
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "rows").iterdir()}
    done = search(8)
    assert done.returncode == 0, done.stderr
    assert "search, by validation: 4 cells, 4 done, 0 to run; then 6 more" in done.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "nothing is measured twice"
    rows = results.load([tmp_path / "results"])
    scans = [each for each in rows if each.kind == "scan"]
    assert len(scans) == 8
    assert {each.status for each in scans} == {"ok", "pruned"}
    given_up = next(each for each in scans if each.status == "pruned")
    assert "the median of" in given_up.reason
    losses = {json.dumps(each.config["trial"]["values"]): each.metrics.get("val_loss_nats", math.inf) for each in scans}
    best = json.loads(min(losses, key=lambda values: losses[values]))  # type: ignore[arg-type,return-value]
    tested = [each for each in rows if each.kind == "quality" and "of 8 trials" in each.chosen]
    assert sorted(each.seed for each in tested) == [0, 1]
    assert {(each.config["optim"]["lr"], each.config["backbone"]["d_conv"]) for each in tested} == {
        (best["optim.lr"], best["backbone.d_conv"])
    }
    (log,) = (tmp_path / "results" / "optuna").iterdir()
    assert len(journal.study(log).trials) == 8
    assert "searches" in done.stdout
    assert "## Searches" in (tmp_path / "results" / "adhoc" / "report.md").read_text()
