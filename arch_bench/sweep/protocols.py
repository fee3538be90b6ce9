"""Protocols that choose the cells of a sweep: the given cells, or a fair comparison built from them.

A protocol yields cells in rounds, and chooses the next round by the rows of the earlier ones.
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
"""Metrics that choose a learning rate: validation loss, or squared error for regression, at the end of training."""


class Round(NamedTuple):
    """Cells that may run at the same time."""

    cells: list[Cell]
    what: str = ""
    """Purpose of the round."""
    n_later: int = 0
    """Number of cells in later rounds, as far as is known."""


Answers = list[tuple[Cell, list[Row]]]
"""Cells of a round, each with its rows; no rows for a cell that could not run."""
Rounds = Generator[Round, Answers, None]
"""Generator of rounds that receives the answers to each."""


class Protocol(ABC):
    """Generator of a sweep's cells, in rounds."""

    @abstractmethod
    def rounds(self, cells: list[Cell]) -> Rounds:
        """Yield rounds, and receive the answers to each."""


class Grid(Protocol):
    """Protocol that runs the cells as given."""

    def rounds(self, cells: list[Cell]) -> Rounds:
        yield Round(cells)


class Quick(Protocol):
    """Protocol that runs the first of the cells that differ only in seed and learning rate, per choice of phases."""

    def rounds(self, cells: list[Cell]) -> Rounds:
        yield Round([of_kind[0] for of_kind in _contenders(cells)])


class Fair(Protocol):
    """Protocol that chooses each backbone's learning rate by validation, then runs every seed at that rate.

    The seeds that choose are never scored: a rate that one lucky training chose would take that training's score into
    the mean, which reports 53 % of seeds where 33 % solve a task.

    The best rate has the lowest loss; with early stopping (`trainer.stop_at`) the training that stopped first wins;
    among ties (`rates.TIE`) the middle rate is chosen.

    Cells without training get the same widths and are otherwise unchanged. If a training of a backbone crashed or ran
    out of time, no rate is chosen for that backbone: the result of the retry might change the choice.
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
        """Map each rate in use to its unrounded value, from which the next rate is computed."""
        given = sorted({cell.optim.lr for cell in cells})
        if len(given) > 1:
            return {rate: rate for rate in given}
        first = -(self._n_rates // 2)
        exact = (given[0] * self._ratio**i for i in range(first, first + self._n_rates))
        return {_rounded(rate): rate for rate in exact}


class _Scan:
    """Rates tried for one contender, with their results."""

    def __init__(self, cells: list[Cell], exact: dict[float, float], scan_seeds: list[int]) -> None:
        self._first, self._rates = cells[0], exact
        self._found: dict[float, dict[int, rates.Trained]] = {}
        """Results by rate and seed."""
        self._n_extensions = 0
        self.is_open = False
        """True while a rate has no result but may still get one."""
        self.name = f"{self._first.backbone_name} on {self._first.task_name}, seq_len {self._first.seq_len}"
        self.seeds = list(dict.fromkeys(cell.seed for cell in cells))
        self._scan_seeds = scan_seeds

    def due(self) -> list[Cell]:
        cells = [_with_rate(self._first, rate) for rate in self._rates if rate not in self._found]
        return [
            cell.model_copy(update={"phases": ["scan"], "seed": seed}) for cell in cells for seed in self._scan_seeds
        ]

    def learn(self, answers: Answers) -> None:
        """Record the answers for this contender."""
        mine = _identity(self._first)
        for cell, rows in answers:
            if _identity(cell) == mine:
                found = min(map(_trained, rows), default=rates.FAILED)
                self._found.setdefault(cell.optim.lr, {})[cell.seed] = found
                self.is_open |= not rows or any(row.status in RETRIED for row in rows)

    def extend(self, ratio: float, at_most: int) -> None:
        """Add one rate beyond the best, if the best is the lowest or highest tried and no other rate ties with it."""
        best, tried = rates.best(self._means()), sorted(self._found)
        if self.is_open or len(best) != 1 or self._n_extensions == at_most or best[0] not in (tried[0], tried[-1]):
            return
        self._n_extensions += 1
        outermost = self._rates[best[0]]
        following = outermost / ratio if best[0] == tried[0] else outermost * ratio
        self._rates[_rounded(following)] = following

    def finals(self) -> list[Cell]:
        """Return every seed at the best rate, or at the given rate if none worked, so that its rows record why."""
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
        """Return the mean over the seeds; infinite if one of them failed."""
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
    """Round a rate to three digits, which are enough and make it equal in every sweep."""
    return float(f"{rate:.3g}")


def _with_rate(cell: Cell, rate: float) -> Cell:
    return cell.model_copy(update={"optim": cell.optim.model_copy(update={"lr": rate})})


def _contenders(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Group cells that differ only in seed and learning rate."""
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault((_identity(cell), *cell.phases), []).append(cell)
    return list(found.values())


def _in_turn(of_each: Iterable[list[Cell]]) -> Iterator[Cell]:
    """Interleave the lists, first items first, so that cells running side by side do not all compile the same step."""
    return (cell for turn in zip_longest(*of_each) for cell in turn if cell is not None)


def _distinct(cells: Iterable[Cell]) -> list[Cell]:
    """Return each cell once: contenders that differ only in their phases share the trainings that choose a rate."""
    return list({cell.model_dump_json(): cell for cell in cells}.values())


def _identity(cell: Cell) -> str:
    """Return a cell as text, without its seed, its rate and the settings of a protocol."""
    values = cell.model_dump(exclude={"seed", "phases", "chosen"})
    del values["optim"]["lr"]
    return json.dumps(values, sort_keys=True)


def parted(cells: list[Cell], match: bool) -> tuple[list[Cell], list[Cell]]:
    """Split cells into those that train and the others, with widths matched across both if `match`.

    The timed models are then the scored ones.
    """
    trained = [cell for cell in cells if "quality" in cell.phases]
    others = [cell for cell in cells if "quality" not in cell.phases]
    found = matched(trained + others) if match else trained + others
    return found[: len(trained)], found[len(trained) :]


def matched(cells: list[Cell]) -> list[Cell]:
    """Return the cells with one parameter budget per task, length and given size, in any order.

    The budget is the parameter count of the backbone with the widest gaps between its widths, since it could match
    another budget worst; ties go to the largest. If no backbone can be counted, cells are unchanged and report the
    error in their turn. A cell that times only kernels is unchanged too: a layer alone is compared at one width.
    """
    rivals: dict[str | None, list[Cell]] = {}
    for cell in cells:
        rivals.setdefault(_arena(cell), []).append(cell)
    budgets = {arena: _budget(of) for arena, of in rivals.items() if arena is not None}
    return [cell if (arena := _arena(cell)) is None else _with_budget(cell, budgets[arena]) for cell in cells]


def _arena(cell: Cell) -> str | None:
    """Return the settings that rivals share; None for a cell that already has a budget, or needs none."""
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
