"""The folder of a report: page, Markdown, figures and the rows as CSV, each file whole or not there."""

from __future__ import annotations

import base64
import csv
import dataclasses
import gzip
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2

from arch_bench.report import (
    cost_tables,
    dials,
    fronts,
    heat_maps,
    kernel_table,
    learning_rates,
    metrics,
    pair_tables,
    panels,
    provenance,
    rankings,
    rate_panels,
    search_table,
    slice_table,
    solved_table,
    tables,
    tradeoffs,
)
from arch_bench.report.dials import Flattener
from arch_bench.report.findings import findings
from arch_bench.report.parts import HeatMap, Panel, Ranking
from arch_bench.report.study import Study
from arch_bench.report.style import SVG_DASHES, SVG_SHAPES, Style
from arch_bench.report.tradeoffs import Tradeoff
from arch_bench.results import Row
from arch_bench.results.files import sweep_up, whole

MOST_LETTERS = 120
"""Of the name of a folder."""
TAKEN = {"rows", "checkpoints", "claims", "logs"}
"""Folders of a results folder that hold other things."""
_NO_NAME = re.compile(r"[/\\\x00-\x1f]+")
STEMS = ("quality", "rates", "parts", "fronts", "training", "decoding", "kernels")
"""Every figure that a report may have; one that no longer applies is deleted."""
KERNELS = (
    "One sequence layer alone, forward and backward, by each of its kernels. Thick: what kernel=auto picks here. "
    "Dashed grey: the same work by plain calls of a library."
)

RATES = (
    "Validation loss at each learning rate tried, by training length. The lowest point of a line is the rate that was "
    "chosen; crosses are rates that failed."
)
FRONTS = (
    "Score at the training length against what it costs. The line is the front: those on it are beaten by nobody in "
    "both; the others are pale. Whiskers: intervals over seeds, of a timing of one seed p10 to p90."
)
RANKED = {
    "quality": "What each backbone scores, best first.",
    "training": "What one optimiser step costs, best first.",
    "decoding": "What a prompt and each token cost, best first.",
}
"""Stem -> caption of a figure of rankings."""
WHISKERS = " What failed stands last. Whiskers: intervals over seeds, of a timing of one seed p10 to p90."
PARTS = "Where each backbone is right, by part of a task and by tested length: the mean over seeds."


@dataclass(frozen=True)
class Section:
    """One figure: rows of panels, and the styles that its legend explains; none if the panels have names instead."""

    stem: str
    title: str
    caption: str
    x_label: str
    rows: list[list[Panel]]
    styles: dict[str, Style]
    maps: list[list[HeatMap]] = field(default_factory=list)
    tradeoffs: list[list[Tradeoff]] = field(default_factory=list)
    rankings: list[list[Ranking]] = field(default_factory=list)


def place(base: Path, experiment: str) -> Path:
    """Return the folder of an experiment's report: inside `base`, whatever a row says that its experiment is."""
    folder = base / _NO_NAME.sub("_", experiment).strip(" .")[:MOST_LETTERS]
    return folder if folder != base and folder.name not in TAKEN else base / f"report_{folder.name}"


def build(rows: list[Row], out: Path, title: str) -> Path:
    """Write a report of `rows` into `out` and return the path of its page, which is written last."""
    return write(rows, out, title)[0]


def write(rows: list[Row], out: Path, title: str) -> list[Path]:
    """`build`, returning every path written, the page first. Raises ValueError without rows."""
    if not rows:
        raise ValueError("no rows to report on")
    study = Study(rows)
    shown = sections(study)
    files: dict[str, bytes] = {"rows.csv": rows_csv(study.every)}
    files |= _figures(shown)
    known = {f"figures/{stem}.{ending}" for stem in STEMS for ending in ("png", "svg")}
    context = _context(study, shown, title)
    files["report.md"] = _render("report.md.j2", context).encode()
    files["report.html"] = _render("page.html.j2", context | _page_context(shown)).encode()
    for name in sorted(known - files.keys()):
        (out / name).unlink(missing_ok=True)
    for part in sorted({(out / name).parent for name in files}):
        sweep_up(part)  # what a kill has left of an earlier report
    return [_replace(out / name, content) for name, content in files.items()][::-1]


def sections(study: Study) -> list[Section]:
    """Quality, its parts and fronts, learning rates, costs, kernels: those that the rows have something for."""
    quality_caption = "What each backbone scores, against the length it is tested at."
    if any(curve.is_faint for row in panels.quality(study) for panel in row for curve in panel.curves):
        quality_caption += " Dotted lines leave a training length for lengths that were not trained on."
    if any(of.scattered for points in study.points(metrics.ACCURACY).values() for of in points.values()):
        quality_caption += " Small hollow marks are single seeds, where some learn the task and others do not."
    training, decoding, kernels = panels.costs(study, "speed"), panels.costs(study, "decode"), panels.kernels(study)
    drafts = [
        ("quality", "Quality", quality_caption, "sequence length, tokens", panels.quality(study)),
        ("training", "Cost of training", f"What one optimiser step costs, by sequence length.{_exponents(training)}",
         "sequence length, tokens", training),
        ("decoding", "Cost of decoding", f"What a prompt and each token cost, by context.{_exponents(decoding)}",
         "context, tokens", decoding),
        ("kernels", "Kernels", f"{KERNELS}{_width(study)}", "sequence length, tokens", kernels),
    ]  # fmt: skip
    found = [_section(Section(*draft, styles=_styles(study, draft[-1]))) for draft in drafts if draft[-1]]
    if maps := heat_maps.maps(study):
        found.insert(1, Section("parts", "Quality by part", PARTS, "sequence length, tokens", [], {}, maps))
    if shown := tradeoffs.tradeoffs(study):
        place = sum(section.stem in ("quality", "parts") for section in found)
        found.insert(place, Section("fronts", "Pareto fronts", FRONTS, "", [], {}, tradeoffs=shown))
    if rates := rate_panels.rates(study):
        place = sum(section.stem in ("quality", "parts", "fronts") for section in found)
        found.insert(place, Section("rates", "Learning rates", RATES, "learning rate", rates, _styles(study, rates)))
    return found


