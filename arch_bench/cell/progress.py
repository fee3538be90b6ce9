"""Format a finished row for the terminal, without importing torch."""

from __future__ import annotations

from typing import Any

from arch_bench.results import Row


def line(row: Row) -> str:
    """Return one finished row as a line for the terminal."""
    found = _figures(row) if row.status == "ok" else f"{row.status}: {row.reason}"
    who = f"{row.kernel:<16}" if row.kind == "kernels" else ""
    return f"    {row.kind:<8}{row.seq_len:>9,} tokens   {who}{found}"


def _figures(row: Row) -> str:
    try:
        return _FIGURES[row.kind](row.metrics)
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # of a file that somebody has edited
        return f"ok, without the figures of a {row.kind} row ({type(error).__name__}: {error})"


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
