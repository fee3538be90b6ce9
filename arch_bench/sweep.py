"""What one command asks for: its cells, run as a protocol wants it and where a launcher puts them, and reported."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from arch_bench.complaint import one_line
from arch_bench.config import Cell, ConfigError, Sweeping, cell_of, made, sweeping_of
from arch_bench.results import Row, load
from arch_bench.space import shown

if TYPE_CHECKING:
    from arch_bench.launchers.base import Done, Job, Launcher
    from arch_bench.plan import Plan
    from arch_bench.protocol import Answers, Round


class Sweep:
    """Collects the cells that Hydra composes, one for each call of `add`, and runs them."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        """The user's, in one line each, told as they were found."""
        self.failures: list[Row] = []
        """Rows of this command that crashed or ran out of time."""
        self._name: str | None = None
        self._cells: list[Cell] = []
        self._sweeping: Sweeping | None = None
        self._started = time.monotonic()
        self._n_before = 0

    def begin(self, cfg: DictConfig) -> None:
        """Note that several cells will come (one alone never calls this)."""
        self._name = cfg.name

    def add(self, cfg: DictConfig) -> None:
        """A composed cell."""
        try:
            self._cells.append(cell_of(cfg))
            self._sweeping = self._sweeping or sweeping_of(cfg)
        except ConfigError as error:
            self._mistaken(one_line(error))

    def run(self) -> None:
        """Round after round, until the protocol has all that it wants. Raises ConfigError."""
        if self._sweeping is None:
            return
        protocol = made("protocol", self._sweeping.protocol, "")
        launcher: Launcher = made("launcher", self._sweeping.launcher, "")
        rounds = protocol.rounds(self._cells)
        round_ = next(rounds, None)
        while round_ is not None:
            plan = self._plan(round_)
            if self._sweeping.dry_run:
                return
            answers = self._work(plan, launcher)
            try:
                round_ = rounds.send(answers)
            except StopIteration:
                round_ = None

    def _plan(self, round_: Round) -> Plan:
        from arch_bench.plan import plan

        folders = {Path(cell.results_dir) for cell in round_.cells}
        found = plan(round_.cells, [row for row in load(sorted(folders)) if row.wall_s is not None])
        if self._name is not None or (self._sweeping and self._sweeping.dry_run):
            later = f"; then {round_.n_later:,} more" if round_.n_later else ""
            print(f"{f'{round_.what}: ' if round_.what else ''}{found.text()}{later}", flush=True)
        return found

    def _work(self, plan: Plan, launcher: Launcher) -> Answers:
        """The answer to every cell of a round: those on disk first, so that a new figure is at the end."""
        from arch_bench.launchers.basic import Basic

        n_cells = self._n_before + len(plan.done) + len(plan.remaining)
        answers: Answers = []
        for cells, where in ((plan.done, Basic()), (plan.remaining, launcher)):
            jobs = [self._job(cell, n_cells, self._n_before + i) for i, cell in enumerate(cells, 1)]
            self._n_before += len(cells)
            for done in where.run(jobs):
                self._hear(done)
                answers.append((done.job.cell, done.rows))
        return answers

    def _job(self, cell: Cell, n_cells: int, number: int) -> Job:
        from arch_bench.launchers.base import Job

        where = f"[{number}/{n_cells}] " if self._name else ""
        tried = f", lr {cell.optim.lr:g}" if cell.phases == ["scan"] else ""
        if cell.trial is not None:
            tried = f", trial {cell.trial.number}: {shown(cell.trial.values)}"
        text = f"{where}{cell.backbone_name} on {cell.task_name}, seq_len {cell.seq_len}, seed {cell.seed}{tried}"
        return Job(cell, text)

    def _hear(self, done: Done) -> None:
        for text in done.lines:
            print(text, flush=True)
        if done.mistake is not None:
            self._mistaken(done.mistake)
        self.failures += [row for row in done.rows if row.status in ("crashed", "timeout")]

    def _mistaken(self, text: str) -> None:
        if text not in self.mistakes:  # of two phases, or two seeds
            print(f"arch-bench: {text}", file=sys.stderr)
        self.mistakes.append(text)

    def finish(self) -> None:
        """After a sweep: the table in the terminal, the report of its experiment on disk, and what failed."""
        if self._name is None or (self._sweeping is not None and self._sweeping.dry_run):
            return
        for folder in sorted({Path(cell.results_dir) for cell in self._cells}):
            self._report(folder)
        if self.failures:
            cells = {row.key: row for row in self.failures}
            print(f"\n{len(cells)} cell{'s' * (len(cells) > 1)} failed:")
            for row in cells.values():
                print(f"  {row.backbone} on {row.task}, seq_len {row.train_seq_len}, seed {row.seed}: {row.reason}")
            print(f"to run them again, and nothing else: {shlex.join(['arch-bench', *sys.argv[1:]])}")

    def _report(self, folder: Path) -> None:
        from arch_bench import report

        rows = [row for row in load([folder]) if row.experiment == self._name]
        if rows:
            print("\n" + report.summary(rows))
            page = report.build(rows, folder / str(self._name), str(self._name))
            print(f"\nreport: {page}  (beside it: report.md, rows.csv, figures/)")


SWEEP = Sweep()


class Announce(Callback):
    """Tells `SWEEP` that Hydra composes several jobs."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SWEEP.begin(config)
