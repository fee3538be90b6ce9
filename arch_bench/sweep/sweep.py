"""Run the cells of one command through its protocol and launcher, and report them."""

from __future__ import annotations

import atexit
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arch_bench import tracking
from arch_bench.cell import claim
from arch_bench.config.errors import one_line
from arch_bench.config.instantiate import made
from arch_bench.config.jobs import composing
from arch_bench.config.schema import Cell, ConfigError, Sweeping, read, typed
from arch_bench.results import RETRIED, load
from arch_bench.results.files import sweep_up
from arch_bench.runtime import environment, scratch
from arch_bench.sweep.space import shown

if TYPE_CHECKING:
    from arch_bench.launchers.base import Done, Job, Launcher
    from arch_bench.results import Row
    from arch_bench.sweep.plan import Plan
    from arch_bench.sweep.protocols import Answers, Round


class _Full(Exception):
    """Raised when the disk is full."""


class Sweep:
    """Collector and runner of the cells that Hydra composes, one per call of `add`."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        """User mistakes, one line each, printed as they are found."""
        self.failures: dict[str, str] = {}
        """Cells of this command without a result, by label, with the reason: a crash, a time limit or a full disk."""
        self._began = time.time()
        self._is_sweep = False
        self._cells: dict[str, Cell] = {}
        """Cells by identity, each once, however it was written: a rate may be given as 1e-3 and as 0.001."""
        self._sweeping: Sweeping | None = None
        self._asked: dict[str, Any] = {}
        """Settings of the whole command, with option names, from the first cell."""
        self._conflict: str | None = None
        """Error if another cell has different settings: no cell runs then, because the intent is unclear."""
        self._n_before = 0
        self._rows: list[Row] = []
        self._reported: set[tuple[Path, str]] = set()
        """Folders and names with rows of this command: other reports on disk belong to other commands."""

    @property
    def has_run(self) -> bool:
        """True once cells have run and their rows are on disk."""
        return self._n_before > 0

    def begin(self) -> None:
        """Note that several cells will come (one alone never calls this)."""
        self._is_sweep = True

    def add(self, cfg: DictConfig) -> None:
        """Add a composed cell."""
        try:
            cell, sweeping = read(cfg)
            self._cells.setdefault(_identity(cell), cell)
            self._agree(sweeping)
        except (ConfigError, OmegaConfBaseException) as error:
            self.mistake(error, typed())

    def mistake(self, error: BaseException, overrides: Sequence[str]) -> None:
        """Record a cell that could not be composed; the others still run."""
        self._mistaken(one_line(error, overrides))

    def _agree(self, sweeping: Sweeping) -> None:
        """Record the settings that a cell has for the whole command, and any conflict with another cell."""
        asked = _asked(sweeping)
        if self._sweeping is None:
            self._sweeping, self._asked = sweeping, asked
        elif sweeping != self._sweeping and self._conflict is None:
            key = next(key for key in (*asked, *self._asked) if asked.get(key) != self._asked.get(key))
            first, other = (shown({key: of.get(key)}) for of in (self._asked, asked))
            self._conflict = f"{other}: one command has one protocol, launcher and dry_run; it began with {first}"

    def run(self) -> None:
        """Run round after round until the protocol is finished. Exceptions of Hydra pass through."""
        try:
            self._run()
        except _Full as full:
            print(f"arch-bench: {full}; the sweep ends here, for nothing more can be saved", file=sys.stderr)
        except (ConfigError, OSError) as error:
            self._mistaken(one_line(error))

    def _run(self) -> None:
        if self._sweeping is None:
            if self._is_sweep and not self.mistakes:
                empty = [each for each in sys.argv[1:] if "range(" in each or "glob(" in each]
                raise ConfigError(f"{' '.join(empty) or 'the sweep'}: no cells; give at least one value")
            return
        if self._conflict is not None:
            raise ConfigError(self._conflict)
        tracks = any(cell.logger.kind == "wandb" for cell in self._cells.values())
        if ignored := environment.notice(tracks=tracks):
            print(f"arch-bench: {ignored}", file=sys.stderr)
        protocol = made("protocol", self._sweeping.protocol, "")
        launcher: Launcher = made("launcher", self._sweeping.launcher, "")
        rounds = protocol.rounds([*self._cells.values()])
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
        from arch_bench.sweep.plan import NO_ESTIMATE, plan

        folders = {Path(cell.results_dir) for cell in round_.cells}
        for folder in folders:
            sweep_up(folder / "rows")
            claim.sweep_up(folder / "claims")
        found = plan(round_.cells, [row for row in load(sorted(folders)) if row.wall_s is not None])
        if self._is_sweep or (self._sweeping and self._sweeping.dry_run):
            later = f"; then {round_.n_later:,} more" if round_.n_later else ""
            why = NO_ESTIMATE if found.remaining and found.seconds is None else ""
            print(f"{f'{round_.what}: ' if round_.what else ''}{found.text()}{later}{why}", flush=True)
            for mistake in found.mistakes:
                self._mistaken(mistake)
        return found

    def _work(self, plan: Plan, launcher: Launcher) -> Answers:
        """Return the answer to every cell of a round; cells on disk come first, so that new figures are at the end."""
        from arch_bench.launchers.base import run_all
        from arch_bench.launchers.basic import Basic

        n_cells = self._n_before + len(plan.done) + len(plan.remaining)
        answers: Answers = []
        for cells, where in ((plan.done, Basic()), (plan.remaining, launcher)):
            jobs = [self._job(cell, n_cells, self._n_before + i) for i, cell in enumerate(cells, 1)]
            self._n_before += len(cells)
            for done in run_all(where, jobs):
                self._hear(done)
                answers.append((done.job.cell, done.rows))
        return answers

    def _job(self, cell: Cell, n_cells: int, number: int) -> Job:
        from arch_bench.launchers.base import Job

        where = f"[{number}/{n_cells}] " if self._is_sweep else ""
        return Job(cell, where + self._label(cell))

    def _label(self, cell: Cell) -> str:
        has_rates = cell.phases == ["scan"] or len({each.optim.lr for each in self._cells.values()}) > 1
        tried = f", lr {cell.optim.lr:g}" if has_rates else ""
        if cell.trial is not None:
            tried = f", trial {cell.trial.number}: {shown(cell.trial.values)}"
        return f"{cell.backbone_name} on {cell.task_name}, seq_len {cell.seq_len}, seed {cell.seed}{tried}"

    def _hear(self, done: Done) -> None:
        for text in done.lines:
            print(text, flush=True)
        if done.mistake is not None:
            self._mistaken(done.mistake)
        if done.bug is not None:
            print(f"    crashed: {done.bug}", flush=True)
            self.failures[done.job.label] = f"crashed: {done.bug}"
        if done.full is not None:
            self.failures[done.job.label] = f"not saved: {done.full}"
            raise _Full(done.full)
        self._rows += done.rows
        if done.rows:
            self._reported.add((Path(done.job.cell.results_dir), done.job.cell.name))
        for row in done.rows:
            if row.status in RETRIED:
                self.failures.setdefault(done.job.label, f"{row.kind} {row.status}: {row.reason}")

    def _mistaken(self, text: str) -> None:
        if text not in self.mistakes:  # two phases or seeds may repeat it
            print(f"arch-bench: {text}", file=sys.stderr)
            self.mistakes.append(text)

    def finish(self) -> None:
        """Print tables, failures and mistakes after the run, and write a report for each name of a sweep."""
        if not self._n_before:
            return
        if not self._is_sweep:
            self._show_rows()
        else:
            for folder, name in sorted(self._reported):
                self._report(folder, name)
            self._tell_failures()
            if self.mistakes:
                print("\nmistakes, to be put right:", *self.mistakes, sep="\n  ")
        if kept := tracking.kept_offline(self._cells.values(), self._began):
            print(kept, file=sys.stderr)

    def _show_rows(self) -> None:
        """Print the table of one cell, and the path of its rows."""
        from arch_bench import report

        for folder, _ in self._reported:
            print(f"\n{report.summary(self._rows)}\n\nrows: {folder / 'rows' / f'{self._rows[0].key}-*.json'}")

    def _tell_failures(self) -> None:
        if self.failures:
            print(f"\n{len(self.failures)} cell{'s' * (len(self.failures) > 1)} failed:")
            for label, reason in self.failures.items():
                print(f"  {label}: {reason}")
            kept = (arg for arg in sys.argv[1:] if arg.partition("=")[0].lstrip("+") != "rerun")
            again = ["arch-bench", *kept]
            print(f"to run them again, and nothing that is done: {shlex.join(again)}")

    def _report(self, folder: Path, name: str) -> None:
        from arch_bench import report

        rows = [row for row in load([folder]) if row.experiment == name]
        if not rows:
            return
        print("\n" + report.summary(rows))
        try:
            page = report.build(rows, report.place(folder, name), name)
        except OSError as error:
            print(f"arch-bench: no report: {one_line(error)}", file=sys.stderr)
        else:
            print(f"\nreport: {page}  (beside it: report.md, rows.csv, figures/)")


def _asked(sweeping: Sweeping) -> dict[str, Any]:
    """Map each key to its value, options first: an option's name says more than its dials."""
    groups = {"protocol": sweeping.protocol, "launcher": sweeping.launcher}
    names = {group: HydraConfig.get().runtime.choices[group] for group in groups}
    dials = {f"{group}.{dial}": value for group, node in groups.items() for dial, value in node.items()}
    return {"dry_run": sweeping.dry_run} | names | dials


