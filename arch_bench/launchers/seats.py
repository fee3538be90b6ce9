"""Seats on the devices of one machine: which shapes run where, how many share a device, and their memory.

A timed shape has its device to itself. A training shares its device with as many others as fit, judged by the memory
that similar cells were seen to use, or by an equal share while there is no such record. A shape that runs out of
memory beside others runs again alone, and only then counts as out of memory. The same holds after a device error,
because under MPS a fault of one process ends all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from pydantic import ValidationError

from arch_bench.cell.run import TIMED, Seat, log_path
from arch_bench.cell.shape import Shape
from arch_bench.config.schema import Cell
from arch_bench.results import Row
from arch_bench.runtime.workers import Setting

RESERVE = 0.05
"""Share of a device's memory that stays unassigned: allocators round up."""
HEADROOM = 1.1
"""Ratio of a seat's memory to the memory that similar cells were seen to use."""


@dataclass
class Device:
    """Device with its current users."""

    env: dict[str, str]
    """Environment that limits a process to this device and its share of the cores."""
    capacity: int
    """Memory in bytes."""
    timed_env: dict[str, str] = field(default_factory=dict)
    """Environment for a timed phase, which has the device to itself."""
    used: dict[int, int] = field(default_factory=dict)
    """Bytes of each occupied seat, by thread."""
    is_reserved: bool = False
    """True while a shape has, or waits for, the whole device."""

    def has_room(self, need: int, n_seats: int) -> bool:
        """Check if one more shape fits; the first always does, whatever it needs."""
        if self.is_reserved or len(self.used) >= n_seats:
            return False
        return not self.used or sum(self.used.values()) + need <= self.given

    @property
    def given(self) -> int:
        """Bytes available to all seats together."""
        return int(self.capacity * (1 - RESERVE))


class Seats:
    """Allocator of seats (a `run.Seating`) for shapes that each run in their own thread.

    n_seats: maximum number of seats on each device.
    """

    def __init__(self, devices: list[Device], n_seats: int) -> None:
        self._devices, self._n_seats = devices, n_seats
        self._seen: dict[tuple[object, ...], int] = {}
        self._change = threading.Condition()

    @contextmanager
    def __call__(self, cell: Cell, shape: Shape, *, alone: bool) -> Iterator[Seat]:
        device = self._take(cell, shape, alone)
        number = threading.get_ident()
        try:
            is_shared = not alone and self._n_seats > 1
            env = device.timed_env if shape.kind in TIMED else device.env
            yield Seat(Setting(env=env, log=log_path(cell, shape)), is_shared)
        finally:
            with self._change:
                del device.used[number]
                device.is_reserved &= not alone
                self._change.notify_all()

    def learn(self, rows: Iterable[Row]) -> None:
        """Record the memory that the processes behind these rows used."""
        with self._change:
            for row in rows:
                if row.process_bytes is None:
                    continue
                with suppress(ValidationError):  # an old row, whose cell had other keys
                    like = _like(Cell.model_validate(row.config), row.kind)
                    self._seen[like] = max(self._seen.get(like, 0), row.process_bytes)
            self._change.notify_all()

    def _take(self, cell: Cell, shape: Shape, alone: bool) -> Device:
        with self._change:
            device = self._empty() if alone else self._roomy(cell, shape)
            device.used[threading.get_ident()] = device.capacity if alone else self._need(cell, shape, device)
            return device

    def _roomy(self, cell: Cell, shape: Shape) -> Device:
        """Return the device with the fewest users that has room; wait for one if necessary."""
        while True:
            for device in sorted(self._devices, key=lambda device: len(device.used)):
                if device.has_room(self._need(cell, shape, device), self._n_seats):
                    return device
            self._change.wait()

    def _empty(self) -> Device:
        """Reserve a device, so that no other shape enters, and return it once its users have left."""
        while True:
            free = [device for device in self._devices if not device.is_reserved]
            if free:
                break
            self._change.wait()
        device = min(free, key=lambda device: len(device.used))
        device.is_reserved = True
        while device.used:
            self._change.wait()
        return device

    def _need(self, cell: Cell, shape: Shape, device: Device) -> int:
        seen = self._seen.get(_like(cell, shape.kind))
        return device.given // self._n_seats if seen is None else round(HEADROOM * seen)


def _like(cell: Cell, kind: str) -> tuple[object, ...]:
    """Return the settings that memory depends on: not the seed or the learning rate, for example."""
    trainer = cell.trainer
    sizes = (cell.seq_len, cell.d_model, cell.n_layers, trainer.batch_size, max(cell.eval_scales), cell.precision)
    return (kind, cell.backbone_name, cell.task_name, *sizes)
