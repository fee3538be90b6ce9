"""Which cells a sweep runs: those that it was given, or what a fair comparison makes of them.

A protocol gives its cells in rounds, and chooses the next round by the rows of those before.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import suppress
from itertools import count, islice, zip_longest
from statistics import fmean
from typing import NamedTuple

from arch_bench.config.schema import Cell
from arch_bench.results import RETRIED, Row
from arch_bench.sweep import rates

VALIDATION = ("val_loss_nats", "val_mse")
"""What a rate is chosen by: the validation loss, or squared error of a regression, when training ended."""


class Round(NamedTuple):
    """Cells that may run at the same time."""

    cells: list[Cell]
    what: str = ""
    """What they are for."""
    n_later: int = 0
    """How many more cells the rounds after it will have, as far as is known."""


Answers = list[tuple[Cell, list[Row]]]
"""The cells of a round, each with its rows; none where it could not be run."""
Rounds = Generator[Round, Answers, None]
"""It is sent the answers to each round."""


class Protocol(ABC):
    """Gives the cells of a sweep in rounds."""

    @abstractmethod
    def rounds(self, cells: list[Cell]) -> Rounds:
        """Yield rounds, and receive the answers to each."""


class Grid(Protocol):
    """The cells as they are given."""

    def rounds(self, cells: list[Cell]) -> Rounds:
        yield Round(cells)


class Quick(Protocol):
    """Of cells that differ in seed and learning rate only, the first: that of each choice of phases."""

    def rounds(self, cells: list[Cell]) -> Rounds:
        yield Round([of_kind[0] for of_kind in _contenders(cells)])


class Fair(Protocol):
    """Choose the learning rate of each backbone by validation, then run every seed at that rate.

    The seeds that choose are never scored: a rate that one lucky training chose would take that training's score into
    the mean, which reports 53 % of seeds where 33 % solve a task.

    The best has the lowest loss; of trainings that may stop early (`trainer.stop_at`) the one that stopped first; of
    several that are as good (`rates.TIE`) the one in the middle.

    Cells that train nothing have the same widths, and are else as they are given. Of a backbone with a training that
    crashed or ran out of time no rate is chosen: what that finds when it is tried again might change it.
    """

    def __init__(
        self, *, n_rates: int, n_scan_seeds: int, first_scan_seed: int, ratio: float, max_extensions: int, match: bool
    ) -> None:
        if n_rates < 1 or max_extensions < 0:
            raise ValueError(f"n_rates={n_rates}, max_extensions={max_extensions}: needs at least 1 and 0")
        if n_scan_seeds < 1:
            raise ValueError(f"n_scan_seeds={n_scan_seeds}: needs at least 1")
        if first_scan_seed < 0:
            raise ValueError(f"first_scan_seed={first_scan_seed}: needs at least 0")
        if ratio <= 1:
            raise ValueError(f"ratio={ratio:g}: needs more than 1")
        self._n_rates, self._ratio, self._max_extensions, self._match = n_rates, ratio, max_extensions, match
        self._n_scan_seeds, self._first_scan_seed = n_scan_seeds, first_scan_seed

    def rounds(self, cells: list[Cell]) -> Rounds:
        trained, others = parted(cells, self._match)
        scored = {cell.seed for cell in trained}
        choosing = unscored_seeds(scored, self._n_scan_seeds, self._first_scan_seed)
        scans = [_Scan(each, self._rates(each), choosing) for each in _contenders(trained)]
        while due := _distinct(_in_turn(scan.due() for scan in scans)):
            n_finals = sum(len(scan.seeds) for scan in scans if not scan.is_open) + len(others)
            answers = yield Round(due, "learning rates, by validation", n_finals)
            for scan in scans:
                scan.learn(answers)
                scan.extend(self._ratio, self._max_extensions)
        finals = others + [cell for scan in scans if not scan.is_open for cell in scan.finals()]
        for name in dict.fromkeys(scan.name for scan in scans if scan.is_open):
            print(f"{name}: no rate is chosen while one has no result", file=sys.stderr)
        if finals:
            yield Round(finals, "every seed at the rate chosen")

    def _rates(self, cells: list[Cell]) -> dict[float, float]:
        """As they are used, with what they were before rounding, from which the next is reckoned."""
        given = sorted({cell.optim.lr for cell in cells})
        if len(given) > 1:
            return {rate: rate for rate in given}
        first = -(self._n_rates // 2)
        exact = (given[0] * self._ratio**i for i in range(first, first + self._n_rates))
        return {_rounded(rate): rate for rate in exact}


class _Scan:
    """The rates tried for one contender, and what came of them."""

    def __init__(self, cells: list[Cell], exact: dict[float, float], scan_seeds: list[int]) -> None:
        self._first, self._rates = cells[0], exact
        self._found: dict[float, dict[int, rates.Trained]] = {}
        """By rate and seed."""
        self._n_extensions = 0
        self.is_open = False
        """A rate has no result yet, but may have one."""
        self.name = f"{self._first.backbone_name} on {self._first.task_name}, seq_len {self._first.seq_len}"
        self.seeds = list(dict.fromkeys(cell.seed for cell in cells))
        self._scan_seeds = scan_seeds

    def due(self) -> list[Cell]:
        cells = [_with_rate(self._first, rate) for rate in self._rates if rate not in self._found]
        return [
            cell.model_copy(update={"phases": ["scan"], "seed": seed}) for cell in cells for seed in self._scan_seeds
        ]

    def learn(self, answers: Answers) -> None:
        """Take in those that are of this contender."""
        mine = _identity(self._first)
        for cell, rows in answers:
            if _identity(cell) == mine:
                found = min(map(_trained, rows), default=rates.FAILED)
                self._found.setdefault(cell.optim.lr, {})[cell.seed] = found
                self.is_open |= not rows or any(row.status in RETRIED for row in rows)

    def extend(self, ratio: float, at_most: int) -> None:
        """Try one rate more beyond the best, if that is the lowest or the highest of all tried and none is as good."""
        best, tried = rates.best(self._means()), sorted(self._found)
        if self.is_open or len(best) != 1 or self._n_extensions == at_most or best[0] not in (tried[0], tried[-1]):
            return
        self._n_extensions += 1
        outermost = self._rates[best[0]]
        following = outermost / ratio if best[0] == tried[0] else outermost * ratio
        self._rates[_rounded(following)] = following

    def finals(self) -> list[Cell]:
        """Every seed at the best rate; at the given one where no rate worked, whose rows then say why."""
        best = rates.chosen(self._means())
        rate = self._first.optim.lr if best is None else best
        why = f"none of {len(self._found)} rates could be trained" if best is None else self._why(best)
        cell = _with_rate(self._first, rate)
        return [cell.model_copy(update={"seed": seed, "chosen": f"optim.lr={rate:g}: {why}"}) for seed in self.seeds]

    def _why(self, best: float) -> str:
        mean, n_best, tried = self._mean(best), len(rates.best(self._means())), sorted(self._found)
        has_stopped = mean.steps < self._first.trainer.max_steps
        rank = ("the first" if has_stopped else "the lowest") if n_best == 1 else f"in the middle of {n_best} as good,"
        found = f"stopped after {mean.steps:g} steps, {rank}" if has_stopped else rank
        seeds = ", ".join(map(str, self._scan_seeds))
        at = f"at seed {seeds}" if len(self._scan_seeds) == 1 else f"as a mean of seeds {seeds}"
        return f"validation loss {mean.loss:.4g}, {found} of {len(tried)} rates from {tried[0]:g} to {tried[-1]:g} {at}"

    def _means(self) -> dict[float, rates.Trained]:
        return {rate: self._mean(rate) for rate in self._found}

    def _mean(self, rate: float) -> rates.Trained:
        """Over the seeds; infinite where one of them failed."""
        return rates.Trained(*map(fmean, zip(*self._found[rate].values(), strict=True)))


def unscored_seeds(scored: Collection[int], n: int, first: int) -> list[int]:
    """Return the first n seeds from `first` on that a sweep does not score."""
    return list(islice((seed for seed in count(first) if seed not in scored), n))


def _trained(row: Row) -> rates.Trained:
    if row.kind != "scan" or row.status != "ok":
        return rates.FAILED
    (loss,) = (row.metrics[name] for name in VALIDATION if name in row.metrics)
    assert isinstance(loss, float)
    return rates.Trained(float(row.metrics["steps"] or 0), loss)


def _rounded(rate: float) -> float:
    """Three digits are enough for a rate, and make it equal in every sweep."""
    return float(f"{rate:.3g}")


def _with_rate(cell: Cell, rate: float) -> Cell:
    return cell.model_copy(update={"optim": cell.optim.model_copy(update={"lr": rate})})


def _contenders(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that differ in seed and learning rate only, together."""
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault((_identity(cell), *cell.phases), []).append(cell)
    return list(found.values())


