"""Interface of every launcher: jobs in, results out."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from arch_bench.cell import claim
from arch_bench.cell.progress import line
from arch_bench.cell.run import Seating, abandon, anywhere, final, is_done, logged, run_cell, settle
from arch_bench.cell.shape import Shape, Usage, to_row
from arch_bench.config.errors import one_line
from arch_bench.config.schema import Cell, ConfigError
from arch_bench.results import FULL, Outcome, Row, Unsaved, claim_path


class Job(NamedTuple):
    """Cell to run, with its label."""

    cell: Cell
    label: str


class Done(NamedTuple):
    """Result of a job."""

    job: Job
    rows: list[Row]
    mistake: str | None = None
    """The user's mistake in one line: the cell cannot be run."""
    bug: str | None = None
    """Bug of the harness or of a part, raised before any shape existed whose row could record it."""
    lines: tuple[str, ...] = ()
    """Lines that are not printed yet."""
    taken: Path | None = None
    """Claim of another sweep that runs this cell: there is no result yet."""
    full: str | None = None
    """Error of a full disk in one line: no other job can have a result either."""


class Crowded(Exception):
    """Raised when a shape fails on a shared device and needs its own, which this seating cannot give."""


class Launcher(ABC):
    """Runner of jobs: it yields the result of each as it ends, in any order."""

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[Done]: ...


def attempt(job: Job, say: Callable[[str], None], seating: Seating = anywhere) -> Done:
    """Run a job in this process and in fresh ones. `say` is called with a line for every row as it arrives.

    Errors of this cell alone end in the result. Only Crowded is raised, and with `isolate=false` any bug, so that a
    debugger can catch it.
    """
    try:
        rows = run_cell(job.cell, lambda row: say(line(row)), lambda text: say(f"    {text}"), seating)
    except (ConfigError, OSError) as error:
        for row in error.rows if isinstance(error, Unsaved) else ():
            say(line(row))  # these rows are on no disk
        return _hindered(job, error)
    except claim.Taken as taken:
        say(f"    left to another sweep, which runs it ({taken.path})")
        return Done(job, [], taken=taken.path)
    except Crowded:
        raise
    except Exception as error:
        if not job.cell.isolate:
            raise
        return Done(job, [], bug=logged(job.cell, Shape(job.cell.phases[0], [job.cell.seq_len]), error))
    return Done(job, rows)


def _hindered(job: Job, error: ConfigError | OSError) -> Done:
    is_full = isinstance(error, OSError) and error.errno in FULL
    return Done(job, [], full=one_line(error)) if is_full else Done(job, [], one_line(error))


def attempt_silently(job: Job, seating: Seating = anywhere) -> Done:
    """Run a job like `attempt`, but return its lines with the result: other jobs print at the same time."""
    lines: list[str] = [job.label]
    done = attempt(job, lines.append, seating)
    return done._replace(lines=tuple(lines))


def run_all(launcher: Launcher, jobs: Sequence[Job], patience_s: float = math.inf) -> Iterator[Done]:
    """Run jobs and yield their results; wait for jobs that other sweeps run, for their rows or for a turn here.

    Jobs that share a claim (they differ only in how a phase measures) never run at the same time: they would wait for
    each other. If no claim ends within `patience_s`, the jobs still taken are yielded as taken. A full disk ends
    everything.
    """
    left, taken = list(jobs), list[Done]()
    while left or taken:
        now, left = _apart(left)
        for done in launcher.run(now):
            if done.taken is None:
                yield done
                if done.full is not None:
                    return
                continue
            print(*done.lines, sep="\n", end="\n" if done.lines else "", flush=True)
            taken.append(done._replace(lines=()))
        if left:
            continue
        if taken:
            print(f"waiting for {len(taken)} cell{'s' * (len(taken) > 1)} of other sweeps", flush=True)
        ended = claim.wait([done.taken for done in taken if done.taken], patience_s)
        if not ended:
            yield from taken
            return
        free = [done.job for done in taken if done.taken in ended]
        taken = [done for done in taken if done.taken not in ended]
        for job in free:
            if _is_on_disk(job):
                yield attempt_silently(job)
            else:
                left.append(job)


def _apart(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Split jobs into the first of each claim and the others."""
    firsts: dict[Path, Job] = {}
    others = []
    for job in jobs:
        if firsts.setdefault(_claim(job.cell), job) is not job:
            others.append(job)
    return list(firsts.values()), others


def _claim(cell: Cell) -> Path:
    """Return the claim path of a cell, settled for this machine if it can run here."""
    with suppress(ConfigError):
        cell = settle(cell, is_elsewhere=True)
    return claim_path(cell.results_dir, cell.model_dump())


def _is_on_disk(job: Job) -> bool:
    return is_done(final(job.cell, is_elsewhere=True)[0])


def lost(job: Job, reason: str, *, is_here: bool) -> Done:
    """Return the result of a job whose process ended without an answer: rows with status `crashed`.

    is_here: the process ran on this machine. On another machine, the value of `device=auto` and so the rows' key are
    unknown here: the rows are then reported, but not saved.
    """
    cell = job.cell
    try:
        is_known = (is_here or cell.device != "auto") and not cell.rerun
        rows = abandon(cell, reason) if is_known else _unsaved(cell, reason)
    except (ConfigError, OSError) as error:
        return _hindered(job, error)._replace(lines=(job.label,))
    return Done(job, rows, lines=(job.label, *map(line, rows)))


def _unsaved(cell: Cell, reason: str) -> list[Row]:
    outcome = Outcome(seq_len=cell.seq_len, status="crashed", reason=reason)
    return [to_row(cell, kind, outcome, Usage()) for kind in cell.phases]


def engine(launcher: str, package: str) -> Any:
    """Import the module that does the work. Raises ConfigError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
    raise ConfigError(f"launcher={launcher}: needs {package}; pip install 'arch-bench[sweep]'")


def check_isolated(launcher: str, jobs: Sequence[Job]) -> None:
    """Check that every job is isolated. Raises ConfigError."""
    if not all(job.cell.isolate for job in jobs):
        raise ConfigError(f"isolate=false: launcher={launcher} runs every phase in a process of its own; isolate=true")
