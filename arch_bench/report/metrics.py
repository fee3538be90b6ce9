"""The quantities that are drawn: what each is called, how it is shown, and which direction is better."""

from __future__ import annotations

from dataclasses import dataclass

from arch_bench.report import units
from arch_bench.results import Kind


@dataclass(frozen=True)
class Metric:
    """One metric of one kind of row."""

    name: str
    kind: Kind
    title: str
    """What a panel is headed with; a unit that `show` leaves out stands here."""
    show: units.Show
    is_log: bool = True
    is_higher_better: bool = False
    is_bytes: bool = False

    @property
    def sign(self) -> int:
        """Multiplied with a value: larger is better."""
        return 1 if self.is_higher_better else -1


ACCURACY = Metric("token_accuracy", "quality", "token accuracy", units.percent, is_log=False, is_higher_better=True)
BITS_PER_BYTE = Metric("bits_per_byte", "quality", "bits per byte", units.decimal, is_log=False)
TOKENS_PER_S = Metric("tokens_per_s", "speed", "training tokens/s", units.count, is_higher_better=True)
TRAIN_STEP = Metric("train_step_ms", "speed", "training step, ms", units.plain)
PEAK_MEMORY = Metric("peak_mem_bytes", "speed", "peak memory, training", units.size, is_bytes=True)
MS_PER_TOKEN = Metric("ms_per_token", "decode", "decode, ms per token", units.plain)
PREFILL = Metric("prefill_ms", "decode", "prefill, ms", units.plain)
STATE = Metric("state_bytes", "decode", "state", units.size, is_bytes=True)

TRAINING = (TOKENS_PER_S, TRAIN_STEP, PEAK_MEMORY)
DECODING = (MS_PER_TOKEN, PREFILL, STATE)
SOLVED = 0.99
"""Token accuracy from which a seed counts as having solved the task."""
