"""Small cells, and rows made by hand, for what runs sweeps of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from arch_bench.cell.run import final
from arch_bench.cell.shape import Usage, to_row
from arch_bench.config.schema import Cell, cell_of, compose
from arch_bench.results import Outcome, Row

TINY = [
    *("logger=none", "device=cpu", "precision=fp32", "isolate=false", "seq_len=16", "d_model=16", "n_layers=1"),
    *("task.n_pairs=2", "task.vocab_size=64", "eval_scales=[1]", "trainer.max_steps=2", "trainer.batch_size=4"),
    *("trainer.val_every=2", "trainer.n_val_batches=1", "trainer.n_test_batches=1", "phases=[quality]"),
    *("speed.lengths=[16]", "decode.lengths=[16]", "decode.n_tokens=4"),
]


@cache
def _base(*overrides: str) -> Cell:
    return cell_of(compose([*TINY, *overrides]))


def cell(folder: Path, *overrides: str, lr: float | None = None, **changes: Any) -> Cell:
    """A cell that takes a moment; `changes` are to its fields."""
    base = _base(*overrides)
    optim = base.optim if lr is None else base.optim.model_copy(update={"lr": lr})
    return base.model_copy(update={"results_dir": str(folder), "optim": optim} | changes)


def row(
    of: Cell,
    kind: Any = "scan",
    *,
    loss: float | None = None,
    steps: int | None = None,
    wall_s: float | None = None,
    **outcome: Any,
) -> Row:
    """A row of a cell, as if it had been measured."""
    metrics: Any = {} if loss is None else {"val_loss_nats": loss, "steps": steps or of.trainer.max_steps}
    found = Outcome(seq_len=of.seq_len, metrics=metrics, **outcome)
    return to_row(final(of)[0], kind, found, Usage(wall_s, None))
