"""Phase `decode`: cost of a prompt and of each further token at each context length, and size of the state."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arch_bench.backbone import Backbone
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell
from arch_bench.cost import check
from arch_bench.cost.ceiling import copy_gb_per_s
from arch_bench.cost.energy import joules_per_call
from arch_bench.mixers.base import Mixer, State, count_bytes, tensors
from arch_bench.results import Metrics, Outcome
from arch_bench.runtime.cuda_graph import capture
from arch_bench.runtime.decoder import Decoder, EagerDecoder, GraphDecoder
from arch_bench.runtime.measure import PeakMemory, Stopwatch, Timing, percentile, pick_device, time_calls, warm_up
from arch_bench.runtime.precision import autocast, pick_precision
from arch_bench.runtime.seed import narrow

N_PREFILLS = 5
"""Number of timed prompts; each writes a fresh state."""
MAX_BATCH = 1024
"""Maximum number of sequences with `decode.batching=largest`: a state of constant size would fit millions."""


@torch.no_grad()  # not inference mode, in which autocast would cast every weight anew at every token
def measure(cell: Cell, context_len: int) -> Outcome:
    """Time a prompt of `context_len` random tokens, then `decode.n_tokens` single tokens.

    Both run eagerly and, on CUDA, as a graph of the same work. `ms_per_token` is one step of all sequences and
    `prefill_ms` one prompt, run as `step` and `prefill_step` record; the eager times end in `_eager`. `step_kernel`
    names the kernel of a step, which differs from that of the parallel form. With `decode.batching=largest`, as many
    sequences as fit decode together, a power of two up to MAX_BATCH, from an empty state of that context's size; no
    prompt is timed then. `peak_mem_bytes` is the peak of all of it.
    """
    device = pick_device(cell.device)
    memory = PeakMemory(device, is_fresh=cell.isolate)
    watch = Stopwatch(device)
    precision = pick_precision(cell.precision, device)
    torch.manual_seed(narrow(cell.seed))
    vocab_size = build(cell, "task").vocab_size
    total = context_len + cell.decode.n_tokens
    checked = check.check_decode(cell, precision, vocab_size, device)
    with device, autocast(precision, device):
        sizes = {"vocab_size": vocab_size, "max_len": total, "context_len": context_len}
        backbone: Backbone = build(cell, "backbone", **sizes).eval()
        metrics: Metrics = checked | _sizes(backbone, context_len)
        memory.restart(backbone.parameters())  # excludes the states above, and the trial of attention's backends
        start, prompt_metrics = _start(cell, backbone, context_len, watch)
        metrics |= prompt_metrics | _decoded(backbone, start, cell, watch) | {"peak_mem_bytes": memory.read()}
    metrics |= {"batching": cell.decode.batching, "batch_size": start.batch_size}
    del start
    memory.restart()  # room for the buffers of the copy
    metrics |= {"step_kernel": backbone.step_kernel, **_traffic(backbone, metrics, precision, watch, device)}
    return Outcome(seq_len=context_len, kernel=backbone.kernel, metrics=metrics)


def _sizes(backbone: Backbone, context_len: int) -> Metrics:
    """Return the size of one sequence's state at that context, counted from its tensors, and the parameter count."""
    state = backbone.init_state(1, context_len)
    n_elements = sum(t.numel() for t in tensors(state))
    return {"state_bytes": count_bytes(state), "state_elements": n_elements, "n_params": backbone.n_params()}


class Start(NamedTuple):
    """Starting point of decoding."""

    batch_size: int
    state: State


def _start(cell: Cell, backbone: Backbone, context_len: int, watch: Stopwatch) -> tuple[Start, Metrics]:
    """Return a prompt's state and the prompt's metrics; for the largest batch, an empty state and no metrics."""
    total = context_len + cell.decode.n_tokens
    if cell.decode.batching == "largest":
        return _largest(backbone, context_len, total), {}
    device = backbone.embedding.weight.device
    prompt = torch.randint(backbone.head.out_features, (1, context_len), device=device)
    times, state = _prefills(backbone, prompt, total, watch)
    found: Metrics = {"prefill_ms_eager": statistics.median(times), "prefill_step": "eager"}
    if device.type == "cuda":
        try:
            again = capture(lambda: backbone.prefill(prompt, state))  # it fills the same state
            times = time_calls(again, watch, N_PREFILLS, max_warm_up_s=1)
            found["prefill_step"] = "graph"
        except RuntimeError as error:
            found["prefill_step_why"] = f"graph: {str(error).strip().splitlines()[0]}"
    return Start(1, state), found | Timing(times).summary("prefill")


