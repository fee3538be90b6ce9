"""The command `arch-bench-task`: show a few examples of a task, as model inputs and as scored."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from arch_bench.config.errors import one_line
from arch_bench.config.instantiate import build
from arch_bench.config.schema import CONF, Cell, ConfigError, cell_of, compose
from arch_bench.config.usage import options
from arch_bench.runtime.console import leavable
from tasks.base import IGNORE, Task, stream

USAGE = """\
arch-bench-task TASK [n=3] [KEY=VALUE ...]: examples of a task, scored positions in colour

  arch-bench-task mqar n=3 seq_len=32 task.n_pairs=4 task.vocab_size=32 seed=1

Tasks: {tasks}
"""
LABELS = ("position", "token", "target")
CPU = torch.device("cpu")
MOST = 100_000
"""Maximum examples drawn, and shown, at once."""


def main() -> None:
    """Run the command. Exit codes: 0 done, 1 a bug (with traceback) or a full disk, 2 a user error (one line)."""
    with leavable() as streams:
        _main(sys.argv[1:])
    if streams.full:
        print(f"arch-bench-task: standard output: {streams.full}", file=sys.stderr)
        sys.exit(1)


def _main(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(USAGE.format(tasks=", ".join(options(CONF, "task"))), end="")
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        n, cell = _parse(arguments)
        with _room(n, cell):
            task: Task = build(cell, "task")
            print_examples(cell.task_name, task.for_split("train"), n, cell.seed, Console(highlight=False))
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        print(f"arch-bench-task: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _room(n: int, cell: Cell) -> Iterator[None]:
    """Raise ConfigError if examples do not fit into memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise ConfigError(f"n={n}, seq_len={cell.seq_len}: does not fit into memory. Give less") from error


def _parse(arguments: Sequence[str]) -> tuple[int, Cell]:
    """Return the number of examples, and the cell described by the overrides. Raises ConfigError and composing's
    errors."""
    name, *others = arguments
    if wrong := [name] * ("=" in name) + [each for each in others if "=" not in each]:
        raise ConfigError(f"{wrong[0]}: a task comes first, then KEY=VALUE, as in: mqar n=3 seq_len=32")
    counts = [each.removeprefix("n=") for each in others if each.startswith("n=")]
    n = counts[-1] if counts else "3"
    if not n.isdecimal() or not 1 <= int(n) <= MOST:
        raise ConfigError(f"n={n} is not a number of examples; give 1 or more, at most {MOST:,}")
    overrides = [each for each in others if not each.startswith("n=")]
    return int(n), cell_of(compose([f"task={name}", *overrides]))


def print_examples(name: str, task: Task, n: int, seed: int, console: Console) -> None:
    """Print `n` examples, the first of the training split."""
    inputs, targets = task.sample(n, stream(seed, "train", 0, CPU), CPU)
    guesses = ", ".join(f"{guess} {score:.3g}" for guess, score in task.baselines().items())
    console.print(f"{name}: {task.seq_len:,} positions, at most {task.max_scored:,} scored, {task.vocab_size:,} tokens")
    console.print(f"guessing scores: {guesses}")
    for i, (tokens, wanted) in enumerate(zip(inputs.tolist(), targets.tolist(), strict=True), 1):
        console.print(f"\nexample {i}", style="bold")
        for rows in _folded(_columns(task, tokens, wanted), console.width):
            console.print(rows)


def _columns(task: Task, tokens: list[int], targets: list[float]) -> list[tuple[Text, Text, Text]]:
    """Return position, token and target; scored entries are highlighted."""
    columns = []
    for position, (token, target) in enumerate(zip(tokens, targets, strict=True)):
        is_scored = target != IGNORE
        shown = Text(task.word(token), style="bold" if is_scored else "")
        wanted = Text(_answer(task, target), style="bold green") if is_scored else Text(".", style="dim")
        columns.append((Text(str(position), style="dim"), shown, wanted))
    return columns


def _answer(task: Task, target: float) -> str:
    return task.word(int(target)) if task.tolerance is None else f"{target:.3g}"


def _folded(columns: list[tuple[Text, Text, Text]], width: int) -> Iterator[Table]:
    """Yield tables with as many columns as fit the width."""
    room = width - max(map(len, LABELS))
    line: list[tuple[Text, Text, Text]] = []
    used = 0
    for column in columns:
        wide = max(cell.cell_len for cell in column) + 1
        if line and used + wide > room:
            yield _table(line)
            line, used = [], 0
        line.append(column)
        used += wide
    yield _table(line)


def _table(columns: list[tuple[Text, Text, Text]]) -> Table:
    table = Table.grid(padding=(0, 0, 0, 1))
    table.add_column(style="dim")
    for _ in columns:
        table.add_column(justify="right", no_wrap=True)
    for label, *cells in zip(LABELS, *columns, strict=True):
        table.add_row(label, *cells)
    return table


if __name__ == "__main__":
    main()
