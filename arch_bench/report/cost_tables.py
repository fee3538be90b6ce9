"""The tables of costs: how they grow, where they cross, and every number behind the figures."""

from __future__ import annotations

from collections.abc import Sequence

from arch_bench.report import crossovers as crossing
from arch_bench.report import facets, metrics, outliers, units
from arch_bench.report import scaling as growth
from arch_bench.report.scaling import Exponent
from arch_bench.report.study import Group, Study, by_seed, over_seeds
from arch_bench.report.tables import NOTHING, Cell, Table, at_point, average, build, n_seeds, shown, span, words
from arch_bench.results import Kind, Row

PHASES: dict[Kind, str] = {"speed": "training", "decode": "decoding"}


def scaling(study: Study) -> Table | None:
    """One line per facet of each phase, and series; None if nothing could be fitted and nothing failed."""
    if not any(_is_telling(study, kind, group) for kind in PHASES for group in study.groups(kind)):
        return None
    lines = [
        [Cell(group.task), Cell(_measured(kind, group)), Cell(group.series), *_growth(study, kind, group)]
        for kind in PHASES
        for group in study.groups(kind)
    ]
    columns = ["task", "measured", "backbone", "time as L^", "prefill as L^", "activations as L^", "fitted over"]
    note = "Time is that of a training step, or of a decoded token. Exponents: least squares through the three longest "
    note += "lengths measured at one batch size, and the least and the greatest slope between neighbouring ones: what "
    note += "bends has no one exponent. None is stated where times spread so far that they could move it by more than "
    note += (
        f"{growth.MOST_REACH:g}, where slopes fall or exceed those of a square, where a decoded token grows with no "
    )
    note += "state, or where others kept the CPU busy. State: bytes for each token of the longest context."
    return build("Scaling", note, [*columns, "longest that fits", "stopped by", "state per token"], lines)


def crossovers(study: Study) -> Table | None:
    """One line per pair and quantity that change places; pairs that share their dials come first."""
    found = crossing.crossovers(study)
    found.sort(key=lambda each: not crossing.is_like(study, each.ahead, each.behind))
    lines = [
        [*_facet(each.ahead), Cell(crossing.NAMES[each.metric]), Cell(each.ahead.series), Cell(each.behind.series),
         _length(each.before), _length(each.length), Cell(f"{units.plain(each.lead)}x at {each.longest:,}", each.lead),
         Cell(units.seeds(*each.n_seeds)), Cell(each.doubt)]
        for each in found
    ]  # fmt: skip
    columns = ["task", "batching", "device", "in", "this one", "passes", "behind until", "ahead from", "lead", "seeds"]
    columns += ["doubt"]
    note = "Ahead, or behind: by more than 5 %, and the spreads of the two (p10 to p90 of one seed, the interval over "
    note += "several) do not overlap. A crossover counts if the lead lasts through the longest length of both."
    return build("Crossovers", note, columns, lines)


def training(study: Study) -> Table | None:
    """One line per facet, length and series."""
    odd = outliers.reasons(study, "speed")
    lines = []
    for group, length in _by_length(study, "speed"):
        rows = study.at("speed", group, length)
        lines.append([
            *_facet(group), _length(length), Cell(group.series), span(rows, "batch_size", units.plain),
            at_point(study, metrics.TOKENS_PER_S, group, length), at_point(study, metrics.TRAIN_STEP, group, length),
            average(rows, "forward_ms", units.plain), average(rows, "forward_backward_ms", units.plain),
            at_point(study, metrics.PEAK_MEMORY, group, length), average(rows, "activation_bytes", units.size),
            average(rows, "tflops", units.plain), average(rows, "matmul_share", units.percent),
            average(rows, "mfu", units.percent), average(rows, "joules_per_token", units.milli),
            average(rows, "compile_s", units.plain), average(rows, "warmup_s", units.plain),
            Cell(words(row.kernel for row in rows)), _steps(rows), span(rows, "n_params", units.count),
            *_seeds_and_doubts(rows, odd.get((group, length))),
        ])  # fmt: skip
    columns = ["task", "batching", "device", "length", "backbone", "batch", "tokens/s", "step ms", "forward ms"]
    columns += ["forward + backward ms", "peak memory", "activations", "TFLOP/s", "of matrix product", "MFU"]
    columns += ["mJ per token", "compile s", "warm-up s", "kernel", "step", "parameters", "seeds", "outlier"]
    note = "One optimiser step on one batch; brackets: p10 to p90 of one seed's steps, or the interval over seeds. "
    note += "Shares are of the matrix-product rate measured in the same process, and of the datasheet's peak (MFU)."
    return build("Training in numbers", note, columns, lines)


