"""A sweep as the user sees it: where it stands while it runs, and what it found when it ends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from arch_bench.config import Cell
from arch_bench.results import Row, load


class Sweep:
    """Counts the cells of this process's sweep."""

    def __init__(self) -> None:
        self.n_cells = 1
        self.name: str | None = None
        self.mistakes: list[str] = []
        self.results_dir = Path()
        self._started = time.monotonic()

    def begin(self, cfg: DictConfig) -> None:
        """Note a sweep (a single cell never calls this)."""
        self.name, self.results_dir = cfg.name, Path(cfg.results_dir)
        in_file = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
        parsed = OverridesParser.create().parse_overrides(in_file + list(cfg.hydra.overrides.task))
        axes = {axis.key_or_group: axis for axis in parsed}  # the command line comes last and wins
        self.n_cells = 1
        for axis in axes.values():
            if axis.is_sweep_override():
                self.n_cells *= len(list(axis.sweep_string_iterator()))

    def announce(self, cell: Cell) -> None:
        """Say which cell begins."""
        where = f"[{HydraConfig.get().job.num + 1}/{self.n_cells}] " if self.name else ""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        print(
            f"{where}{cell.backbone_name} on {cell.task_name}, seq_len {cell.seq_len}, seed {cell.seed}"
            f"  ({minutes}:{seconds:02} since start)",
            flush=True,
        )

    def finish(self) -> None:
        """After a sweep: the table in the terminal, and the report of its experiment on disk."""
        if self.name is None:
            return
        from arch_bench import report

        rows = [row for row in load([self.results_dir]) if row.experiment == self.name]
        if rows:
            print("\n" + report.summary(rows))
            page = report.build(rows, self.results_dir / self.name, self.name)
            print(f"\nreport: {page}  (beside it: report.md, rows.csv, figures/)")


SWEEP = Sweep()


class Announce(Callback):
    """Tells `SWEEP` that Hydra starts several jobs. Nothing is built in on_multirun_end: a failed job skips it."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SWEEP.begin(config)


def line(row: Row) -> str:
    """One finished row, for the terminal."""
    found = _FIGURES[row.kind](row.metrics) if row.status == "ok" else f"{row.status}: {row.reason}"
    who = f"{row.kernel:<16}" if row.kind == "kernels" else ""
    return f"    {row.kind:<8}{row.seq_len:>9,} tokens   {who}{found}"


def _quality(m: dict[str, Any]) -> str:
    is_text = "bits_per_byte" in m
    score = f"{m['bits_per_byte']:.3f} bits per byte" if is_text else f"{m['token_accuracy']:.1%} of tokens right"
    return f"{score} after {m['steps']:,} steps, {m['train_s']:.1f} s"


def _scan(m: dict[str, Any]) -> str:
    name = "val_mse" if "val_mse" in m else "val_loss_nats"
    return f"{name} {m[name]:.4g} after {m['steps']:,} steps, {m['train_s']:.1f} s"


def _speed(m: dict[str, Any]) -> str:
    peak = m["peak_mem_bytes"]
    memory = f", {peak / 2**20:,.0f} MiB" if peak is not None else ""
    return f"{m['train_step_ms']:.1f} ms a step, {m['tokens_per_s']:,.0f} tokens/s{memory}"


def _decode(m: dict[str, Any]) -> str:
    prompt = f"prefill {m['prefill_ms']:.1f} ms, " if "prefill_ms" in m else ""
    pace = f"{m['ms_per_token']:.2f} ms a token for {m['batch_size']:,}"
    return f"{prompt}{pace}, state {m['state_bytes'] / 2**10:,.1f} KiB each"


def _kernels(m: dict[str, Any]) -> str:
    mark = "  (auto)" if m["is_auto"] else "  (bare)" if m["is_bare"] else ""
    return f"{m['forward_ms']:.2f} ms forward, {m['forward_backward_ms']:.2f} ms with backward{mark}"


_FIGURES = {"quality": _quality, "scan": _scan, "speed": _speed, "decode": _decode, "kernels": _kernels}
