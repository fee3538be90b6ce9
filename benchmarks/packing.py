"""How to run many small cells on one GPU: optimiser steps per second, over all cells, by each way to pack them.

    python benchmarks/packing.py                                        # two kinds of cell, four ways, 1 to 16 cells
    python benchmarks/packing.py --ways processes,mps --counts 1,8,16   # some of it
    python benchmarks/packing.py --smoke --counts 1,2                   # in miniature, on a CPU too

    processes   a process for each cell; the driver gives them the GPU in turns
    mps         the same as clients of NVIDIA's multi-process service: their kernels run side by side
    streams     one process; a CUDA graph and a stream for each cell; one thread launches them in turns, 8 steps each
    one_graph   one process; the steps of all cells as branches of one CUDA graph

A step is the training step of the harness: compiled, captured, replayed; four batches that are on the device take
turns, chosen inside the graph, so that making data costs nothing here. All cells compile and capture first, then train
together, and are counted in the same window by the system's clock. Prints a row of Markdown as each point is measured,
and writes all of them to --out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from worker import Failed, Worker

from arch_bench.launchers import mps
from arch_bench.results import provenance

Record = dict[str, Any]
Team = Callable[[str, int], list[tuple[Worker, int]]]
"""(kind, number of cells) -> the workers that run them, with how many each runs."""
KINDS = {
    "transformer_d64": ["d_model=64", "trainer.batch_size=64"],
    "mamba_d64": ["backbone=mamba", "d_model=64", "trainer.batch_size=64"],
    "transformer_d128": ["d_model=128", "trainer.batch_size=256"],
}
WAYS = ["processes", "mps", "streams", "one_graph"]
MAX_CELLS = 16
WARM_S = 0.5
"""Seconds that all cells train together before the window begins."""
SLACK_S = 30.0
"""Seconds beyond a window in which its workers answer; likewise for recording its cells."""
QUEUES = {"CUDA_DEVICE_MAX_CONNECTIONS": "32"}
"""By default 8 hardware queues serve all streams of a process, and some would wait for others."""


class Packing:
    """The points that were asked for, one after the other."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._ends = time.monotonic() + args.seconds_limit
        self._leads: dict[str, Worker] = {}
        """Kind -> the worker that compiles it first, and runs the ways that need one process only."""
        self._about: dict[str, Record] = {}
        self._broken: dict[str, str] = {}

    def points(self) -> Generator[Record, None, None]:
        """A record of each; one that could not be measured says why."""
        with ExitStack() as stack:
            for kind in self._args.kinds:
                self._leads[kind] = stack.enter_context(Worker(QUEUES, compile_threads=4))
            for kind, lead in self._leads.items():
                lead.ask("prepare", kind, KINDS[kind], self._args.smoke)
            for kind, lead in self._leads.items():
                try:
                    self._about[kind] = lead.answer(self._prepare_until())
                except Failed as error:
                    self._broken[kind] = str(error)
            for way in self._args.ways:
                yield from self._by(way)

    def _by(self, way: str) -> Iterator[Record]:
        why = self._obstacle(way)
        if why:
            yield from (self._none(kind, way, n, *why) for kind in self._args.kinds for n in self._args.counts)
            return
        with ExitStack() as stack:
            try:
                team = stack.enter_context(self._team(way))
            except (Failed, mps.Unavailable) as error:
                grid = [(kind, n) for kind in self._args.kinds for n in self._args.counts]
                yield from (self._none(kind, way, n, "unavailable", str(error)) for kind, n in grid)
                return
            for kind in self._args.kinds:
                for n in self._args.counts:
                    yield self._point(team, kind, way, n)

    def _obstacle(self, way: str) -> tuple[str, str] | None:
        """Status and reason when nothing needs to be started for a way."""
        if not self._about:
            return "failed", next(iter(self._broken.values()))
        if way != "processes" and not any(about["is_cuda"] for about in self._about.values()):
            return "unavailable", "needs CUDA"
        return ("skipped", "past --seconds-limit") if time.monotonic() > self._ends else None

    def _point(self, team: Team, kind: str, way: str, n: int) -> Record:
        if kind in self._broken:
            return self._none(kind, way, n, "failed", self._broken[kind])
        if time.monotonic() > self._ends:
            return self._none(kind, way, n, "skipped", "past --seconds-limit")
        try:
            found = _train(team(kind, n), kind, way, self._args.window_s)
        except Failed as error:
            return self._none(kind, way, n, "failed", str(error))
        clients = {"mps_clients": mps.n_clients()} if way == "mps" else {}
        return {"kind": kind, "way": way, "n": n, "status": "ok"} | found | clients | self._about[kind]

    @staticmethod
    def _none(kind: str, way: str, n: int, status: str, why: str) -> Record:
        return {"kind": kind, "way": way, "n": n, "status": status, "why": why}

    @contextmanager
    def _team(self, way: str) -> Iterator[Team]:
        """Workers with every kind prepared. Raises Failed, mps.Unavailable."""
        if way in {"streams", "one_graph"}:
            yield lambda kind, n: [(self._leads[kind], n)]
            return
        with ExitStack() as stack:
            environment = stack.enter_context(mps.service()) if way == "mps" else {}
            workers: list[Worker] = []
            stack.callback(_end, workers)
            workers.append(Worker(environment, compile_threads=1))
            workers[0].ask("touch")  # a device that takes no client says so here, once
            workers[0].answer(min(time.monotonic() + 30, self._prepare_until()))
            workers += [Worker(environment, compile_threads=1) for _ in range(max(self._args.counts) - 1)]
            for kind in self._about:
                _all(workers, self._prepare_until(), "prepare", kind, KINDS[kind], self._args.smoke)
            yield lambda kind, n: [(worker, 1) for worker in workers[:n]]

    def _prepare_until(self) -> float:
        return min(time.monotonic() + self._args.prepare_limit_s, self._ends)


