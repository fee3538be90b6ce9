"""CUDA graphs: a function's device work, recorded once and replayed by a single launch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

N_WARMUP = 3
"""Runs before a capture: the first compiles and autotunes, the last proves that nothing waits for the device."""


def capture(run: Callable[[], object], stream: torch.cuda.Stream | None = None) -> Callable[[], None]:
    """Record `run`, after running it N_WARMUP times, and return its replay.

    `run` reads and writes tensors that outlive it: a replay reads its inputs from, and writes its results to, the same
    tensors. The random state is registered with the graph, so that every replay draws new numbers.

    Graphs that will be replayed concurrently must each be recorded on their own `stream`: cuBLAS has one workspace per
    stream, which graphs recorded on the same stream would both write to.

    Raises RuntimeError, with the device as usable as before, when `run` cannot be recorded, for example because it
    reads a value back to the host.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    with _on_side_stream(stream or torch.cuda.Stream()):
        for _ in range(N_WARMUP - 1):
            run()
        with _no_waiting():
            run()
    before = generator.clone_state()
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: other threads may use the device
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            run()
    except RuntimeError:
        generator.graphsafe_set_state(before)  # after a failed capture, the generator still expects one to be under way
        raise
    return graph.replay


@contextmanager
def _on_side_stream(side: torch.cuda.Stream) -> Iterator[None]:
    """Run warm-up on a side stream: a capture cannot share the default stream's state."""
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise RuntimeError in this context when a value is read back to the host."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
