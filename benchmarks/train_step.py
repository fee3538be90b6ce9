"""How fast the harness trains, beside the loops that people write. Each figure comes from a process of its own.

    python benchmarks/train_step.py                       # everything
    python benchmarks/train_step.py --only steps,lm       # some of it
    python benchmarks/train_step.py --smoke               # all of it in miniature, on a CPU too

Prints a table for each part and writes what it measured to results/train_step.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import stock
import torch
from tabulate import tabulate

from arch_bench import tracking
from arch_bench.backbone import TRAIN_PER_FORWARD
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, cell_of, compose
from arch_bench.cost.ceiling import matmul_tflops
from arch_bench.ops import linear_cross_entropy as head
from arch_bench.results import provenance
from arch_bench.runtime import workers
from arch_bench.runtime.measure import Stopwatch, Timing, device_name, pick_device, warm_up
from arch_bench.runtime.precision import autocast, pick_precision, set_tf32
from arch_bench.train import fit
from arch_bench.train.data import TaskData
from arch_bench.train.module import LitSequence
from arch_bench.train.step import Scored, TrainStep, list_scored, pick_step
from arch_bench.train.team import SOLO
from arch_bench.train.trainer import make_trainer
from tasks.base import Task, stream

Record = dict[str, Any]
SIZES = {"d128_b256": (128, 256), "d64_b64": (64, 64)}
MQAR = ["task=mqar", "seq_len=256", "task.n_pairs=64", "task.vocab_size=8192", "n_layers=2"]
"""The cell of the comparison: 64 pairs in 256 tokens, a vocabulary of 8,192, two layers."""
CONTENDERS = {
    "transformer": [],
    "zoology": ["backbone.positions=learned", "backbone.mixer.n_heads=1", "backbone.mlp=none"],
    "local_attention": ["backbone=local_attention"],
    "lstm": ["backbone=lstm"],
    "mamba": ["backbone=mamba", "kernel=mamba_ssm"],
    "mamba_chunked": ["backbone=mamba", "kernel=chunked"],
}
LM = ["task=text", "seq_len=1024", "d_model=768", "n_layers=12", "backbone.mixer.n_heads=12"]
LM_VOCAB = 50_304  # GPT-2's 50,257, rounded up to a multiple of 64
LM_BATCH = 64
SOLVE = [
    *(*MQAR, "d_model=64", "backbone.d_conv=4", "backbone.mixer.n_heads=1", "phases=[quality]", "eval_scales=[1]"),
    *(
        "trainer.batch_size=64",
        "trainer.max_steps=6000",
        "trainer.val_every=250",
        "trainer.stop_at=0.99",
        "optim.lr=1e-2",
    ),
]
"""What reaches 99 %: the short convolution that recall wants, one head as in Zoology, and a rate that was searched."""
SMOKE = ["task=mqar", "seq_len=32", "task.n_pairs=4", "task.vocab_size=64", "n_layers=1"]


def cell_for(overrides: list[str]) -> Cell:
    return cell_of(compose(["logger=none", *overrides]))


def model_and_task(cell: Cell, **sizes: int) -> tuple[Any, Task]:
    task: Task = build(cell, "task").for_split("train")
    torch.manual_seed(cell.seed)
    device = pick_device(cell.device)
    set_tf32(cell.precision)  # as a cell does: PyTorch lets cuDNN round
    with device, autocast(pick_precision(cell.precision, device), device):
        return build(cell, "backbone", **({"vocab_size": task.vocab_size} | sizes)), task


def make_step(cell: Cell, backbone: Any, loss_kernel: str = "full") -> TrainStep:
    device = pick_device(cell.device)
    return TrainStep(
        backbone,
        cell.optim,
        max_steps=cell.trainer.max_steps,
        kind=pick_step(cell.step, device),
        precision=pick_precision(cell.precision, device),
        loss_kernel=loss_kernel,
    )


def bare(cell: Cell) -> Record:
    """The step alone, on four batches that are there: the median of five windows."""
    backbone, task = model_and_task(cell)
    step = make_step(cell, backbone)
    return _bare(step, cell, task)


def _bare(step: TrainStep, cell: Cell, task: Task) -> Record:
    size, device = cell.trainer.batch_size, step.device
    batches = [list_scored(task.sample(size, stream(0, "train", i, device), device), task.max_scored) for i in range(4)]
    found = _paced(step, batches, max(4, cell.trainer.max_steps // 10))
    ran = {"step": step.kind, "why": step.why, "kernel": step.backbone.kernel, "loss_kernel": step.loss_kernel}
    return found | ran | {"compile_s": step.settle_s}


def _paced(step: Callable[[Scored], None], batches: list[Scored], n_steps: int) -> Record:
    watch = Stopwatch(batches[0].inputs.device)
    rates = []
    for _ in range(6):  # the first window warms up
        watch.synchronise()
        started = time.perf_counter()
        for i in range(n_steps):
            step(batches[i % len(batches)])
        watch.synchronise()
        rates.append(n_steps / (time.perf_counter() - started))
    return {"steps_per_s": statistics.median(rates[1:]), "slowest": min(rates[1:]), "fastest": max(rates[1:])}


def harness(cell: Cell) -> Record:
    """The step by itself, where its time goes, then the same step inside the Trainer: one process, one capture."""
    backbone, task = model_and_task(cell)
    step = make_step(cell, backbone)
    found = _bare(step, cell, task)
    if cell.logger.kind == "none" and step.device.type == "cuda":
        found["profile"] = profile(step, cell, task)
    found["in_trainer"] = _in_trainer(step, cell, task)
    found["overhead"] = 1 - found["in_trainer"] / found["steps_per_s"]
    return found


def _in_trainer(step: TrainStep, cell: Cell, task: Task) -> float:
    """Steps per second with fresh data for every step, a progress bar and curves to the logger."""
    fixed = cell.trainer
    sizes: dict[str, Any] = {
        "batch_size": fixed.batch_size,
        "n_steps": fixed.max_steps,
        "val_every": fixed.max_steps,
        "n_val": 1,
    }
    data = TaskData(task, seed=0, device=step.device, **sizes)
    pace = stock.Pace(first=fixed.max_steps // 4)
    precision = pick_precision(cell.precision, step.device)
    lit = LitSequence(step, precision=precision, trained_len=cell.seq_len, bytes_per_token=None, tolerance=None)
    with tracking.track(cell) as tracker:
        callbacks = [fit.Watch(None), fit.Bar(), pace]
        options = {"max_steps": fixed.max_steps, "val_check_interval": data.val_check_interval}
        make_trainer(SOLO, step.device, callbacks, tracker.lightning, **options).fit(lit, datamodule=data)
    return pace.steps_per_s


def stock_lightning(cell: Cell) -> Record:
    backbone, task = model_and_task(cell)
    with tempfile.TemporaryDirectory() as folder:
        return {"steps_per_s": stock.lightning_steps_per_s(cell, task, backbone, folder), "kernel": backbone.kernel}


def plain_loop(cell: Cell) -> Record:
    backbone, task = model_and_task(cell)
    return {"steps_per_s": stock.plain_steps_per_s(cell, task, backbone), "kernel": backbone.kernel}


def steps_part(smoke: bool, models: list[str]) -> Iterator[Record]:
    """Steps per second: the loops that people write, each way to run the harness's step, and that in the Trainer."""
    for name in models:
        for size, (d_model, batch_size) in SIZES.items():
            cell = [*MQAR, *CONTENDERS[name], f"d_model={d_model}", f"trainer.batch_size={batch_size}"]
            cell = [*SMOKE, *CONTENDERS[name], "d_model=16", "trainer.batch_size=4"] if smoke else cell
            for loop, (function, n_steps, extra) in _loops(name).items():
                fresh = cell_for([*cell, *extra, f"trainer.max_steps={20 if smoke else n_steps}"])
                yield {"model": name, "size": size, "loop": loop} | isolated(function, fresh)