def _largest(backbone: Backbone, context_len: int, total: int) -> Start:
    """Find by trial the largest power of two whose states fit in free memory together with a step's needs."""
    device = backbone.embedding.weight.device
    bytes_each = count_bytes(backbone.init_state(1, total))
    size = min(MAX_BATCH, 2 ** max(0, int(_free_bytes(device) // bytes_each).bit_length() - 1))
    while True:
        try:
            state = backbone.init_state(size, total, position=context_len)
            backbone.step(torch.zeros(size, dtype=torch.long, device=device), state)
            return Start(size, state)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        state, size = (), size // 2  # outside the handler, nothing holds the tensors that did not fit
        torch.cuda.empty_cache()


def _free_bytes(device: torch.device) -> int:
    """Return the bytes of free memory; only half of the host's, since the OOM killer acts too late."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _prefills(backbone: Backbone, prompt: Tensor, total: int, watch: Stopwatch) -> tuple[list[float], State]:
    """Time the prompts in ms; return the times and the state after the last prompt."""
    state: State = ()

    def prefill() -> tuple[Any, Any]:
        nonlocal state
        state = ()  # free the old state first: two of them would double the peak
        state = backbone.init_state(len(prompt), total)
        start = watch.mark()
        _, state = backbone.prefill(prompt, state)
        return start, watch.mark()

    warm_up(prefill, watch, max_seconds=1)
    marks = [prefill() for _ in range(N_PREFILLS)]
    watch.synchronise()
    return [watch.between_ms(*pair) for pair in marks], state


def _decoded(backbone: Backbone, start: Start, cell: Cell, watch: Stopwatch) -> Metrics:
    """Time both ways to run a step on the same tokens, and measure the energy of the graph, or of eager without one."""
    device = backbone.embedding.weight.device
    tokens = torch.randint(backbone.head.out_features, (start.batch_size, cell.decode.n_tokens), device=device)
    eager: Decoder = EagerDecoder(backbone, start.state)
    times, wall_s = _decode(eager, tokens, watch)
    found: Metrics = {"ms_per_token_eager": statistics.median(times), "step": "eager"}
    decoder = eager
    if device.type == "cuda":
        try:
            decoder = GraphDecoder(backbone, start.state, tokens[:, 0])
            times, wall_s = _decode(decoder, tokens, watch)
            found["step"] = "graph"
        except RuntimeError as error:
            found["step_why"] = f"graph: {str(error).strip().splitlines()[0]}"
    found |= {"ms_per_token": statistics.median(times)}
    found |= {f"ms_per_token_p{percent}": percentile(times, percent) for percent in (10, 90, 95)}
    found["tokens_per_s_decode"] = start.batch_size * len(times) / wall_s
    joules = joules_per_call(lambda: _decode_once(decoder, tokens, watch), watch, device)
    return found | ({} if joules is None else {"joules_per_token": joules / tokens.numel()})


def _decode(decoder: Decoder, tokens: Tensor, watch: Stopwatch) -> tuple[list[float], float]:
    """Decode the tokens from the same state until two passes agree within 5 %, at most 6 times.

    Return the last pass: times in ms, and its wall clock in s.
    """
    medians: list[float] = []
    while len(medians) < 2 or (len(medians) < 6 and abs(medians[-1] - medians[-2]) > 0.05 * medians[-1]):
        times, wall_s = _decode_once(decoder, tokens, watch)
        medians.append(statistics.median(times))
    return times, wall_s


def _decode_once(decoder: Decoder, tokens: Tensor, watch: Stopwatch) -> tuple[list[float], float]:
    decoder.restart()
    watch.synchronise()
    started = time.perf_counter()
    marks = [watch.mark()]
    for token in tokens.unbind(1):
        decoder(token)
        marks.append(watch.mark())
    watch.synchronise()
    wall_s = time.perf_counter() - started
    return [watch.between_ms(*pair) for pair in itertools.pairwise(marks)], wall_s


def _traffic(
    backbone: Backbone, metrics: Metrics, precision: str, watch: Stopwatch, device: torch.device
) -> dict[str, float]:
    """Compute `gb_per_s`: the fewest bytes that a step must move (every weight and state once) over its time.

    Add the rate of a plain copy, measured in this process. Return neither if a step reads only part of its state.
    """
    if not backbone.reads_whole_state:
        return {}
    states = float(metrics["state_bytes"] or 0) * int(metrics["batch_size"] or 0)
    gb_per_s = (_weight_bytes(backbone, precision) + states) / float(metrics["ms_per_token"] or 0) / 1e6
    return {"gb_per_s": gb_per_s, "copy_gb_per_s": copy_gb_per_s(watch, device)}


def _weight_bytes(backbone: Backbone, precision: str) -> int:
    """Count the bytes of a step's weights, in the precision of their product.

    Tables before the blocks are left out, since a step reads only one row of each.
    """
    mixers = [mixer for mixer in backbone.modules() if isinstance(mixer, Mixer) and mixer.keeps_precision]
    kept = {id(weight) for mixer in mixers for weight in mixer.parameters()}
    rounded = 2 if precision == "bf16" else 4
    return sum(weight.numel() * (4 if id(weight) in kept else rounded) for weight in backbone.stepping())
