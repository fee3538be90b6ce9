"""What every launcher takes and gives: jobs, and what became of them."""

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
    """A cell to run, and what to call it."""

    cell: Cell
    label: str


class Done(NamedTuple):
    """What became of a job."""

    job: Job
    rows: list[Row]
    mistake: str | None = None
    """The user's, in one line: the cell cannot be run."""
    bug: str | None = None
    """One of the harness or of a part, met before there was a shape whose row could hold it."""
    lines: tuple[str, ...] = ()
    """What has not been printed yet."""
    taken: Path | None = None
    """The claim of another sweep, which runs this cell: it has no answer yet."""
    full: str | None = None
    """The disk takes nothing more, in one line: no other job can have an answer either."""


class Crowded(Exception):
    """Of a seating: a shape ran out of memory beside others, and cannot be alone where it is; it may be elsewhere."""


class Launcher(ABC):
    """Runs jobs; it gives each back when it has ended, in any order."""

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[Done]: ...


def attempt(job: Job, say: Callable[[str], None], seating: Seating = anywhere) -> Done:
    """Run a job in this process and its fresh ones. `say` hears of every row as it comes.

    Raises nothing that concerns this cell only, except Crowded, and a bug with `isolate=false`, for a debugger.
    """
    try:
        rows = run_cell(job.cell, lambda row: say(line(row)), lambda text: say(f"    {text}"), seating)
    except (ConfigError, OSError) as error:
        for row in error.rows if isinstance(error, Unsaved) else ():
            say(line(row))  # which nobody can read anywhere else
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
    """The same where others print too: all of its lines come with the answer."""
    lines: list[str] = [job.label]
    done = attempt(job, lines.append, seating)
    return done._replace(lines=tuple(lines))


def run_all(launcher: Launcher, jobs: Sequence[Job], patience_s: float = math.inf) -> Iterator[Done]:
    """Run jobs, and wait for those that other sweeps run: for their rows, or for their turn here.

    Jobs of one claim (they differ in how a phase measures only) never run at the same time: they would wait for each
    other. What is still taken when nothing has ended for `patience_s` is given back so. A full disk ends it all.
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
    """The first of each claim, and the others."""
    firsts: dict[Path, Job] = {}
    others = []
    for job in jobs:
        if firsts.setdefault(_claim(job.cell), job) is not job:
            others.append(job)
    return list(firsts.values()), others


def _claim(cell: Cell) -> Path:
    """Of a cell as it runs here, where it can."""
    with suppress(ConfigError):
        cell = settle(cell, is_elsewhere=True)
    return claim_path(cell.results_dir, cell.model_dump())


def _is_on_disk(job: Job) -> bool:
    return is_done(final(job.cell, is_elsewhere=True)[0])


def lost(job: Job, reason: str, *, is_here: bool) -> Done:
    """What became of a job whose process on some machine ended without an answer: rows that crashed.

    is_here: on this machine. On another one nobody knows what `device=auto` meant, nor under which key the rows would
    be: they are told, and not saved.
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
    """The module that does the work. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
    raise ConfigError(f"launcher={launcher}: needs {package}; pip install 'arch-bench[sweep]'")


def check_isolated(launcher: str, jobs: Sequence[Job]) -> None:
    """Raises ConfigError."""
    if not all(job.cell.isolate for job in jobs):
        raise ConfigError(f"isolate=false: launcher={launcher} runs every phase in a process of its own; isolate=true")
