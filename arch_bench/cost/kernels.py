"""Phase `kernels`: time one sequence mixer with each of its implementations, and with a library's own layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from arch_bench.backbone import Backbone
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, ConfigError, with_kernel
from arch_bench.cost import check
from arch_bench.ops.kernel import Unsupported
from arch_bench.results import Metrics, Outcome
from arch_bench.runtime.cuda_graph import capture
from arch_bench.runtime.measure import PeakMemory, Stopwatch, Timing, forget_workspaces, pick_device, warm_up
from arch_bench.runtime.precision import autocast, pick_precision
from arch_bench.runtime.seed import narrow

SIZES = {"vocab_size": 16}
"""Sizes of the model around the mixer, which is not timed."""
N_INPUTS = 4
"""Number of inputs in rotation, so that no call finds its own in a cache."""


def contenders(cell: Cell) -> list[str]:
    """List every implementation of a cell's mixer, including those that cannot run here, and the bare calls.

    Raises ConfigError for a backbone with several mixers, which have no kernel in common.
    """
    if (pattern := cell.backbone["pattern"]) is not None:
        raise ConfigError(f"phases=[kernels] compares the kernels of one mixer; choose one of {', '.join(pattern)}")
    try:
        mixer = _backbone(cell, "auto", cell.seq_len).mixer
    except Unsupported:  # its row will record the reason
        return ["auto"]
    return [*mixer.kernels, *mixer.bare()]


def measure(cell: Cell, seq_len: int, name: str) -> Outcome:
    """Time forward, and forward + backward, of one layer on random activations (batch, seq_len, d_model).

    On CUDA both are graph replays: device time without launch time. The batch is that of the phase `speed`. Raises
    Unsupported when the contender cannot run here, or is off its reference.
    """
    device = pick_device(cell.device)
    memory = PeakMemory(device, is_fresh=cell.isolate)
    contest = _contest(cell, seq_len, name, device)
    watch = Stopwatch(device)
    metrics: Metrics = {"step": "graph"}
    for what, run in {"forward": contest.forward, "forward_backward": contest.both}.items():
        call = _captured(run, device)
        times = _timed(call.run, contest, watch, cell)
        metrics |= {**Timing(times).summary(what), "n_timed": len(times)}
        metrics |= {} if call.is_graph else {"step": "eager"}
        del call  # a graph keeps its buffers: two of them, or one beside the plain pass, may not fit
        memory.restart()
    return Outcome(seq_len=seq_len, kernel=name, metrics=metrics | contest.facts | _memory(contest, memory))


class Contest(NamedTuple):
    """Contender that is ready to run."""

    forward: Callable[[], Tensor]
    both: Callable[[], None]
    refill: Callable[[int], None]
    """Function that copies the i-th input to where the next call reads it."""
    facts: Metrics
    device: torch.device
    living: list[Tensor]
    """Tensors that exist before the first call."""


def _contest(cell: Cell, seq_len: int, name: str, device: torch.device) -> Contest:
    torch.manual_seed(narrow(cell.seed))
    auto = _backbone(cell, "auto", seq_len).mixer
    bare = auto.bare()
    layer: Callable[[Tensor], Tensor]
    facts: Metrics = {"is_auto": int(name == auto.kernel), "is_bare": int(name in bare)}
    if name in bare:
        layer = bare[name]
    else:
        backbone = _backbone(cell, name, seq_len)
        sizes = SIZES | {"max_len": seq_len}
        facts |= check.check(cell, backbone, pick_precision(cell.precision, device), **sizes)
        layer = backbone.mixer
    batch_size = 1 if cell.speed.batching == "single" else max(1, cell.speed.tokens_per_step // seq_len)
    facts |= {"batching": cell.speed.batching, "batch_size": batch_size, "tokens_per_step": batch_size * seq_len}
    facts["n_params"] = sum(p.numel() for p in auto.parameters())
    return _prepared(cell, layer, (batch_size, seq_len, cell.d_model), facts, device)


def _prepared(
    cell: Cell, layer: Callable[[Tensor], Tensor], shape: tuple[int, ...], facts: Metrics, device: torch.device
) -> Contest:
    inputs = [torch.randn(shape, device=device) for _ in range(N_INPUTS)]
    x = inputs[0].clone().requires_grad_()
    upstream = torch.randn(shape, device=device)
    precision = pick_precision(cell.precision, device)
    owner = getattr(layer, "__self__", layer)  # a bare call may be a method of the mixer, whose weights it uses
    weights = [*owner.parameters()] if isinstance(owner, nn.Module) else []

    def forward() -> Tensor:
        with autocast(precision, device):
            return layer(x)

    def both() -> None:
        y = forward()
        torch.autograd.grad(y, [x, *weights], upstream.to(y.dtype), allow_unused=True)

    @torch.no_grad()
    def refill(i: int) -> None:
        x.copy_(inputs[i % N_INPUTS])

    return Contest(forward, both, refill, facts, device, [*inputs, x, upstream, *weights])


class Call(NamedTuple):
    run: Callable[[], object]
    is_graph: bool


def _captured(run: Callable[[], object], device: torch.device) -> Call:
    """Capture a call as a graph, or return it as it is. Raises Unsupported when it does not run at all."""
    try:
        run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # libraries raise this for a shape or device that they do not support
        raise Unsupported(str(error).strip().splitlines()[0]) from error
    if device.type == "cuda":
        try:
            return Call(capture(run), is_graph=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            pass
    return Call(run, is_graph=False)


def _timed(run: Callable[[], object], contest: Contest, watch: Stopwatch, cell: Cell) -> list[float]:
    """Time each call in milliseconds."""
    warm = warm_up(run, watch, cell.speed.max_seconds)
    n = max(3, min(cell.speed.n_steps, int(cell.speed.max_seconds / warm[-1])))
    marks: list[tuple[Any, Any]] = []
    for i in range(n):
        contest.refill(i)
        start = watch.mark()
        run()
        marks.append((start, watch.mark()))
    watch.synchronise()
    return [watch.between_ms(*pair) for pair in marks]


def _memory(contest: Contest, memory: PeakMemory) -> Metrics:
    """Measure peak bytes of forward + backward without a graph, in all and without the tensors that lived before."""
    if forget_workspaces(contest.device):
        contest.both()
    before = memory.restart(contest.living)
    contest.both()
    peak = memory.read()
    if peak is None or before is None:
        return {"peak_mem_bytes": peak}
    return {"peak_mem_bytes": peak, "activation_bytes": peak - before}


def _backbone(cell: Cell, kernel: str, max_len: int) -> Backbone:
    device = pick_device(cell.device)
    with device, autocast(pick_precision(cell.precision, device), device):
        built: Backbone = build(with_kernel(cell, kernel), "backbone", **SIZES, max_len=max_len)
    return built
