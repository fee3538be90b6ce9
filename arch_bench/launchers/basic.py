"""One cell after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from arch_bench.launchers.base import Done, Job, Launcher, attempt


class Basic(Launcher):
    """Runs the jobs in their order, and prints as they go."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        for job in jobs:
            print(job.label, flush=True)
            yield attempt(job, lambda text: print(text, flush=True))