def _loops(name: str) -> dict[str, tuple[Callable[[Cell], Record], int, list[str]]]:
    is_slow = "chunked" in name
    loops: dict[str, tuple[Callable[[Cell], Record], int, list[str]]] = {
        "stock Lightning": (stock_lightning, 40 if is_slow else 200, []),
        "harness": (harness, 160 if is_slow else 2400, []),
    }
    if name == "transformer":
        loops |= {
            "plain loop": (plain_loop, 200, []),
            "eager step": (bare, 400, ["step=eager"]),
            "compiled step": (bare, 400, ["step=compiled"]),
            "harness, W&B offline": (harness, 2400, ["logger=wandb"]),
        }
    return loops


def solve(cell: Cell) -> Record:
    """From nothing to 99 % on held-out examples: seconds after compiling, and seconds of compiling."""
    (outcome,) = fit.measure(cell, [cell.seq_len], None)
    found = outcome.metrics
    seconds = float(found["train_s"]) - float(found["compile_s"])
    names = ("compile_s", "steps", "steps_to_99", "val_token_accuracy", "token_accuracy", "step")
    return {"train_s": seconds} | {name: found[name] for name in names}


def solve_part(smoke: bool, models: list[str]) -> Iterator[Record]:
    """Seconds to 99 % for a few seeds, at one rate."""
    small = [*SMOKE, "d_model=16", "trainer.max_steps=20", "trainer.val_every=10", "trainer.stop_at=0.99"]
    for seed in (0, 1, 2):
        cell = cell_for([*(small if smoke else SOLVE), f"seed={seed}"])
        yield {"seed": seed} | isolated(solve, cell)


