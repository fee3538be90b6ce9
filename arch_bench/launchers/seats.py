"""Seats on the devices of one machine: who may run where, how many beside each other, and with how much memory.

A cell that is timed has its device to itself. One that trains shares it with as many others as fit: by what cells like
it were seen to hold, or, while none has been seen, by an equal share. One that runs out of memory beside others runs
again alone, and only then is out of memory; so does one that the device failed, for under MPS the fault of one process
ends all of them.
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
"""Share of a device's memory that is given to nobody: allocators round up."""
HEADROOM = 1.1
"""A seat's memory over what the like of it was seen to hold."""


@dataclass
class Device:
    """One device, with who is on it."""

    env: dict[str, str]
    """What makes a process see this device only, with its share of the cores."""
    capacity: int
    """Bytes."""
    timed_env: dict[str, str] = field(default_factory=dict)
    """The same for a phase that is timed, which nobody is beside."""
    used: dict[int, int] = field(default_factory=dict)
    """Bytes of each seat taken."""
    is_reserved: bool = False
    """Somebody has, or waits for, all of it."""

    def has_room(self, need: int, n_seats: int) -> bool:
        """For one more beside the others; the first always fits, whatever it needs."""
        if self.is_reserved or len(self.used) >= n_seats:
            return False
        return not self.used or sum(self.used.values()) + need <= self.given

    @property
    def given(self) -> int:
        """Bytes for all seats together."""
        return int(self.capacity * (1 - RESERVE))


class Seats:
    """Gives shapes their seats (a `run.Seating`), each in its own thread.

    n_seats: on each device, at most.
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
        """Note what the processes behind these rows held."""
        with self._change:
            for row in rows:
                if row.process_bytes is None:
                    continue
                with suppress(ValidationError):  # of a time when cells had other keys
                    like = _like(Cell.model_validate(row.config), row.kind)
                    self._seen[like] = max(self._seen.get(like, 0), row.process_bytes)
            self._change.notify_all()

    def _take(self, cell: Cell, shape: Shape, alone: bool) -> Device:
        with self._change:
            device = self._empty() if alone else self._roomy(cell, shape)
            device.used[threading.get_ident()] = device.capacity if alone else self._need(cell, shape, device)
            return device

    def _roomy(self, cell: Cell, shape: Shape) -> Device:
        """The device with the fewest on it that has room."""
        while True:
            for device in sorted(self._devices, key=lambda device: len(device.used)):
                if device.has_room(self._need(cell, shape, device), self._n_seats):
                    return device
            self._change.wait()

    def _empty(self) -> Device:
        """Nobody else is let onto it until those there have left."""
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
    """What memory depends on, rather than the seed or a rate."""
    trainer = cell.trainer
    sizes = (cell.seq_len, cell.d_model, cell.n_layers, trainer.batch_size, max(cell.eval_scales), cell.precision)
    return (kind, cell.backbone_name, cell.task_name, *sizes)
