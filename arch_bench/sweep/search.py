"""Search several dials with Optuna: compare trials by validation, prune hopeless ones and test the best.

Optuna proposes and decides; the rows are the record. Each search has a journal, and continues where it ends.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from arch_bench import results
from arch_bench.cell.claim import claimed
from arch_bench.cell.run import RETRIED
from arch_bench.config.schema import Cell, ConfigError, Trial, recomposed
from arch_bench.results import Row
from arch_bench.runtime.seed import narrow
from arch_bench.sweep.protocols import VALIDATION, Answers, Protocol, Round, Rounds, parted, unscored_seeds
from arch_bench.sweep.space import Choice, Range, Space, Values, parsed, shown
from arch_bench.train import journal

if TYPE_CHECKING:
    import optuna


class Options(NamedTuple):
    """Options that all searches of a command share."""

    space: Space
    n_trials: int
    n_at_once: int
    sampler: Literal["tpe", "random"]
    n_random: int
    pruner: Literal["median", "none"]
    prune_from_trial: int
    prune_from: float
    dry_run: bool


class Optuna(Protocol):
    """Protocol that searches dials by validation, at a seed that is never scored, and runs every seed at the best.

    Cells without training get the same widths and are otherwise unchanged. Raises ValueError for numbers out of range,
    and for a space that `space.parsed` refuses.
    """

    def __init__(
        self,
        *,
        space: dict[str, Any] | None,
        n_trials: int,
        n_at_once: int,
        sampler: Literal["tpe", "random"],
        n_random: int,
        pruner: Literal["median", "none"],
        prune_from_trial: int,
        prune_from: float,
        first_scan_seed: int,
        match: bool,
        dry_run: bool,
    ) -> None:
        if min(n_trials, n_at_once, n_random, prune_from_trial) < 1:
            numbers = f"n_trials={n_trials}, n_at_once={n_at_once}, n_random={n_random}"
            raise ValueError(f"{numbers}, prune_from_trial={prune_from_trial}: each needs at least 1")
        if first_scan_seed < 0:
            raise ValueError(f"first_scan_seed={first_scan_seed}: needs at least 0")
        if not 0 <= prune_from <= 1:
            raise ValueError(f"prune_from={prune_from:g}: a share, from 0 to 1")
        if match and space and "d_model" in space:
            raise ValueError("space: d_model is what match=true chooses; match=false to search it")
        self._options = Options(
            *(parsed(space), n_trials, n_at_once, sampler, n_random, pruner, prune_from_trial, prune_from, dry_run)
        )
        self._match, self._first_scan_seed = match, first_scan_seed

    def rounds(self, cells: list[Cell]) -> Rounds:
        trained, others = parted(cells, self._match)
        (seed,) = unscored_seeds({cell.seed for cell in trained}, 1, self._first_scan_seed)
        searches = _searches(trained, self._options, seed)
        while due := [cell for search in searches for cell in search.due()]:
            answers = yield Round(due, "search, by validation", sum(search.n_left for search in searches))
            for search in searches:
                search.learn(answers)
        finals = others + [cell for search in searches for cell in search.finals()]
        if finals:
            yield Round(finals, "every seed at the best values")


def _searches(cells: list[Cell], options: Options, seed: int) -> list[_Search]:
    """Build one search for the cells that differ only in seed, searched dials and measuring options of a phase."""
    low, high = ({dial: of.ends[end] for dial, of in options.space.items()} for end in (0, 1))
    found: dict[str, list[Cell]] = {}
    finals: dict[str, set[str]] = {}
    for cell in cells:
        plain = _changed(cell, low)
        what = results.cell_key(plain.model_dump() | {"seed": 0})
        found.setdefault(what, []).append(cell)
        finals.setdefault(what, set()).add(plain.model_dump_json())
    for first, *_ in found.values():
        _changed(first, high)  # so that a value that a dial refuses is reported before any run
        for dial in options.space:
            if isinstance(_value(first, dial), dict | list):
                raise ConfigError(f"protocol.space: {dial} is a group of dials; search those in it")
    return [_Search(what, of, len(finals[what]), options, seed) for what, of in found.items()]


def _changed(cell: Cell, changes: Values) -> Cell:
    """Compose a cell again with `changes` and all that follows from them, keeping a budget set by a protocol.

    Raises ConfigError when the budget determines `d_model`, and for values that the config refuses.
    """
    if "d_model" in changes and cell.match.params is not None:
        raise ConfigError(f"protocol.space: d_model is what match.params={cell.match.params} chooses")
    return recomposed(cell, {"match.params": cell.match.params} | changes)


class _Search:
    """Trials of one contender.

    what: its key, at the low ends of the space; n_finals: cells to test at the end; seed: the seed of all trials.
    """

    def __init__(self, what: str, cells: list[Cell], n_finals: int, options: Options, seed: int) -> None:
        self._cells, self._n_finals, self._options, self._seed = cells, n_finals, options, seed
        ranges = {dial: [type(of).__name__, *of] for dial, of in options.space.items()}
        self.name = results.digest({"what": what, "seed": self._seed, "space": ranges})
        open_study = journal.rehearsal if options.dry_run else journal.begin
        path = journal.path_of(cells[0], self.name)
        self._study, self._claim = open_study(path, anew=cells[0].rerun), journal.claim_of(path)
        self._values: dict[int, Values] = {}
        """Values of all trials, by number."""
        self._rows: dict[str, Row] = {}
        """Result of each set of values, by its text."""
        self._tried: set[str] = set()
        """Values that this sweep has handed out, with or without a result."""

    @property
    def n_left(self) -> int:
        """Number of trials still to come, plus the final cells."""
        return max(0, self._options.n_trials - len(self._values)) + self._n_finals

    def due(self) -> list[Cell]:
        """Return trials from the journal, by earlier or concurrent sweeps; if there are none, new ones. None repeats.

        One sweep at a time proposes, from the results of all trials so far; the others pick up its journal entries.
        """
        with nullcontext() if self._options.dry_run else claimed(self._claim, waits=True):
            self._take_up()
            if not self._untried():
                self._propose()
        due = self._untried()
        self._tried |= {_text(self._values[number]) for number in due}
        return [self._trial(number) for number in due]

    def learn(self, answers: Answers) -> None:
        """Record the answers for this search."""
        for cell, rows in answers:
            if rows and cell.trial is not None and cell.trial.study == self.name:
                self._rows[_text(cell.trial.values)] = rows[0]

    def finals(self) -> list[Cell]:
        """Return every seed at the best values, or at the given ones if no trial worked, so that rows record why.

        Return none while a trial may still get a result, because it might be the best.
        """
        best, losses = self._best(), Counter(row.status for row in self._rows.values())
        if not RETRIED.isdisjoint(losses):
            first = self._cells[0]
            name = f"{first.backbone_name} on {first.task_name}, seq_len {first.seq_len}"
            print(f"{name}: no values are chosen while a trial has no result", file=sys.stderr)
            return []
        counted = f"{len(self._rows)} trials" + (f" ({losses['pruned']} given up)" if losses["pruned"] else "")
        if best is None:
            return self._finals({}, f"{shown(self._given()[0])}: none of {counted} could be trained")
        loss = _loss(self._rows[_text(best)])
        return self._finals(
            best, f"{shown(best)}: validation loss {loss:.4g}, the lowest of {counted} at seed {self._seed}"
        )

    def _finals(self, values: Values, chosen: str = "") -> list[Cell]:
        cells = [_changed(cell, values).model_copy(update={"chosen": chosen}) for cell in self._cells]
        return list({cell.model_dump_json(): cell for cell in cells}.values())

    def _best(self) -> Values | None:
        losses = {
            number: loss
            for number, values in self._values.items()
            if (row := self._rows.get(_text(values))) and (loss := _loss(row)) is not None
        }
        best = min(losses, key=lambda number: losses[number], default=None)
        return None if best is None else self._values[best]

    def _take_up(self) -> None:
        """Read all trials from the journal, and record the results of those that are unfinished in it."""
        trials = [trial for trial in self._study.get_trials() if len(trial.params) == len(self._options.space)]
        trials = trials[: self._options.n_trials]
        self._values = {trial.number: self._rounded(trial.params) for trial in trials}
        for trial in trials:
            if not trial.state.is_finished():
                self._tell(trial.number)

    def _propose(self) -> None:
        while len(self._untried()) < self._options.n_at_once and len(self._values) < self._options.n_trials:
            self._tell(self._ask())  # records the result if it is known already

    def _untried(self) -> list[int]:
        return [number for number in self._distinct() if _text(self._values[number]) not in self._tried]

    def _distinct(self) -> list[int]:
        """Return the first trial number of each distinct set of values."""
        return list({_text(values): number for number, values in reversed(self._values.items())}.values())[::-1]

    def _ask(self) -> int:
        """Create a trial and return its number: the given values come first, then the sampler's proposals.

        The sampler is seeded anew each time, so that an interrupted search continues as it would have without that.
        """
        given, n = self._given(), len(self._values)
        if n < len(given) and all(given[n][dial] in of for dial, of in self._options.space.items()):
            self._study.enqueue_trial(given[n])
        self._study.sampler = _sampler(self._options, narrow(1000 * self._seed + n))
        trial = self._study.ask({dial: _distribution(of) for dial, of in self._options.space.items()})
        self._values[trial.number] = self._rounded(trial.params)
        return trial.number

    def _given(self) -> list[Values]:
        """Return the values of the given cells, each once."""
        found = [{dial: _value(cell, dial) for dial in self._options.space} for cell in self._cells]
        return list({_text(values): values for values in found}.values())

    def _rounded(self, values: dict[str, Any]) -> Values:
        """Round to three digits, which are enough for a range and keep values easy to read and type."""
        space = self._options.space
        return {
            dial: float(f"{values[dial]:.3g}") if isinstance(of, Range) and not of.is_int else values[dial]
            for dial, of in space.items()
        }

    def _trial(self, number: int) -> Cell:
        values, options = self._values[number], self._options
        cell = _changed(self._cells[0], values)
        trial = Trial(
            study=self.name,
            number=number,
            values=values,
            prune_from_trial=options.prune_from_trial if options.pruner == "median" else None,
            prune_from_step=round(options.prune_from * cell.trainer.max_steps),
        )
        return cell.model_copy(update={"seed": self._seed, "phases": ["scan"], "trial": trial})

    def _tell(self, number: int) -> None:
        """Report a trial's result to the study. A failed training counts as pruned: samplers learn from that.

        A sampler learns nothing from a failure. Results that will be retried are not reported yet.
        """
        from optuna.trial import TrialState

        row = self._rows.get(_text(self._values[number]))
        if row is None or row.status in RETRIED:
            return
        loss = _loss(row)
        state = TrialState.PRUNED if loss is None else TrialState.COMPLETE
        self._study.tell(number, loss, state=state, skip_if_finished=True)


def _loss(row: Row) -> float | None:
    loss = next((row.metrics[name] for name in VALIDATION if name in row.metrics), None)
    return loss if row.status == "ok" and isinstance(loss, float) else None


def _value(cell: Cell, dial: str) -> Any:
    value: Any = cell.model_dump()
    for name in dial.split("."):
        value = value[name]
    return value


def _text(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def _distribution(of: Range | Choice) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(of, Choice):
        return CategoricalDistribution(of.values)
    if of.is_int:
        return IntDistribution(int(of.low), int(of.high), log=of.is_log)
    return FloatDistribution(of.low, of.high, log=of.is_log)


def _sampler(options: Options, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if options.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    return optuna.samplers.TPESampler(n_startup_trials=options.n_random, seed=seed)