def language_model(cell: Cell, vocab_size: int, batch_size: int, loss_kernel: str) -> Record:
    """A GPT on random tokens: what a step takes, and its share of the matrix product's rate on this device."""
    backbone, _ = model_and_task(cell, vocab_size=vocab_size)
    device = pick_device(cell.device)
    ceiling = matmul_tflops(Stopwatch(device), device, pick_precision(cell.precision, device))
    step = make_step(cell, backbone, loss_kernel)
    draw = torch.Generator(device).manual_seed(0)
    shape = (batch_size, cell.seq_len + 1)
    tokens = [torch.randint(vocab_size, shape, generator=draw, device=device) for _ in range(4)]
    batches = [Scored(t[:, :-1].contiguous(), None, t[:, 1:].contiguous()) for t in tokens]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = _paced(step, batches, cell.trainer.max_steps // 5)
    tokens_per_s = found["steps_per_s"] * batch_size * cell.seq_len
    flops_per_token = TRAIN_PER_FORWARD * backbone.flops_per_token(cell.seq_len, n_scored=cell.seq_len)
    tflops = tokens_per_s * flops_per_token / 1e12
    return {
        "loss_kernel": loss_kernel,
        "n_params": backbone.n_params(),
        "tokens_per_s": tokens_per_s,
        "tflops": tflops,
        "ceiling_tflops": ceiling,
        "share": tflops / ceiling,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        "step": step.kind,
        "step_why": step.why,
        "compile_s": step.settle_s,
    }


def lm_part(smoke: bool, models: list[str]) -> Iterator[Record]:
    """A 124M GPT, with each kernel of the vocabulary projection and its loss."""
    small = ["task=text", "seq_len=32", "d_model=16", "n_layers=1", "trainer.max_steps=10"]
    chosen = small if smoke else [*LM, "backbone.positions=learned", "trainer.max_steps=60"]
    for kernel, obstacle in head.obstacles(pick_device("auto")).items():
        if obstacle is None:
            sizes = (64, 2) if smoke else (LM_VOCAB, LM_BATCH)
            yield isolated(language_model, cell_for(chosen), *sizes, kernel)


def data_rates(cell: Cell, n_examples: int) -> Record:
    """Examples per second of `sample`, made as training makes them: a block in a call."""
    device = pick_device(cell.device)
    task: Task = build(cell, "task").for_split("train")
    watch = Stopwatch(device)

    def draw() -> tuple[Any, Any]:
        rng = stream(0, "train", 0, device)
        start = watch.mark()
        list_scored(task.sample(n_examples, rng, device), task.max_scored)
        return start, watch.mark()

    warm_up(draw, watch, max_seconds=2)
    marks = [draw() for _ in range(20)]
    watch.synchronise()
    times = Timing([watch.between_ms(*pair) for pair in marks]).summary("block")
    return {
        "examples": n_examples,
        "block_ms": times["block_ms"],
        "examples_per_s": n_examples / times["block_ms"] * 1e3,
    }


def data_part(smoke: bool, models: list[str]) -> Iterator[Record]:
    """How fast each task makes examples."""
    chosen = {
        "copy_memory": ["task=copy_memory", "seq_len=256"],
        "mqar 4 pairs": ["task=mqar", "seq_len=256", "task.n_pairs=4"],
        "mqar 64 pairs": MQAR,
        "text": ["task=text", "seq_len=256"],
    }
    for name, overrides in chosen.items():
        n_examples = 64 if smoke else 2048  # a block: 32 batches of 64
        yield {"task": name} | isolated(data_rates, cell_for(overrides), n_examples)


def profile(step: TrainStep, cell: Cell, task: Task) -> Record:
    """Where the time of a replayed step goes, by kind of kernel: microseconds a step."""
    batch = list_scored(
        task.sample(cell.trainer.batch_size, stream(0, "train", 0, step.device), step.device), task.max_scored
    )
    n_steps = 10  # reading a profile takes longer than making it
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(n_steps):
            step(batch)
        torch.cuda.synchronize()
    return _by_kind(profiler, n_steps)


KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": ("gemm", "cutlass", "nvjet", "mm_", "splitk"),
    "optimiser": ("multi_tensor", "adam", "lpnorm", "cleanup"),
    "scan and recurrence": ("selective_scan", "rnn", "lstm", "persist"),
    "generated": ("triton",),
}


