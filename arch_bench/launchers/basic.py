"""Launcher that runs one cell after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from arch_bench.launchers.base import Done, Job, Launcher, attempt


class Basic(Launcher):
    """Launcher that runs the jobs in order and prints their progress."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        for job in jobs:
            print(job.label, flush=True)
            yield attempt(job, lambda text: print(text, flush=True))
