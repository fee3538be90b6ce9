"""Phase `decode`: what a prompt and then each further token cost at each context length, and the state carried."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import torch

from arch_bench.config import Cell, build
from arch_bench.measure import PeakMemory, Stopwatch, Timing, percentile, pick_device, warm_up
from arch_bench.mixers.base import State, tensors
from arch_bench.precision import autocast, pick_precision
from arch_bench.results import Outcome

N_PREFILLS = 5
"""Timed prompts; each writes a fresh state."""


@torch.no_grad()  # not inference mode, in which autocast would cast every weight anew at every token
def measure(cell: Cell, context_len: int) -> Outcome:
    """Time a prompt of `context_len` random tokens, then `decode.n_tokens` single tokens, eagerly.

    `ms_per_token` is one step of all `decode.batch_size` sequences; `step_kernel` says what runs it, which is not the
    kernel of the parallel form. `peak_mem_bytes` is the peak of prompt and decoding together.
    """
    device = pick_device(cell.device)
    memory = PeakMemory(device, is_fresh=cell.isolate)
    watch = Stopwatch(device)
    n_tokens, batch_size = cell.decode.n_tokens, cell.decode.batch_size
    total = context_len + n_tokens
    torch.manual_seed(cell.seed)
    vocab_size = build(cell, "task").vocab_size
    with device:
        backbone = build(cell, "backbone", vocab_size=vocab_size, max_len=total).eval()
        tokens = torch.randint(vocab_size, (batch_size, total))
    with autocast(pick_precision(cell.precision, device), device):
        prefill_ms, state = _prefills(backbone, tokens[:, :context_len], total, watch)
        ms, wall_s = _decode(backbone, tokens[:, context_len:], state, watch)
        peak = memory.read()
        state_bytes = backbone.state_bytes(context_len)
        n_elements = sum(t.numel() for t in tensors(backbone.init_state(1, context_len)))
    metrics: dict[str, Any] = {
        **Timing(prefill_ms).summary("prefill"),
        "ms_per_token": Timing(ms).summary("token")["token_ms"],
        "ms_per_token_p10": percentile(ms, 10),
        "ms_per_token_p90": percentile(ms, 90),
        "ms_per_token_p95": percentile(ms, 95),
        "tokens_per_s_decode": batch_size * len(ms) / wall_s,
        "state_bytes": state_bytes,
        "state_elements": n_elements,
        "step_kernel": backbone.step_kernel,
        "peak_mem_bytes": peak,
        "batch_size": batch_size,
        "n_params": backbone.n_params(),
    }
    return Outcome(seq_len=context_len, kernel=backbone.kernel, metrics=metrics)


def _prefills(backbone: Any, prompt: torch.Tensor, total: int, watch: Stopwatch) -> tuple[list[float], State]:
    """Times in ms, and the state after the last prompt."""
    state: State = ()

    def prefill() -> tuple[Any, Any]:
        nonlocal state
        state = ()  # the old one goes first: two of them would double the peak
        state = backbone.init_state(len(prompt), total)
        start = watch.mark()
        _, state = backbone.prefill(prompt, state)
        return start, watch.mark()

    warm_up(prefill, watch, max_seconds=1)
    marks = [prefill() for _ in range(N_PREFILLS)]
    watch.synchronise()
    return [watch.between_ms(*pair) for pair in marks], state


def _decode(backbone: Any, tokens: torch.Tensor, state: State, watch: Stopwatch) -> tuple[list[float], float]:
    """Decode the tokens from the same state until two passes agree within 5 %, at most 6 times.

    Returns the last pass: times in ms, and its wall clock in s.
    """
    medians: list[float] = []
    while len(medians) < 2 or (len(medians) < 6 and abs(medians[-1] - medians[-2]) > 0.05 * medians[-1]):
        times, wall_s = _decode_once(backbone, tokens, state, watch)
        medians.append(statistics.median(times))
    return times, wall_s


def _decode_once(backbone: Any, tokens: torch.Tensor, state: State, watch: Stopwatch) -> tuple[list[float], float]:
    watch.synchronise()
    started = time.perf_counter()
    marks = [watch.mark()]
    for token in tokens.unbind(1):
        _, state = backbone.step(token, state)
        marks.append(watch.mark())
    watch.synchronise()
    wall_s = time.perf_counter() - started
    return [watch.between_ms(*pair) for pair in itertools.pairwise(marks)], wall_s