def _section(draft: Section) -> Section:
    """Rankings instead of lines, where there are too many lines of too few lengths."""
    if draft.stem not in RANKED or not rankings.suit(draft.rows):
        return draft
    ranked = [[rankings.ranking(panel) for panel in row] for row in draft.rows]
    return Section(draft.stem, draft.title, RANKED[draft.stem] + WHISKERS, "", [], {}, rankings=ranked)


def _exponents(rows: Sequence[Sequence[Panel]]) -> str:
    is_shown = any(panel.slopes for row in rows for panel in row)
    text = " L^ beside the axes: the exponent fitted to the three longest lengths of a line; how far its slope changes "
    return f"{text}between them stands in the table of scaling." * is_shown


def _width(study: Study) -> str:
    """Of the layers, if it is the same in all of them and so in no name."""
    width = dials.shared(cell for cell in study.labels.cells if cell.place.kind == "kernels").get("d_model")
    return f" d_model is {width} throughout." if width else ""


def _styles(study: Study, rows: Sequence[Sequence[Panel]]) -> dict[str, Style]:
    """The series that the panels show, in reading order, without those whose names stand beside a panel."""
    every = [panel for row in rows for panel in row if not panel.names]
    found = {curve.series for panel in every for curve in panel.curves if curve.points}
    found |= {mark.series for panel in every for mark in panel.marks}
    return {name: study.style(name) for name in study.labels.series if name in found}


def _figures(shown: Sequence[Section]) -> dict[str, bytes]:
    return {
        f"figures/{section.stem}.{ending}": content for section in shown for ending, content in _drawn(section).items()
    }


def _drawn(section: Section) -> dict[str, bytes]:
    from arch_bench.report import (  # matplotlib takes a third of a second, which the summary need not wait for
        figures,
        ranking_figure,
        tradeoff_figure,
    )

    if section.maps:
        return figures.draw_maps(section.maps, section.x_label)
    if section.tradeoffs:
        return tradeoff_figure.draw(section.tradeoffs)
    if section.rankings:
        return ranking_figure.draw(section.rankings)
    return figures.draw(section.rows, section.styles, section.x_label)


def _context(study: Study, shown: Sequence[Section], title: str) -> dict[str, Any]:
    """What both templates show."""
    scores = (metrics.ACCURACY, metrics.BEYOND, metrics.BITS_PER_BYTE, metrics.GENERATED)
    every = [tables.scores(study, metric) for metric in scores]
    every += [solved_table.numbers(study), *pair_tables.matrices(study), fronts.numbers(study)]
    every += [
        learning_rates.numbers(study),
        search_table.numbers(study),
        heat_maps.numbers(study),
        slice_table.numbers(study),
    ]
    every += [cost_tables.scaling(study), cost_tables.crossovers(study)]
    every += [cost_tables.training(study), cost_tables.decoding(study), kernel_table.numbers(study)]
    every += [tables.failures(study)]
    return {
        "title": title,
        "findings": findings(study),
        "sections": shown,
        "tables": [table for table in every if table],
        "provenance": provenance.provenance(study),
        "method": provenance.METHOD,
    }


def _page_context(shown: Sequence[Section]) -> dict[str, Any]:
    """What only the page needs: the interactive figures and the script that draws them."""
    from plotly.offline import get_plotlyjs

    from arch_bench.report import ranking_plot, tradeoff_plot
    from arch_bench.report.plots import plot, plot_map

    plots = [
        [[plot(panel) for panel in row] for row in section.rows]
        + [[plot_map(each) for each in of] for of in section.maps]
        + [[tradeoff_plot.plot(each) for each in of] for of in section.tradeoffs]
        + [[ranking_plot.plot(each) for each in of] for of in section.rankings]
        for section in shown
    ]
    looks = {"shapes": SVG_SHAPES, "dashes": SVG_DASHES, "least_width": ranking_plot.least_width}
    return {"plots": plots, "script": _packed(get_plotlyjs())} | looks


def _packed(text: str) -> str:
    """A third of its size, the same for the same text; every browser since 2023 unpacks it."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _render(template: str, context: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(context)


def rows_csv(rows: Sequence[Row]) -> bytes:
    """One line per row, nested columns flattened to dotted names."""
    flat = Flattener()
    lines = [flat({name: getattr(row, name) for name in _FIELDS}) for row in rows]
    names = list(dict.fromkeys(chain.from_iterable(lines)))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([line.get(name, "") for name in names] for line in lines)
    return file.getvalue().encode()


_FIELDS = [field.name for field in dataclasses.fields(Row) if field.name != "curve"]


def _replace(path: Path, content: bytes) -> Path:
    """Write so that a reader sees the old file or the new one."""
    with whole(path) as file:
        file.write(content)
    return path
