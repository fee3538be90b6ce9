"""Rows grouped for reading: which series has which value at which length, with its interval over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple, get_args

from arch_bench.report import devices, dials, facets, metrics, stats, steps, style
from arch_bench.report.facets import Facet
from arch_bench.report.metrics import Metric, Scale
from arch_bench.results import Kind, Row

LARGEST = 1e100
"""Beyond it, and for what is not finite, axes have no place."""


class Point(NamedTuple):
    """A metric at one length: the mean over seeds, and the interval where there is one."""

    value: float
    low: float | None
    """95 % t interval of the mean over seeds; for a timing with one seed, p10 and p90."""
    high: float | None
    n_seeds: int
    scattered: tuple[float, ...] = ()
    """The value of each seed, the best first, where they have two humps and so no interval."""

    def overlaps(self, other: Point) -> bool:
        """Whether the intervals of both do; without intervals they do not."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return False
        return self.low <= other.high and other.low <= self.high

    def is_level(self, other: Point) -> bool:
        """Whether two costs count as equal."""
        high, low = max(self.value, other.value), min(self.value, other.value)
        return high <= metrics.CLOSE_COST * low or self.overlaps(other)


class Group(NamedTuple):
    """The rows that make one line."""

    task: str
    """Of kernels, the backbone that they are for, with its dials."""
    series: str
    """Of kernels, the contender."""
    train_seq_len: int
    """0 for costs, which do not depend on the length of training."""
    batching: str = ""
    """The policy that sets the batch of a cost."""
    device: str = ""
    """Of a cost, where costs were measured on several."""

    @property
    def facet(self) -> Facet:
        return Facet(self.task, self.batching, self.device)


class Study:
    """The newest rows, indexed by kind, group and length."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows, self.trials = parted(newest(rows))
        """Trials of searches are too many, and too different, to be contenders."""
        self.labels = dials.label(self.rows)
        steps.take_apart(self.labels, self.rows)
        places = {self.labels.device(row) for row in self.rows if row.kind not in facets.TRAINED}
        self._has_devices = len(places) > 1
        self._groups: dict[int, Group] = {}
        """By row: its name is made of all its settings, which takes a while."""
        self.index: dict[Kind, dict[Group, dict[int, list[Row]]]] = {kind: {} for kind in get_args(Kind)}
        for row in self.rows:
            self.index[row.kind].setdefault(self.group(row), {}).setdefault(row.seq_len, []).append(row)
        self._points: dict[Metric, dict[Group, dict[int, Point]]] = {}
        self._baselines: dict[str, dict[str, dict[int, float]]] = {}

    @property
    def every(self) -> list[Row]:
        """Trials too."""
        return self.rows + self.trials

    def group(self, row: Row) -> Group:
        """The line that a row is a point of."""
        if (known := self._groups.get(id(row))) is None:
            known = self._groups[id(row)] = self._group(row)
        return known

    def _group(self, row: Row) -> Group:
        task, series = self.labels.of(row)
        if row.kind in facets.TRAINED:
            return Group(task, series, row.train_seq_len)
        return Group(task, series, 0, facets.batching(row), self.labels.device(row) if self._has_devices else "")

    def groups(self, kind: Kind, facet: Facet | None = None) -> list[Group]:
        """In reading order: by task, batch policy, device, series, training length; contenders by name."""
        listed = self.labels.tasks, self.labels.series
        if kind == "kernels":
            listed = self.labels.subjects, sorted({group.series for group in self.index[kind]})
        tasks, series = ({name: place for place, name in enumerate(names)} for names in listed)

        def order(group: Group) -> tuple[object, ...]:
            facet = tasks[group.task], facets.place(group.batching), group.device
            return *facet, series[group.series], group.train_seq_len

        return sorted((group for group in self.index[kind] if facet in (None, group.facet)), key=order)

    def facets(self, kind: Kind) -> list[Facet]:
        return list(dict.fromkeys(group.facet for group in self.groups(kind)))

    def tasks(self, kind: Kind) -> list[str]:
        return [facet.task for facet in self.facets(kind)]

    def series(self, *kinds: Kind) -> list[str]:
        found = {group.series for kind in kinds for group in self.index[kind]}
        return [name for name in self.labels.series if name in found]

    def points(self, metric: Metric) -> dict[Group, dict[int, Point]]:
        """Every group that has a value, by length."""
        if metric not in self._points:
            self._points[metric] = found = {}
            for group in self.groups(metric.kind):
                by_length = {
                    length: point(self.at(metric.kind, group, length), metric)
                    for length in sorted(self.index[metric.kind][group])
                }
                if kept := {length: each for length, each in by_length.items() if each}:
                    found[group] = kept
        return self._points[metric]

    def of(self, facet: Facet, metric: Metric) -> dict[Group, dict[int, Point]]:
        """What may be compared of `points`: one facet's."""
        return {group: points for group, points in self.points(metric).items() if group.facet == facet}

    def at(self, kind: Kind, group: Group, length: int) -> list[Row]:
        return self.index[kind].get(group, {}).get(length, [])

    def headline(self, task: str) -> Metric:
        """Language modelling reports bits per byte; every other task the share of right tokens."""
        has_bits = any(group.task == task for group in self.points(metrics.BITS_PER_BYTE))
        return metrics.BITS_PER_BYTE if has_bits else metrics.ACCURACY

    def trouble(self, kind: Kind, group: Group, length: int) -> str:
        """The statuses other than ok, as `oom`, or `oom 1/3` when other seeds have a value; empty if none."""
        rows = self.at(kind, group, length)
        seeds = {status: {row.seed for row in rows if row.status == status} for status in {row.status for row in rows}}
        bad = sorted(seeds.keys() - {"ok"})
        n_seeds = len({row.seed for row in rows})
        return ", ".join(status if len(seeds) == 1 else f"{status} {len(seeds[status])}/{n_seeds}" for status in bad)

    def baselines(self, task: str) -> dict[str, dict[int, float]]:
        """Name -> length -> what that guess scores in the headline metric."""
        if task not in self._baselines:
            groups = self.groups("quality", Facet(task))
            rows = [row for g in groups for rows in self.index["quality"][g].values() for row in rows]
            self._baselines[task] = baselines(rows, self.headline(task).sign)
        return self._baselines[task]

    def best_baseline(self, task: str, length: int) -> tuple[str, float] | None:
        """The hardest one to beat at a length."""
        sign = self.headline(task).sign
        at_length = [(name, of[length]) for name, of in self.baselines(task).items() if length in of]
        return max(at_length, key=lambda item: sign * item[1], default=None)

    def style(self, series: str) -> style.Style:
        backbone = self.labels.backbone[series]
        settings = [name for name, other in self.labels.backbone.items() if other == backbone]
        return style.style(backbone, settings.index(series), sorted({*self.labels.backbone.values()}))


