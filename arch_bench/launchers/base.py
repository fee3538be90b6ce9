"""What every launcher takes and gives: jobs, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from arch_bench.complaint import one_line
from arch_bench.config import Cell, ConfigError
from arch_bench.results import Row
from arch_bench.row_line import line
from arch_bench.run import Seating, anywhere, run_cell


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
    lines: tuple[str, ...] = ()
    """What has not been printed yet."""


class Launcher(Protocol):
    """Runs jobs; it gives each back when it has ended, in any order."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]: ...


def attempt(job: Job, say: Callable[[str], None], seating: Seating = anywhere) -> Done:
    """Run a job in this process and its fresh ones. `say` hears of every row as it comes.

    Raises what is a bug of the harness, never what is the cell's.
    """
    try:
        rows = run_cell(job.cell, lambda row: say(line(row)), lambda text: say(f"    {text}"), seating)
    except (ConfigError, OSError) as error:
        return Done(job, [], one_line(error))
    return Done(job, rows)


def attempt_silently(job: Job, seating: Seating = anywhere) -> Done:
    """The same where others print too: all of its lines come with the answer."""
    lines: list[str] = [job.label]
    done = attempt(job, lines.append, seating)
    return done._replace(lines=tuple(lines))
