"""The quantities that are drawn: what each is called, how it is shown, and which direction is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from arch_bench.report import facets, units
from arch_bench.results import Kind

Scale = Literal["plain", "share", "positive"]
"""What values can be, and so what an interval can hold: anything, 0 to 1, or nothing below 0."""


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
    is_share: bool = False
    """Between 0 and 1, and drawn on that axis."""
    inverse_of: str = ""
    """The time that a rate is the inverse of: the spread of one seed's rate is that of this time."""

    @property
    def sign(self) -> int:
        """Multiplied with a value: larger is better."""
        return 1 if self.is_higher_better else -1

    @property
    def scale(self) -> Scale:
        return "share" if self.is_share else "positive" if self.is_log else "plain"


ACCURACY = Metric(
    "token_accuracy", "quality", "token accuracy", units.percent, is_log=False, is_higher_better=True, is_share=True
)
GENERATED = Metric(
    "generated_sequence_accuracy",
    "quality",
    "generated answers, exact match",
    units.percent,
    is_log=False,
    is_higher_better=True,
    is_share=True,
)
BEYOND = Metric(
    "token_accuracy_beyond",
    "quality",
    "token accuracy at positions beyond the training length",
    units.percent,
    is_log=False,
    is_higher_better=True,
    is_share=True,
)
BITS_PER_BYTE = Metric("bits_per_byte", "quality", "bits per byte", units.decimal, is_log=False)
VAL_LOSS = Metric("val_loss_nats", "scan", "validation loss, nats", units.plain, is_log=False)
VAL_MSE = Metric("val_mse", "scan", "validation loss, squared error", units.plain, is_log=False)
TOKENS_PER_S = Metric(
    "tokens_per_s", "speed", "training tokens/s", units.count, is_higher_better=True, inverse_of="train_step_ms"
)
TRAIN_STEP = Metric("train_step_ms", "speed", "training step, ms", units.plain)
PEAK_MEMORY = Metric("peak_mem_bytes", "speed", "peak memory, training", units.size, is_bytes=True)
ACTIVATIONS = Metric("activation_bytes", "speed", "activations", units.size, is_bytes=True)
TRAIN_ENERGY = Metric("joules_per_token", "speed", "energy, mJ per trained token", units.milli)
MS_PER_TOKEN = Metric("ms_per_token", "decode", "decode, ms per token", units.plain)
DECODE_RATE = Metric(
    "tokens_per_s_decode", "decode", "decoded tokens/s", units.count, is_higher_better=True, inverse_of="ms_per_token"
)
DECODE_BATCH = Metric("batch_size", "decode", "largest batch", units.count, is_higher_better=True)
PREFILL = Metric("prefill_ms", "decode", "prefill, ms", units.plain)
STATE = Metric("state_bytes", "decode", "state", units.size, is_bytes=True)
DECODE_ENERGY = Metric("joules_per_token", "decode", "energy, mJ per decoded token", units.milli)
KERNEL = Metric("forward_backward_ms", "kernels", "forward + backward, ms", units.plain)
KERNEL_FORWARD = Metric("forward_ms", "kernels", "forward, ms", units.plain)
KERNEL_MEMORY = Metric("peak_mem_bytes", "kernels", "peak memory", units.size, is_bytes=True)

TRAINING = (TOKENS_PER_S, TRAIN_STEP, PEAK_MEMORY, TRAIN_ENERGY)
DECODING = (MS_PER_TOKEN, PREFILL, STATE, DECODE_ENERGY)
DECODING_MANY = (DECODE_RATE, MS_PER_TOKEN, DECODE_BATCH, DECODE_ENERGY)
GROWING = (TRAIN_STEP, MS_PER_TOKEN, PREFILL)
"""Panels that say which exponent each line grows with."""
SOLVED = 0.99
"""Token accuracy from which a seed counts as having solved the task."""
CLOSE_COST = 1.05
"""Costs within this factor are called equal."""


def drawn(kind: Kind, batching: str) -> tuple[Metric, ...]:
    """The panels of a cost, the most telling first."""
    if kind == "speed":
        return TRAINING
    return DECODING_MANY if batching == facets.LARGEST else DECODING
