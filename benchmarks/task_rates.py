"""Examples per second of every task, made as training has them made: a block of batches in one call.

    python benchmarks/task_rates.py                                          # every task, on the GPU if there is one
    python benchmarks/task_rates.py --device cpu --tasks mqar,needle --lengths 256

Each task has a process of its own. After a warm-up a block is made 20 times, or for 3 s; figures are medians over
blocks. Prints a Markdown table and writes what it measured to results/task_rates.json. Texts that would be downloaded
are left out, and lengths that a task refuses are named with its reason.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from arch_bench.config.instantiate import build
from arch_bench.config.schema import CONF, Cell, ConfigError, cell_of, compose
from arch_bench.config.usage import options
from arch_bench.results import provenance
from arch_bench.runtime import threads, workers
from arch_bench.runtime.measure import Stopwatch, Timing, device_name, pick_device, time_calls
from arch_bench.train.data import Blocks, cut
from tasks.base import Task

Record = dict[str, Any]
LENGTHS = (64, 256, 1024)
BATCH_SIZE = 64
N_STEPS = 960
"""Of the training whose blocks are made, in turn; at the three lengths they are then equally long."""
N_BLOCKS = 20
MAX_SECONDS = 3.0
"""For the timed blocks of one length, and as long for the warm-up; three blocks at least."""


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    names = args.tasks.split(",")
    texts = [name for name in names if is_downloaded(name)]
    found: Record = {
        "commit": provenance.commit().name,
        "versions": provenance.versions(),
        "device": workers.call(_device, args.device, time_limit_s=120),
        "batch_size": BATCH_SIZE,
        "downloaded_and_skipped": texts,
        "records": [],
    }
    lengths = [int(length) for length in args.lengths.split(",")]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for record in records([name for name in names if name not in texts], lengths, args.device):
        found["records"].append(record)
        print(json.dumps(record), file=sys.stderr, flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(report(found, lengths))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(options(CONF, "task")), help="by default every one in conf/task")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="tokens per example")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | mps")
    parser.add_argument("--out", type=Path, default=Path("results/task_rates.json"))
    return parser


def is_downloaded(task: str) -> bool:
    """Whether it reads another text than the one that is on every machine."""
    return compose([f"task={task}"]).task.get("path", "stdlib") != "stdlib"


def records(tasks: Sequence[str], lengths: Sequence[int], device: str) -> Iterator[Record]:
    for task in tasks:
        try:
            yield from workers.call(rates, task, lengths, device, time_limit_s=300)
        except Exception as failure:  # of this task: the others go on
            why = f"{type(failure).__name__}: {failure}"
            yield from ({"task": task, "seq_len": seq_len, "failed": why} for seq_len in lengths)


def rates(task: str, lengths: Sequence[int], device: str) -> list[Record]:
    """One task at each length; a length that it refuses has the reason."""
    found: list[Record] = []
    for seq_len in lengths:
        this = {"task": task, "seq_len": seq_len}
        try:
            cell = cell_of(compose([f"task={task}", f"seq_len={seq_len}", f"device={device}", "logger=none"]))
            found.append(this | rate(cell))
        except ConfigError as refusal:
            found.append(this | {"refused": str(refusal)})
    return found


def rate(cell: Cell) -> Record:
    """Examples per second of the train split, by the time of a block: median, 10th and 90th percentile."""
    threads.limit()
    device = pick_device(cell.device)
    task: Task = build(cell, "task")
    source = task.for_split("train").source(device)
    blocks = cut(N_STEPS, N_STEPS, BATCH_SIZE * cell.seq_len, device)
    data = Blocks(task, "train", blocks, seed=0, batch_size=BATCH_SIZE, device=source)
    watch = Stopwatch(source)
    turn = itertools.cycle(range(len(blocks)))

    def make() -> None:
        data[next(turn)]

    first_ms = max(time_calls(make, watch, 1, MAX_SECONDS))
    n = max(3, min(N_BLOCKS, int(MAX_SECONDS * 1e3 / max(first_ms, 1e-3))))
    times = Timing(time_calls(make, watch, n, 0)).summary("block")
    n_examples = len(blocks[0]) * BATCH_SIZE
    found = {"examples_per_s": n_examples / times["block_ms"] * 1e3}
    return found | times | {"examples_in_a_block": n_examples, "n_blocks": n, "made_on": source.type}


def report(found: Record, lengths: Sequence[int]) -> str:
    """The Markdown table, what was refused and why, and what was left out."""
    by_task: dict[str, dict[int, Record]] = {}
    for record in found["records"]:
        by_task.setdefault(record["task"], {})[record["seq_len"]] = record
    rows = [[f"`{task}`", *(_figure(of[length]) for length in lengths)] for task, of in by_task.items()]
    headings = ["examples/s", *(f"{length:,} tokens" for length in lengths)]
    alignment = ["left", *["right"] * len(lengths)]
    table = tabulate(rows, headings, tablefmt="pipe", disable_numparse=True, colalign=alignment)
    missing = [record for record in found["records"] if "examples_per_s" not in record]
    reasons = [f"- {r['task']} at {r['seq_len']:,}: {r.get('refused') or r['failed']}" for r in missing]
    skipped = ", ".join(f"`{name}`" for name in found["downloaded_and_skipped"])
    left_out = f"Left out, their texts would be downloaded: {skipped}." if skipped else ""
    head = f"{found['device']}, batches of {found['batch_size']}"
    return "\n\n".join(part for part in (head, table, "\n".join(reasons), left_out) if part)


def _figure(record: Record) -> str:
    if "examples_per_s" in record:
        return f"{float(format(record['examples_per_s'], '.3g')):,.0f}"
    return "refused" if "refused" in record else "failed"


def _device(name: str) -> str:
    threads.limit()
    return device_name(pick_device(name))


if __name__ == "__main__":
    main()
