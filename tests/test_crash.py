"""No sweep can be lost: killed at random moments and started again, it ends with the rows of an undisturbed one."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from arch_bench import results

N_KILLS = int(os.environ.get("ARCH_BENCH_KILLS", "25"))
"""`make nightly` takes fewer."""
TINY = [
    *("logger=none", "device=cpu", "d_model=16", "n_layers=1", "eval_scales=[1,2]", "task.n_pairs=2"),
    *("task.vocab_size=64", "trainer.max_steps=200", "trainer.batch_size=4", "trainer.val_every=50"),
    *("trainer.n_val_batches=1", "trainer.n_test_batches=1", "speed.lengths=[16]", "speed.tokens_per_step=64"),
    *("speed.n_steps=3", "speed.max_seconds=0.1", "decode.lengths=[16]", "decode.n_tokens=4"),
    "checkpoint_every_s=0.05",
]
GRID = ["phases=[decode,quality]", "backbone=lstm,transformer", "seq_len=16,32", "optim.lr=1e-3,1e-2", "seed=0,1,2"]
N_CELLS = 24
LAUNCHERS = {"basic": [], "joblib": ["launcher=joblib", "launcher.pack=2"]}

VARIES = {"created_at", "wall_s", "process_bytes", "commit", "commit_why", "dirty"}
"""Fields of a row: times, memory of a process, and the state of the checkout."""
MEASURED = re.compile(
    r"_s$|_ms(_|$)|_per_s(_|$)|ms_per_token|_share$|tflops$|mfu|^n_(attempts|warmup)$|peak_mem_bytes|^threads$|^load_average$|^busy_cores$"
)
"""Metrics that no two undisturbed runs share either."""


def contents(folder: Path) -> dict[str, Any]:
    """All that rows say, by file, but for what was measured by a clock."""
    found = {}
    for path in sorted((folder / "rows").glob("*.json")):
        row = results.read(path)
        fields = {name: value for name, value in vars(row).items() if name not in VARIES}
        fields["metrics"] = {name: None if MEASURED.search(name) else value for name, value in row.metrics.items()}
        fields["config"] = {name: value for name, value in row.config.items() if name != "results_dir"}
        found[path.name] = fields
    return found


class Command:
    """`arch-bench` in a group of its own, with all that it prints in a file."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        folder.mkdir(exist_ok=True)
        self._log = folder / "printed"
        self._before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("a") as file:
            args = [sys.executable, "-m", "arch_bench", "-m", *TINY, *overrides, f"results_dir={folder}"]
            self.process = subprocess.Popen(args, start_new_session=True, stdout=file, stderr=file)

    @property
    def printed(self) -> str:
        with self._log.open() as file:
            file.seek(self._before)
            return file.read()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Or until it ends by itself."""
        end = time.monotonic() + seconds
        while not condition() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)

    def kill(self, signum: int = signal.SIGKILL) -> int:
        """The whole group; the exit code, which is another where it had ended before."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signum)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    def end(self) -> int:
        try:
            return self.process.wait(timeout=600)
        finally:
            self.kill()


def files(folder: Path) -> dict[Path, int]:
    """Rows, logs and checkpoints, with their times."""
    found = {}
    for path in (path for name in ("rows", "logs", "checkpoints") for path in folder.glob(f"{name}/*")):
        with suppress(FileNotFoundError):  # removed just now
            found[path] = path.stat().st_mtime_ns
    return found


MOMENTS = ("training", "working", "writing", "composing", "training", "loading", "working")


def wait_for(what: str, command: Command, folder: Path, chance: random.Random) -> None:
    """Wait as long as it takes to hit that."""
    before = files(folder)
    if what == "composing":
        time.sleep(chance.uniform(0.2, 4.0))
        return
    command.wait_until(lambda: "to run" in command.printed)
    if what == "loading":
        time.sleep(chance.uniform(0.0, 4.0))
        return
    command.wait_until(lambda: files(folder) != before)
    time.sleep(chance.uniform(0.0, 1.5))
    if what == "writing":
        command.wait_until(lambda: any(folder.glob("[rc]*/*.tmp")), seconds=5)
    if what == "training":
        command.wait_until(lambda: any(folder.glob("*/*.ckpt")), seconds=5)
        time.sleep(chance.uniform(0.0, 0.05))