def _train(team: list[tuple[Worker, int]], kind: str, way: str, window_s: float) -> Record:
    """Get ready, start together, count in one window. Raises Failed."""
    for worker, n in team:
        worker.ask("pack", kind, way, n)
    _answers([worker for worker, _ in team], time.monotonic() + SLACK_S)
    start = time.monotonic() + WARM_S
    end = start + window_s
    found = _all([worker for worker, _ in team], end + SLACK_S, "run", kind, start, end)
    rates = [rate for one in found for rate in one["rates"]]
    losses = [loss for one in found for loss in one["losses"]]
    each = rates if way != "one_graph" else [rates[0] / len(losses)]
    return {
        "steps_per_s": sum(rates),
        "slowest": min(each),
        "fastest": max(each),
        "loss_min": min(losses),
        "loss_max": max(losses),
        "window_s": window_s,
    }


def _all(workers: list[Worker], until: float, method: str, *args: Any) -> list[Any]:
    for worker in workers:
        worker.ask(method, *args)
    return _answers(workers, until)


def _answers(workers: list[Worker], until: float) -> list[Any]:
    """Of all, also when one has failed: an answer that is left behind would be taken for the next. Raises Failed."""
    answers, failures = [], []
    for worker in workers:
        try:
            answers.append(worker.answer(until))
        except Failed as error:
            failures.append(str(error))
    if failures:
        raise Failed(f"{len(failures)} of {len(workers)} workers: {failures[0]}" if len(workers) > 1 else failures[0])
    return answers


def _end(workers: list[Worker]) -> None:
    for worker in workers:
        worker.release()  # all first: each takes a second to leave the device
    for worker in workers:
        worker.end()


HEADER = """| cell | way | cells | steps/s | of one | slowest | fastest | mean loss | note |
| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"""


def row(record: Record, alone: float | None) -> str:
    """A line of the table; `alone` is the rate of one cell by itself."""
    start = f"| {record['kind']} | {record['way']} | {record['n']} |"
    if record["status"] != "ok":
        return f"{start} | | | | | {record['status']}: {record['why'].replace('|', '/')} |"
    gain = f"{record['steps_per_s'] / alone:.2f}x" if alone else ""
    rates = f"{record['steps_per_s']:,.1f} | {gain} | {record['slowest']:,.1f} | {record['fastest']:,.1f}"
    note = f"{record['kernel']}, {record['step']}" + (f" ({record['step_why']})" if record["step_why"] else "")
    note += f", {record['mps_clients']} clients" if "mps_clients" in record else ""
    return f"{start} {rates} | {record['loss_min']:.3f} to {record['loss_max']:.3f} | {note.replace('|', '/')} |"


def alone(records: list[Record], kind: str) -> float | None:
    """Steps per second of one cell of a kind by itself, by the first way that measured it."""
    rates = (r["steps_per_s"] for r in records if r["status"] == "ok" and r["kind"] == kind and r["n"] == 1)
    return next(rates, None)


def summary(records: list[Record]) -> str:
    """Steps per second over all cells: a line for each kind and way, a column for each number of cells."""
    counts = sorted({r["n"] for r in records})
    lines = [f"| cell | way | {' | '.join(map(str, counts))} |", "| --- | --- |" + " ---: |" * len(counts)]
    for kind, way in dict.fromkeys((r["kind"], r["way"]) for r in records):
        found = {r["n"]: r for r in records if (r["kind"], r["way"]) == (kind, way)}
        cells = [f"{r['steps_per_s']:,.1f}" if r and r["status"] == "ok" else "" for r in map(found.get, counts)]
        lines.append(f"| {kind} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _chosen(allowed: list[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name}: choose from: {', '.join(allowed)}")
        return names

    return parse


def _counts(text: str) -> list[int]:
    counts = [int(one) if one.isdecimal() else 0 for one in text.split(",")]
    if not all(1 <= n <= MAX_CELLS for n in counts):
        raise argparse.ArgumentTypeError(f"{text}: choose numbers from 1 to {MAX_CELLS}, with commas between")
    return sorted(set(counts))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: give a number of seconds above 0")
    return seconds


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = ["transformer_d64", "mamba_d64"]
    made.add_argument("--kinds", type=_chosen(list(KINDS)), default=usual, help=f"cells, of: {', '.join(KINDS)}")
    made.add_argument("--ways", type=_chosen(WAYS), default=WAYS, help=f"of: {', '.join(WAYS)}")
    made.add_argument("--counts", type=_counts, default=[1, 2, 4, 8, 16], help="numbers of cells: 1,2,4,8,16")
    made.add_argument("--window-s", type=_seconds, default=2.0, help="seconds of the window of a point")
    made.add_argument("--seconds-limit", type=_seconds, default=600.0, help="points that would begin later are skipped")
    made.add_argument("--prepare-limit-s", type=_seconds, default=120.0, help="for compiling and capturing")
    made.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    made.add_argument("--out", type=Path, default=Path("results/packing.json"))
    return made


def main() -> None:
    args = parser().parse_args()
    records: list[Record] = []
    found = {"commit": provenance.commit().name, "versions": provenance.versions(), "points": records}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(HEADER, flush=True)
    started = time.monotonic()
    with closing(Packing(args).points()) as points:
        for record in points:
            records.append(record | {"at_s": round(time.monotonic() - started, 1)})
            print(row(record, alone(records, record["kind"])), flush=True)
            args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nSteps per second over all cells, by number of cells\n\n{summary(records)}", flush=True)


if __name__ == "__main__":
    main()