def decoding(study: Study) -> Table | None:
    """One line per facet, context length and series."""
    odd = outliers.reasons(study, "decode")
    lines = []
    for group, length in _by_length(study, "decode"):
        rows = study.at("decode", group, length)
        lines.append([
            *_facet(group), _length(length), Cell(group.series), span(rows, "batch_size", units.plain),
            at_point(study, metrics.PREFILL, group, length), at_point(study, metrics.MS_PER_TOKEN, group, length),
            average(rows, "ms_per_token_p95", units.plain), average(rows, "ms_per_token_eager", units.plain),
            _steps(rows), average(rows, "tokens_per_s_decode", units.count),
            at_point(study, metrics.STATE, group, length), average(rows, "state_elements", units.count),
            average(rows, "gb_per_s", units.plain), _share(rows, "gb_per_s", "copy_gb_per_s"),
            average(rows, "joules_per_token", units.milli), average(rows, "peak_mem_bytes", units.size),
            Cell(words(row.kernel for row in rows)),
            Cell(words(str(row.metrics.get("step_kernel", "")) for row in rows)),
            *_seeds_and_doubts(rows, odd.get((group, length))),
        ])  # fmt: skip
    columns = ["task", "batching", "device", "context", "backbone", "batch", "prefill ms", "ms per token", "p95"]
    columns += ["eager ms", "step", "tokens/s", "state", "state elements", "GB/s", "of copy rate", "mJ per token"]
    columns += ["peak memory", "prefill kernel", "step kernel", "seeds", "outlier"]
    note = "A prompt in one pass, then one token at a time; the state is what is carried from token to token."
    return build("Decoding in numbers", note, columns, lines)


def _is_telling(study: Study, kind: Kind, group: Group) -> bool:
    time = metrics.TRAIN_STEP if kind == "speed" else metrics.MS_PER_TOKEN
    return bool(growth.exponent(study, group, time) or growth.limit(study, kind, group).at)


def _growth(study: Study, kind: Kind, group: Group) -> list[Cell]:
    """The cells that only one phase has are empty in the other."""
    time = metrics.TRAIN_STEP if kind == "speed" else metrics.MS_PER_TOKEN
    prefill = growth.exponent(study, group, metrics.PREFILL) if kind == "decode" else None
    exponents = [growth.exponent(study, group, time), prefill]
    memory = growth.memory(study, group) if kind == "speed" else None
    is_peak = memory and memory[0] is metrics.PEAK_MEMORY
    fitted = next((each for each in (*exponents, memory and memory[1]) if each), None)
    limit = growth.limit(study, kind, group)
    return [
        *map(_power, exponents),
        _power(memory[1], " (peak)" if is_peak else "") if memory else NOTHING,
        _fitted(fitted) if fitted else NOTHING,
        _length(limit.length) if limit.length else Cell("none"),
        Cell(f"{limit.trouble} at {limit.at:,}" if limit.at else "nothing so far"),
        _state(study, group) if kind == "decode" else NOTHING,
    ]


def _power(exponent: Exponent | None, remark: str = "") -> Cell:
    if not exponent:
        return NOTHING
    if exponent.doubt:
        return Cell(f"none: {exponent.doubt}")
    return Cell(units.power(exponent.value, exponent.low, exponent.high) + remark, exponent.value)


def _fitted(exponent: Exponent) -> Cell:
    """`256k-1M, batch 1`."""
    batch = f", batch {exponent.batch_size:g}" if exponent.batch_size else ""
    ends = units.length(exponent.lengths[0]), units.length(exponent.lengths[-1])
    return Cell(units.DASH.join(ends) + batch)


def _state(study: Study, group: Group) -> Cell:
    found = growth.state_per_token(study, group)
    return Cell(f"{units.size(found[0])} at {found[1]:,}", found[0]) if found else NOTHING


def _measured(kind: Kind, group: Group) -> str:
    """`training, batch 1`."""
    return ", ".join(part for part in (PHASES[kind], group.facet.conditions) if part)


def _facet(group: Group) -> list[Cell]:
    return [Cell(group.task), Cell(facets.words(group.batching)), Cell(group.device)]


def _length(n_tokens: int) -> Cell:
    return Cell(f"{n_tokens:,}", n_tokens)


def _by_length(study: Study, kind: Kind) -> list[tuple[Group, int]]:
    """By facet, then length, then series: what is compared stands together."""
    pairs = [(group, length) for group in study.groups(kind) for length in study.index[kind][group]]
    every = study.facets(kind)
    return sorted(pairs, key=lambda pair: (every.index(pair[0].facet), pair[1]))


def _steps(rows: Sequence[Row]) -> Cell:
    return Cell(words(str(row.metrics["step"]) for row in rows if row.metrics.get("step")))


def _share(rows: Sequence[Row], part: str, whole: str) -> Cell:
    """The mean of a quotient over the seeds that have both."""
    parts, wholes = by_seed(rows, part), by_seed(rows, whole)
    shares = [parts[seed] / wholes[seed] for seed in parts if wholes.get(seed)]
    point = over_seeds(shares, "positive")
    return Cell(shown(units.percent, point), point.value) if point else NOTHING


def _seeds_and_doubts(rows: Sequence[Row], doubt: str | None) -> list[Cell]:
    return [Cell(str(n_seeds(rows)), n_seeds(rows)), Cell(doubt) if doubt else NOTHING]