@pytest.fixture(scope="module", params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> list[str]:
    return LAUNCHERS[request.param]


@pytest.fixture(scope="module")
def undisturbed(launcher: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert Command(folder, *launcher, *GRID).end() == 0
    return folder


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_with_the_same_rows(
    launcher: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    chance = random.Random(25)
    hit = Counter[str]()
    for what in itertools.islice(itertools.cycle(MOMENTS), N_KILLS):
        command = Command(tmp_path, *launcher, *GRID)
        wait_for(what, command, tmp_path, chance)
        hit[what if command.kill() == -signal.SIGKILL else "too late"] += 1
        results.load([tmp_path])
    last = Command(tmp_path, *launcher, *GRID)
    assert last.end() == 0, last.printed
    rows = results.load([tmp_path])
    attempts = Counter(row.metrics["n_attempts"] for row in rows if row.kind == "quality")
    print(f"kills: {dict(hit)}; rows by attempts: {dict(attempts)}")  # pytest -s shows it
    assert contents(tmp_path) == contents(undisturbed)
    assert len(rows) == 3 * N_CELLS
    assert {row.status for row in rows} == {"ok"}
    assert max(attempts) > 1, "no kill has hit a training"  # type: ignore[type-var]
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))
    again = Command(tmp_path, *launcher, *GRID, "dry_run=true")
    assert again.end() == 0
    assert f"{N_CELLS} cells, {N_CELLS} done, 0 to run" in again.printed


N_WRITERS = 8


@pytest.mark.slow
def test_many_sweeps_at_once_on_one_folder_lose_nothing(tmp_path: Path) -> None:
    """Half of them want the same cells, the others some of those and some more."""
    wide = ["phases=[decode,quality]", "backbone=lstm,transformer", "seed=0,1,2"]
    narrow = ["phases=[decode,quality]", "backbone=transformer,lstm", "seed=2,3"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert Command(alone, *wide, "seq_len=16").end() == 0
    assert Command(alone, *narrow, "seq_len=16").end() == 0
    writers = [Command(shared, *(narrow if i % 2 else wide), "seq_len=16") for i in range(N_WRITERS)]
    assert [writer.end() for writer in writers] == [0] * N_WRITERS, writers[0].printed
    assert contents(shared) == contents(alone)
    assert len(results.load([shared])) == 3 * 8
    assert not [*shared.glob("*/*.tmp"), *shared.glob("*/*.ckpt")]
    assert (shared / "adhoc" / "report.html").read_text().rstrip().endswith("</html>")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_several_cells_at_once_end_cleanly_when_they_are_asked_to(signum: signal.Signals, tmp_path: Path) -> None:
    sweep = [*LAUNCHERS["joblib"], "phases=[quality]", "seq_len=16", "backbone=lstm", "seed=0,1,2", "eval_scales=[1]"]
    command = Command(tmp_path, *sweep, "trainer.max_steps=1000000", "trainer.val_every=1000")
    command.wait_until(lambda: len(list(tmp_path.glob("*/*.ckpt"))) == 2)
    assert command.kill(signum) == 128 + signum, command.printed
    assert command.printed.count("arch-bench: interrupted; finished rows are kept") == 1
    assert "Traceback" not in command.printed
    assert not list((tmp_path / "rows").glob("*")), "an interruption is no result"
    assert len(list(tmp_path.glob("*/*.ckpt"))) == 2


@pytest.mark.slow
def test_a_failed_cell_is_told_with_its_log_and_the_command_that_reruns_it(tmp_path: Path) -> None:
    sweep = ["phases=[quality]", "seq_len=16", "seed=0,1", "eval_scales=[1]", "rerun=true", "checkpoint_every_s=null"]
    command = Command(tmp_path, *sweep, "trainer.max_steps=200,1000000", "time_limit_s=15")
    assert command.end() == 1
    assert "2 cells failed:" in command.printed
    assert command.printed.count("stopped after 15 s (time_limit_s)") == 4, "beside its cell, and at the end"
    again = command.printed.rpartition("to run them again, and nothing that is done: arch-bench -m ")[2]
    assert "rerun" not in again
    assert "trainer.max_steps=200,1000000" in again
    more = Command(
        tmp_path, *(each for each in sweep if each != "rerun=true"), "trainer.max_steps=200,1000000", "dry_run=true"
    )
    assert more.end() == 0
    assert "4 cells, 2 done, 2 failed before, 2 to run" in more.printed


@pytest.mark.slow
def test_a_fair_comparison_from_rates_to_report(tmp_path: Path) -> None:
    fair = ["protocol=fair", "protocol.n_rates=3", "protocol.max_extensions=1", "phases=[quality]", "seq_len=16"]
    sweep = [*fair, "backbone=transformer,lstm", "seed=0,1"]
    first = Command(tmp_path, *sweep)
    assert first.end() == 0, first.printed
    assert "learning rates, by validation: 6 cells, 0 done, 6 to run; then 4 more" in first.printed
    assert "every seed at the rate chosen: 4 cells, 0 done, 4 to run" in first.printed
    rows = results.load([tmp_path])
    scans, finals = ([row for row in rows if row.kind == kind] for kind in ("scan", "quality"))
    assert len(finals) == 2 * 2 * 2
    for backbone in ("transformer", "lstm"):
        tried = {row.config["optim"]["lr"]: row.metrics["val_loss_nats"] for row in scans if row.backbone == backbone}
        (rate,) = {row.config["optim"]["lr"] for row in finals if row.backbone == backbone}
        assert tried[rate] == min(tried.values())
    sizes = [row.metrics["n_params"] for row in rows]
    assert max(sizes) / min(sizes) < 1.1  # type: ignore[operator, type-var]
    assert "Learning rates" in (tmp_path / "adhoc" / "report.md").read_text()
    before = contents(tmp_path), {path: path.stat().st_mtime_ns for path in tmp_path.glob("rows/*")}
    again = Command(tmp_path, *sweep)
    assert again.end() == 0
    assert (contents(tmp_path), {path: path.stat().st_mtime_ns for path in tmp_path.glob("rows/*")}) == before
    assert "0 to run" in again.printed
