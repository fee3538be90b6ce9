"""Who may run beside whom: memory is given out before it is taken, and a timed cell has its device to itself."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from cells import cell, row

from arch_bench.cell import run
from arch_bench.cell.run import Seat
from arch_bench.cell.shape import Shape, Usage, save
from arch_bench.config.schema import Cell
from arch_bench.launchers.seats import HEADROOM, Device, Seats
from arch_bench.results import Outcome, Row, Status, load

GIB = 2**30
SHAPE = Shape("quality", [16])
HERE = Path("unused")


def seats(n_seats: int, *capacities: int) -> Seats:
    return Seats([Device({"NUMBER": str(i)}, n * GIB) for i, n in enumerate(capacities)], n_seats)


def seen(one: Cell, gib: float) -> Row:
    """A row of a cell that held so much."""
    found = row(one, "quality")
    return type(found)(**vars(found) | {"process_bytes": int(gib * GIB)})


class Guest:
    """Takes a seat in a thread of its own, and keeps it until it is told to go."""

    def __init__(self, where: Seats, one: Cell, *, alone: bool = False) -> None:
        self._sits, self._go = threading.Event(), threading.Event()
        self.seat = Seat()
        self._thread = threading.Thread(target=self._visit, args=(where, one, alone), daemon=True)
        self._thread.start()

    def _visit(self, where: Seats, one: Cell, alone: bool) -> None:
        with where(one, SHAPE, alone=alone) as self.seat:
            self._sits.set()
            self._go.wait()

    @property
    def sits(self) -> bool:
        return self._sits.wait(timeout=10)

    @property
    def waits(self) -> bool:
        return not self._sits.wait(timeout=0.05)

    def leave(self) -> None:
        self._go.set()
        self._thread.join(timeout=10)


def test_as_many_unknown_cells_sit_down_as_there_are_seats() -> None:
    room = seats(2, 16)
    first, second, third = (Guest(room, cell(HERE)) for _ in range(3))
    assert sum(guest.sits for guest in (first, second, third) if not guest.waits) == 2
    for guest in (first, second, third):
        guest.leave()
    assert first.sits
    assert second.sits
    assert third.sits
    assert first.seat.is_shared


def test_a_cell_waits_until_there_is_room_for_what_its_like_was_seen_to_hold() -> None:
    room, large, small = seats(4, 16), cell(HERE, "backbone=lstm"), cell(HERE)
    room.learn([seen(large, 11), seen(large, 10), seen(small, 2)])
    first = Guest(room, large)
    assert first.sits
    second, third = Guest(room, large.model_copy(update={"seed": 7})), Guest(room, small)
    assert third.sits, f"{HEADROOM} * (11 + 2) GiB of 16 are taken: less than 95 %"
    assert second.waits
    first.leave()
    assert second.sits
    second.leave()
    third.leave()


def test_one_that_needs_more_than_there_is_runs_when_nobody_else_does() -> None:
    room, one = seats(4, 16), cell(HERE)
    room.learn([seen(one, 40)])
    first, second = Guest(room, one), Guest(room, one)
    assert [first.waits, second.waits].count(True) == 1
    first.leave()
    second.leave()
    assert first.sits
    assert second.sits


def test_whoever_wants_to_be_alone_waits_for_the_others_and_lets_nobody_in() -> None:
    room = seats(4, 16)
    first = Guest(room, cell(HERE))
    assert first.sits
    alone = Guest(room, cell(HERE), alone=True)
    assert alone.waits
    late = Guest(room, cell(HERE))
    assert late.waits, "or the one who waits would wait for ever"
    first.leave()
    assert alone.sits
    assert not alone.seat.is_shared
    assert late.waits
    alone.leave()
    assert late.sits
    late.leave()


def test_the_emptiest_device_is_taken() -> None:
    room = seats(2, 16, 16)
    visitors = [Guest(room, cell(HERE)) for _ in range(4)]
    assert all(guest.sits for guest in visitors)
    assert sorted(guest.seat.setting.env["NUMBER"] for guest in visitors) == ["0", "0", "1", "1"]
    for guest in visitors:
        guest.leave()


def test_rows_of_another_time_teach_nothing_and_do_no_harm() -> None:
    room, one = seats(4, 16), cell(HERE)
    old = seen(one, 12)
    room.learn([type(old)(**vars(old) | {"config": {"d_modell": 16}}), row(one, "quality")])
    visitors = [Guest(room, one) for _ in range(4)]
    assert all(guest.sits for guest in visitors)
    for guest in visitors:
        guest.leave()


class Machine:
    """In place of processes: a cell beside others ends in one way, a cell alone in another."""

    def __init__(self, beside: Status, alone: Status, reason: str = "") -> None:
        self._ends, self._reason = {True: beside, False: alone}, reason
        self.n_alone = 0

    def __call__(self, one: Cell, shape: Shape, _: list[Row]) -> list[Row]:
        self.n_alone += not shape.is_shared
        self.on_disk = load([Path(one.results_dir)])
        status = self._ends[shape.is_shared]
        reason = self._reason if status != "ok" else ""
        return save(one, shape, [Outcome(seq_len=16, status=status, reason=reason)], Usage())


@pytest.mark.parametrize(
    ("beside", "alone", "reason", "n_alone"),
    [
        ("ok", "ok", "", 0),
        ("oom", "ok", "2 GiB", 1),
        ("oom", "oom", "2 GiB", 1),
        ("crashed", "ok", "the process was ended by SIGKILL", 1),
        ("crashed", "ok", "AcceleratorError: CUDA error: unspecified launch failure", 1),
        ("crashed", "ok", "the process was ended by SIGSEGV", 0),
        ("diverged", "ok", "step 3", 0),
    ],
)
def test_who_is_out_of_memory_beside_others_tries_alone(  # noqa: PLR0917
    beside: Status, alone: Status, reason: str, n_alone: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(beside, alone, reason)
    monkeypatch.setattr(run, "run_shape", machine)
    (found,) = run.run_cell(cell(tmp_path), lambda row: None, seating=seats(2, 16))
    assert (found.status, machine.n_alone) == (alone if n_alone else beside, n_alone)
    assert load([tmp_path]) == [found]
    assert not machine.on_disk, "a sweep that is killed now must try again"