def _in_turn(of_each: Iterable[list[Cell]]) -> Iterator[Cell]:
    """The first of each, then the second: those that run side by side do not all compile the same step."""
    return (cell for turn in zip_longest(*of_each) for cell in turn if cell is not None)


def _distinct(cells: Iterable[Cell]) -> list[Cell]:
    """Each once: contenders that differ in their phases only have the same trainings to choose by."""
    return list({cell.model_dump_json(): cell for cell in cells}.values())


def _identity(cell: Cell) -> str:
    """All of a cell but its seed, its rate and what a protocol sets."""
    values = cell.model_dump(exclude={"seed", "phases", "chosen"})
    del values["optim"]["lr"]
    return json.dumps(values, sort_keys=True)


def parted(cells: list[Cell], match: bool) -> tuple[list[Cell], list[Cell]]:
    """Those that train, and the others; with matched widths in both, so that what is timed is what is scored."""
    trained = [cell for cell in cells if "quality" in cell.phases]
    others = [cell for cell in cells if "quality" not in cell.phases]
    found = matched(trained + others) if match else trained + others
    return found[: len(trained)], found[len(trained) :]


def matched(cells: list[Cell]) -> list[Cell]:
    """With one budget of parameters for all that share task, length and given size, in whatever order they come.

    It is that of the backbone whose widths lie furthest apart, which can meet another one worst; of several such, of
    the largest. Where none can be counted, cells are left as they are, and tell why when it is their turn. So is one
    that times kernels only: a layer alone is compared at one width.
    """
    rivals: dict[str | None, list[Cell]] = {}
    for cell in cells:
        rivals.setdefault(_arena(cell), []).append(cell)
    budgets = {arena: _budget(of) for arena, of in rivals.items() if arena is not None}
    return [cell if (arena := _arena(cell)) is None else _with_budget(cell, budgets[arena]) for cell in cells]


def _arena(cell: Cell) -> str | None:
    """What rivals have in common; None of a cell that has a budget already, or needs none."""
    if cell.match.params is not None or cell.phases == ["kernels"]:
        return None
    return json.dumps([cell.task, cell.d_model, cell.n_layers], sort_keys=True)


def _budget(cells: Iterable[Cell]) -> int | None:
    from arch_bench.cell.match import rigidity

    found = []
    for cell in {json.dumps(cell.backbone, sort_keys=True): cell for cell in cells}.values():
        with suppress(Exception):  # a mistake, or a bug of a backbone: neither ends the sweep
            found.append(rigidity(cell))
    return max(found)[1] if found else None


def _with_budget(cell: Cell, params: int | None) -> Cell:
    return cell.model_copy(update={"match": cell.match.model_copy(update={"params": params})})