def _by_kind(profiler: Any, n_steps: int) -> Record:
    """Microseconds and kernels of a step by kind, and the five longest kernels."""
    spent, kernels = dict.fromkeys([*KINDS, "other"], 0.0), []
    for event in profiler.key_averages():
        if event.self_device_time_total > 0:
            kernels.append((event.self_device_time_total / n_steps, event.count / n_steps, event.key[:90]))
    for us, _, name in kernels:
        kind = next((kind for kind, words in KINDS.items() if any(w in name.lower() for w in words)), "other")
        spent[kind] += us
    longest = sorted(kernels, reverse=True)[:12]
    return {"n_kernels": sum(n for _, n, _ in kernels), "busy_us": sum(spent.values())} | spent | {"longest": longest}


def heads(kernel: str, n: int, d_model: int, vocab_size: int) -> Record:
    """Forward and backward of the vocabulary projection and its loss alone: time and peak memory."""
    device = pick_device("auto")
    x = torch.randn(n, d_model, device=device, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(vocab_size, d_model, device=device) * 0.02)
    targets = torch.randint(vocab_size, (n,), device=device)
    run = torch.compile(head.linear_cross_entropy, dynamic=False)
    watch = Stopwatch(device)

    def once() -> tuple[Any, Any]:
        x.grad = weight.grad = None
        start = watch.mark()
        with autocast(pick_precision("auto", device), device):
            loss = run(x, weight, targets, kernel=kernel)
        loss.backward()
        return start, watch.mark()

    warm_up(once, watch, max_seconds=60)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    marks = [once() for _ in range(20)]
    watch.synchronise()
    times = Timing([watch.between_ms(*pair) for pair in marks]).summary("ms")
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {"ms": times["ms_ms"], "peak_gib": peak}


def head_part(smoke: bool, models: list[str]) -> Iterator[Record]:
    """The kernels of the vocabulary projection and its loss at the sizes of the benchmark."""
    shapes = [(64, 16, 64)] if smoke else [(16384, 128, 8192), (4096, 64, 8192), (65536, 768, 50304), (65536, 768, 256)]
    for n, d_model, vocab_size in shapes:
        for kernel, obstacle in head.obstacles(pick_device("auto")).items():
            if obstacle is None:
                shape = {"n": n, "d_model": d_model, "vocab_size": vocab_size, "kernel": kernel}
                yield shape | isolated(heads, kernel, n, d_model, vocab_size)


PARTS = {
    "steps": steps_part,
    "solve": solve_part,
    "lm": lm_part,
    "data": data_part,
    "head": head_part,
}


def isolated(function: Callable[..., Record], *args: Any) -> Record:
    """What a fresh process measured, or why it could not."""
    try:
        return workers.call(function, *args, time_limit_s=300)
    except Exception as error:  # a contender that fails must not cost the others' figures
        print("".join(getattr(error, "__notes__", [])), file=sys.stderr)
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of: {', '.join(PARTS)}")
    parser.add_argument("--models", default=",".join(CONTENDERS), help=f"contenders, of: {', '.join(CONTENDERS)}")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--out", type=Path, default=Path("results/train_step.json"))
    args = parser.parse_args()
    found: dict[str, Any] = {
        "commit": provenance.commit().name,
        "versions": provenance.versions(),
        "device": workers.call(_device, time_limit_s=120),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for part in args.only.split(","):
        records = found[part] = []
        for record in PARTS[part](args.smoke, args.models.split(",")):
            records.append(record)
            print(json.dumps(record), file=sys.stderr, flush=True)
            args.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"\n{part}: {PARTS[part].__doc__}\n")
        print(tabulate([_short(r) for r in records], headers="keys", floatfmt=".4g"), flush=True)


def _short(record: Record) -> Record:
    return {name: value for name, value in record.items() if not isinstance(value, dict)}


def _device() -> str:
    return device_name(pick_device("auto"))


if __name__ == "__main__":
    main()