def _identity(cell: Cell) -> str:
    """Return a cell as text in which equal numbers look alike."""
    plain = json.loads(cell.model_dump_json(), parse_float=lambda text: _plain(float(text)))
    return json.dumps(plain, sort_keys=True)


def _plain(number: float) -> float | int:
    return int(number) if number.is_integer() else number


SWEEP = Sweep()


@cache
def _scratch() -> str:
    """Create a folder that is removed when this process ends."""
    stack = ExitStack()
    atexit.register(stack.close)
    return str(stack.enter_context(scratch.folder()))


def _written_to(results_dir: str, dry_run: object) -> str:
    """Return the parent of Hydra's folders: a dry run writes nothing below `results_dir`, which may be read-only."""
    return _scratch() if dry_run is True else os.path.expanduser(results_dir)  # noqa: PTH111 (Path.expanduser raises)


OmegaConf.register_new_resolver("written_to", _written_to, replace=True)


class Announce(Callback):
    """Hydra callback that notifies `SWEEP` of a multirun, and the user when composing takes long."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SWEEP.begin()
        Sweeper.validate_batch_is_legal = _count  # type: ignore[method-assign, assignment]
        launcher: Any = Plugins.instance().class_name_to_class[_LAUNCHER]  # Hydra runs its file anew and makes another
        launcher.launch = composing(SWEEP.mistake)


_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
MOST = 100_000
MANY = 250
"""Number of cells that take seconds to compose."""


def _count(_: Sweeper, batch: Sequence[Sequence[str]]) -> None:
    """Check the number of cells, in place of Hydra's trial composition: here no cell runs before all are composed.

    Raises ConfigError for more than MOST.
    """
    if len(batch) > MOST:
        raise ConfigError(f"{len(batch):,} cells: more than {MOST:,} in one command; make it several")
    if len(batch) > MANY:
        print(f"composing {len(batch):,} cells", flush=True)