def newest(rows: Iterable[Row]) -> list[Row]:
    """One row per measurement and length: a repeated one replaces the older one."""
    ordered = sorted(rows, key=lambda row: row.created_at)
    names = devices.known(ordered)
    kept = {(*dials.identity(row, names), row.seq_len): row for row in ordered}
    return list(kept.values())


def parted(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Those that stand for themselves, and the trials of searches."""
    found: tuple[list[Row], list[Row]] = [], []
    for row in rows:
        found[_is_trial(row)].append(row)
    return found


def _is_trial(row: Row) -> bool:
    """Whether it says of which search it is, which of its trials, and what that tried."""
    trial = row.config.get("trial")
    kinds = {"study": str, "number": int, "values": dict}
    return isinstance(trial, dict) and all(isinstance(trial.get(name), kind) for name, kind in kinds.items())


def baselines(rows: Iterable[Row], sign: int) -> dict[str, dict[int, float]]:
    """Name of a guess -> length -> its score: that of rows trained at that length, if there are any.

    Of several (a guess may depend on the length of training) the hardest to beat, and never their mean, which is what
    nobody scores. sign: 1 if more is better, else -1.
    """
    found: dict[str, dict[int, list[tuple[bool, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name in row.metrics:
            if name.startswith("baseline_") and (value := number(row, name)) is not None:
                known = found[name.removeprefix("baseline_").replace("_", " ")][row.seq_len]
                known.append((row.train_seq_len == row.seq_len, sign * value))
    return {name: {n: sign * max(of[n])[1] for n in sorted(of)} for name, of in sorted(found.items())}


def number(row: Row, name: str) -> float | None:
    """A metric as a finite float, or None."""
    value = row.metrics.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= LARGEST:
        return None
    return float(value)


def mean(rows: Iterable[Row], name: str) -> float | None:
    """The mean of a metric over the rows that have it."""
    values = [value for row in rows if (value := number(row, name)) is not None]
    return fmean(values) if values else None


def point(rows: Sequence[Row], metric: Metric) -> Point | None:
    """The mean over seeds of the rows that ended well; what cannot stand on a log axis counts as missing."""
    found = over_seeds(list(by_seed(rows, metric.name, metric.is_log).values()), metric.scale)
    if found is None or found.n_seeds > 1:
        return found
    low, high = _spread([row for row in rows if row.status == "ok"], metric, found.value)
    return found._replace(low=low, high=high)


def by_seed(rows: Iterable[Row], name: str, is_log: bool = False) -> dict[int, float]:
    """Seed -> a metric of the rows that ended well, by rising seed; without what cannot stand on a log axis."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        value = number(row, name) if row.status == "ok" else None
        if value is not None and (value > 0 or not is_log):
            found[row.seed].append(value)
    return {seed: fmean(found[seed]) for seed in sorted(found)}


def over_seeds(values: Sequence[float], scale: Scale = "plain") -> Point | None:
    """The mean with its t interval; a single value has none, and neither have scores with two humps."""
    if len(values) < 2:
        return Point(values[0], None, None, 1) if values else None
    middle = fmean(values)
    if scale == "share" and stats.has_two_humps(values):
        return Point(middle, None, None, len(values), tuple(sorted(values, reverse=True)))
    if scale == "positive" and min(values) > 0:
        return Point(middle, *stats.factor_interval(values), len(values))
    return Point(middle, *stats.interval(values, *((0.0, 1.0) if scale == "share" else ())), len(values))


def _spread(rows: Sequence[Row], metric: Metric, value: float) -> tuple[float, float] | tuple[None, None]:
    """p10 and p90 of the steps of one seed; those of a rate follow from the times behind it."""
    name = metric.inverse_of or metric.name
    middle, low, high = (mean(rows, each) for each in (name, f"{name}_p10", f"{name}_p90"))
    if not low or not high:
        return None, None
    if metric.inverse_of and middle:
        return value * middle / high, value * middle / low
    return low, high


bootstrap = stats.interval
"""By its former name, for scripts that read it; it has been a t interval since 2026-11-30."""
