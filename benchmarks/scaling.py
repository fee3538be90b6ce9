"""How training scales over devices: tokens/s of one GPT on one and on several, and the share of a perfect speed-up.

    python benchmarks/scaling.py                                        # 124M parameters, one GPU and all of them
    python benchmarks/scaling.py --devices 2 --modes weak --steps 12    # the least of it
    python benchmarks/scaling.py --smoke                                # two processes on a CPU, in miniature

Weak: each device keeps its batch, and the batch of a step grows. Strong: the batch of a step stays. Efficiency is the
rate of N devices over N times that of one without a strategy. Every point is made by fresh processes: the first step
compiles (`compile_s`), five warm up, and the rate is the median of four windows. Prints a table in Markdown and writes
results/scaling.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from train_step import LM, LM_BATCH, LM_VOCAB, cell_for, model_and_task

from arch_bench.backbone import TRAIN_PER_FORWARD
from arch_bench.config.schema import Cell
from arch_bench.results import provenance
from arch_bench.runtime import threads, workers
from arch_bench.runtime.measure import PeakMemory, Stopwatch, device_name, pick_device
from arch_bench.runtime.precision import pick_precision
from arch_bench.train.distributed import joined, places
from arch_bench.train.step import Scored, TrainStep, pick_step
from arch_bench.train.team import Place, Team

Record = dict[str, Any]
SMOKE = ["task=text", "seq_len=32", "d_model=16", "n_layers=2", "device=cpu"]
N_WARMUP, N_WINDOWS, N_BATCHES = 5, 4, 4
COLUMNS = ("strategy", "n_devices", "mode", "batch_size", "tokens_per_s", "efficiency", "step_ms", "peak_gib", "step")


class Point(NamedTuple):
    """What is measured: a way to share a batch of so many sequences."""

    cell: Cell
    strategy: str
    n_devices: int
    vocab_size: int
    batch_size: int
    n_steps: int


def rate(point: Point, place: Place | None) -> Record:
    """One process's share of a point: what a step takes on all devices together."""
    cell, batch_size = point.cell, point.batch_size
    threads.limit()
    device = pick_device(cell.device)
    with joined(place, point.strategy, device) as team:
        memory = PeakMemory(device, is_fresh=True)
        backbone, _ = model_and_task(cell, vocab_size=point.vocab_size)
        step = TrainStep(
            backbone,
            cell.optim,
            max_steps=cell.trainer.max_steps,
            kind=pick_step(cell.step, device, team.strategy),
            precision=pick_precision(cell.precision, device),
            loss_kernel="auto",
            team=team,
        )
        times = _times(step, _batches(team, point, device), point.n_steps)
        tokens_per_s = batch_size * cell.seq_len / statistics.median(times)
        flops = TRAIN_PER_FORWARD * backbone.flops_per_token(cell.seq_len, n_scored=cell.seq_len)
        return {
            "strategy": team.strategy,
            "n_devices": team.size,
            "batch_size": batch_size,
            "tokens_per_s": tokens_per_s,
            "step_ms": statistics.median(times) * 1e3,
            "step_ms_fastest": min(times) * 1e3,
            "step_ms_slowest": max(times) * 1e3,
            "tflops_per_device": tokens_per_s * flops / team.size / 1e12,
            "peak_gib": team.largest(memory.read() or 0) / 2**30,
            "n_params": backbone.n_params(),
            "step": step.kind,
            "step_why": step.why,
            "loss_kernel": step.loss_kernel,
            "kernel": backbone.kernel,
            "compile_s": step.settle_s,
        }


def _batches(team: Team, point: Point, device: torch.device) -> list[Scored]:
    """Random tokens: the rows of this rank."""
    draw = torch.Generator(device).manual_seed(0)
    shape = (point.batch_size, point.cell.seq_len + 1)
    found = (torch.randint(point.vocab_size, shape, generator=draw, device=device) for _ in range(N_BATCHES))
    mine = [team.place.part(tokens, 0) for tokens in found]
    return [Scored(tokens[:, :-1].contiguous(), None, tokens[:, 1:].contiguous()) for tokens in mine]


def _times(step: TrainStep, batches: list[Scored], n_steps: int) -> list[float]:
    """Seconds of a step, of each window."""
    watch = Stopwatch(batches[0].inputs.device)
    for i in range(1 + N_WARMUP):
        step(batches[i % N_BATCHES])
    times = []
    n = max(1, n_steps // N_WINDOWS)
    for _ in range(N_WINDOWS):
        watch.synchronise()
        started = time.perf_counter()
        for i in range(n):
            step(batches[i % N_BATCHES])
        watch.synchronise()
        times.append((time.perf_counter() - started) / n)
    return times


def measured(point: Point) -> Record:
    """What a point's processes found, or why there is nothing."""
    with places(point.n_devices) as all_places:
        calls = [(point, place if point.strategy != "single" else None) for place in all_places]
        try:
            return workers.call_together(rate, calls, time_limit_s=300)
        except Exception as error:  # a strategy that fails must not cost the others' figures
            print("".join(getattr(error, "__notes__", [])), file=sys.stderr)
            asked = {"strategy": point.strategy, "n_devices": point.n_devices, "batch_size": point.batch_size}
            return asked | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def points(args: argparse.Namespace) -> Iterator[Record]:
    """The rate of one device, then every strategy on every number of them, each with its efficiency."""
    cell = cell_for(SMOKE if args.smoke else [*LM, "backbone.positions=learned"])
    vocab_size, batch = (64, 4) if args.smoke else (LM_VOCAB, args.batch)
    alone = Point(cell, "single", 1, vocab_size, batch, args.steps)
    one = measured(alone) | {"mode": "-"}
    yield one | {"efficiency": 1.0}
    for strategy in args.strategies.split(","):
        for n in map(int, args.devices.split(",")):
            for mode in args.modes.split(","):
                whole = batch * n if mode == "weak" else batch
                shared = alone._replace(strategy=strategy, n_devices=n, batch_size=whole)
                found = measured(shared) | {"mode": mode}
                if "tokens_per_s" in found and "tokens_per_s" in one:
                    found["efficiency"] = found["tokens_per_s"] / (n * one["tokens_per_s"])
                yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", help="how many, for example 2,4,8 (default: all GPUs; with --smoke 2 processes)")
    parser.add_argument("--strategies", default="ddp,fsdp", help="of: ddp, fsdp")
    parser.add_argument("--modes", default="weak,strong", help="of: weak, strong")
    parser.add_argument("--batch", type=int, default=LM_BATCH, help=f"sequences on one device (default: {LM_BATCH})")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a point (default: 20)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on a CPU: does it run?")
    parser.add_argument("--out", type=Path, default=Path("results/scaling.json"))
    args = parser.parse_args()
    args.devices = args.devices or str(2 if args.smoke else torch.cuda.device_count())
    found: dict[str, Any] = {"commit": provenance.commit().name, "versions": provenance.versions(), "points": []}
    found["device"] = workers.call(_device, "cpu" if args.smoke else "auto", time_limit_s=120)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for record in points(args):
        found["points"].append(record)
        print(json.dumps(record), file=sys.stderr, flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    table = [{name: record.get(name) for name in COLUMNS} for record in found["points"]]
    print(tabulate(table, headers="keys", floatfmt=".4g", tablefmt="github"), flush=True)


def _device(name: str) -> str:
    return device_name(pick_device(name))


if __name__ == "__main__":
    main()
