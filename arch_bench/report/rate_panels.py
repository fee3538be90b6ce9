"""What a panel of learning rates shows: the validation loss of each rate, a line per backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from arch_bench.report import dials, learning_rates, panels, ticks
from arch_bench.report.facets import Facet
from arch_bench.report.learning_rates import Scan
from arch_bench.report.metrics import Metric
from arch_bench.report.parts import Curve, Mark, Panel, Tick
from arch_bench.report.scale import Scale
from arch_bench.report.study import Study

WIDE = 10
"""From this ratio of the highest loss to the lowest, the axis is logarithmic."""
MOST_PANELS = 9


def rates(study: Study) -> list[list[Panel]]:
    """A panel per task and training length, without those that have no loss at all."""
    found: dict[tuple[str, int, str], list[Scan]] = {}
    for scan in learning_rates.scans(study):
        found.setdefault((scan.group.task, scan.group.train_seq_len, scan.metric.name), []).append(scan)
    row = [_panel(study, scans) for scans in found.values() if any(scan.chosen for scan in scans)]
    return [row[:MOST_PANELS]] if row else []


def _panel(study: Study, scans: Sequence[Scan]) -> Panel:
    metric, group = _scaled(scans), scans[0].group
    curves = [_curve(study, scan, metric) for scan in scans]
    every = sorted({trial.rate for scan in scans for trial in scan.trials})
    failing = [scan for scan in scans if any(trial.trouble for trial in scan.trials)]
    inner = panels.inner_range(curves, {}, metric)
    scale, band = panels.with_band(Scale(*inner, metric.is_log), len(failing), is_at_bottom=False)
    return Panel(
        facet=Facet(f"{group.task}, trained at {group.train_seq_len:,}"),
        metric=metric,
        curves=curves,
        x_range=panels.x_range(every),
        x_ticks=[Tick(rate, dials.show(rate)) for rate in ticks.thinned(every)],
        y_range=(scale.at(0), scale.at(1)),
        y_ticks=[Tick(value, metric.show(value)) for value in ticks.ticks(*inner, metric)],
        marks=_marks(study, failing, scale, edge=every[0]),
        band=band,
    )


def _scaled(scans: Sequence[Scan]) -> Metric:
    losses = [trial.loss.value for scan in scans for trial in scan.trials if trial.loss]
    is_log = min(losses) > 0 and max(losses) > WIDE * min(losses)
    return dataclasses.replace(scans[0].metric, is_log=is_log)


def _curve(study: Study, scan: Scan, metric: Metric) -> Curve:
    series = scan.group.series
    return Curve(series, study.style(series), {trial.rate: trial.loss for trial in scan.trials if trial.loss})


def _marks(study: Study, failing: Sequence[Scan], scale: Scale, edge: float) -> list[Mark]:
    """A row of the band for each; a run of equal statuses is named once, and one that a crowd shares in one row."""
    height, marks = min(panels.ROW, panels.MOST_BAND / max(1, len(failing))), []
    is_one = len({trial.trouble for scan in failing for trial in scan.trials if trial.trouble}) == 1
    is_crowd = height < panels.ROW and is_one
    for place, scan in enumerate(failing):
        series, tried = scan.group.series, [trial.rate for trial in scan.trials]
        found = {trial.rate: trial.trouble for trial in scan.trials if trial.trouble}
        for rate, trouble in found.items():
            told = ("", "left") if is_crowd and place else panels.caption(found, rate, tried, edge)
            y = scale.at(1 - (place + 0.5) * height)
            marks.append(Mark(rate, y, trouble, *told, series, study.style(series)))
    return marks
