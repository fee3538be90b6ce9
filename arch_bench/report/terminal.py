"""The summary that a sweep ends with: plain text, about 120 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from arch_bench.report import contenders, dials, facets, metrics, search_table, tables, units
from arch_bench.report.metrics import Metric
from arch_bench.report.study import Group, Study
from arch_bench.results import Kind, Row

LONGEST_NAME = 40
COSTS: tuple[Kind, ...] = ("speed", "decode")


def summary(rows: list[Row]) -> str:
    """One line per task, backbone and varying dials: scores first, then costs at the longest measured length.

    Kernels come last, a line each below the backbone that they are for.
    """
    study = Study(rows)
    blocks = [_searches(study), _scores(study), _costs(study), _kernels(study)]
    return "\n\n".join(block for block in blocks if block) or _nothing_yet(rows)


def _nothing_yet(rows: Sequence[Row]) -> str:
    """What there is where no table has anything to show, as after an interrupted choice of rates."""
    counts = Counter(row.kind for row in rows)
    found = (f"{n:,} row{'s' * (n > 1)} of kind {kind}" for kind, n in counts.items())
    return f"no scores yet; {', '.join(found)}" if counts else "no rows"


def _scores(study: Study) -> str:
    """A length that all lines share goes to the header."""
    groups = study.groups("quality")
    header = ["trained", "score", "longest", "score", "best guess", "solved", "seeds", "params", "not ok"]
    lines = [_score_line(study, group) for group in groups]
    for length, score in ((0, 1), (2, 3)):
        if len(found := {line[length] for line in lines}) == 1 and (common := found.pop()):
            header[score] = f"at {common}"
            lines = [[*line[:length], "", *line[length + 1 :]] for line in lines]
    return _table("scores", header, groups, lines)


def _score_line(study: Study, group: Group) -> list[str]:
    metric = study.headline(group.task)
    points = study.points(metric).get(group, {})
    trained, longest = group.train_seq_len, max(study.index["quality"][group])
    best, share = study.best_baseline(group.task, trained), tables.solved(study, group, trained)
    every = [row for of in study.index["quality"][group].values() for row in of]
    return [
        units.length(trained),
        tables.text(metric, points[trained]) if trained in points else "",
        units.length(longest) if longest != trained else "",
        tables.text(metric, points[longest]) if longest in points and longest != trained else "",
        f"{best[0]} {metric.show(best[1])}" if best else "",
        f"{share[0]}/{share[1]}" if share else "",
        str(len({row.seed for row in every})),
        tables.span(every, "n_params", units.count).text if every else "",
        _trouble(study, "quality", group),
    ]


def _searches(study: Study) -> str:
    """The best of each, and where it is."""
    found = search_table.searches(study)
    lines = []
    for search in found:
        row, loss = search.best or (None, None)
        where = ", ".join(f"{name}={dials.show(of)}" for name, of in search_table.values(row).items()) if row else ""
        shown = "" if loss is None else f"{search.metric.show(loss)} ({search.metric.title.rpartition(', ')[2]})"
        lines.append([units.length(search.train_seq_len), search.counts, shown, where])
    groups = [Group(search.task, search.series, search.train_seq_len) for search in found]
    return _table("searches", ["trained", "trials", "validation loss", "at"], groups, lines)


def _costs(study: Study) -> str:
    """Training and decoding share a line; where one of them has several batch policies, if they share the policy."""
    is_split = any(len({group.batching for group in study.groups(kind)}) > 1 for kind in COSTS)
    places: dict[Group, dict[Kind, Group]] = {}
    for kind in COSTS:
        for group in study.groups(kind):
            place = group if is_split else group._replace(batching="")
            places.setdefault(place, {})[kind] = group
    tasks, series = study.labels.tasks, study.labels.series

    def order(each: Group) -> tuple[object, ...]:
        return tasks.index(each.task), series.index(each.series), facets.place(each.batching), each.device

    groups = sorted(places, key=order)
    header = ["batching", "device", "length", "tok/s", "peak memory", "context", "ms/token", "state", "not ok"]
    return _table("costs", header, groups, [_cost_line(study, each, places[each]) for each in groups])


def _cost_line(study: Study, place: Group, of_kind: Mapping[Kind, Group]) -> list[str]:
    trouble = [text for kind, group in of_kind.items() if (text := _trouble(study, kind, group))]
    return [
        facets.words(place.batching).removesuffix(" per step"),
        place.device,
        *_at_longest(study, of_kind.get("speed"), (metrics.TOKENS_PER_S, metrics.PEAK_MEMORY)),
        *_at_longest(study, of_kind.get("decode"), (metrics.MS_PER_TOKEN, metrics.STATE)),
        "; ".join(dict.fromkeys(trouble)),
    ]


def _kernels(study: Study) -> str:
    """Each at the longest length that it reaches, beside the others there; the fastest at the longest length first."""
    groups = sorted(study.groups("kernels"), key=lambda group: _reach(study, group))
    header = ["length", "fwd+bwd ms", "peak memory", "of fastest", "of bare", "not ok"]
    return _table(
        "kernels", header, [_named(study, group) for group in groups], [_line(study, group) for group in groups]
    )


def _reach(study: Study, group: Group) -> tuple[int, int, float]:
    """By facet, the longest length, and the time there."""
    length, point = max(study.points(metrics.KERNEL).get(group, {}).items(), default=(0, None))
    return study.facets("kernels").index(group.facet), -length, point.value if point else 0.0


def _named(study: Study, group: Group) -> Group:
    """As the table heads its lines."""
    role = contenders.role(study, group)
    return group._replace(task=group.facet.title, series=group.series + f" ({role})" * bool(role))


def _line(study: Study, group: Group) -> list[str]:
    length = max(study.points(metrics.KERNEL).get(group, {}), default=0)
    factors = contenders.of_fastest(study, group, length), contenders.of_bare(study, group, length)
    return [
        *_at_longest(study, group, (metrics.KERNEL, metrics.KERNEL_MEMORY)),
        *(units.times(factor) if factor else "" for factor in factors),
        _trouble(study, "kernels", group),
    ]


def _at_longest(study: Study, group: Group | None, chosen: Sequence[Metric]) -> list[str]:
    """The longest length that has a value, and the values there."""
    points = [study.points(metric).get(group, {}) if group else {} for metric in chosen]
    if not any(points):
        return [""] * (1 + len(chosen))
    longest = max(length for of in points for length in of)
    shown = (metric.show(of[longest].value) if longest in of else "" for metric, of in zip(chosen, points, strict=True))
    return [units.length(longest), *shown]


def _trouble(study: Study, kind: Kind, group: Group) -> str:
    """`oom at 4k`, or `oom at 4k to 64k` for three lengths and more."""
    found: dict[str, list[int]] = {}
    for length in sorted(study.index[kind].get(group, {})):
        if status := study.trouble(kind, group, length):
            found.setdefault(status, []).append(length)
    return "; ".join(f"{status} at {_lengths(study, kind, group, at)}" for status, at in found.items())


def _lengths(study: Study, kind: Kind, group: Group, at: Sequence[int]) -> str:
    between = [length for length in study.index[kind][group] if at[0] <= length <= at[-1]]
    if len(at) > 2 and len(between) == len(at):
        return f"{units.length(at[0])} to {units.length(at[-1])}"
    return ", ".join(map(units.length, at))


def _table(name: str, header: Sequence[str], groups: Sequence[Group], lines: Sequence[Sequence[str]]) -> str:
    """A heading line per task, then its series; without the columns that are empty in every line."""
    kept = [place for place in range(len(header)) if any(line[place] for line in lines)]
    body: list[list[str]] = []
    for task, of_task in groupby(zip(groups, lines, strict=True), key=lambda pair: pair[0].task):
        body.append([task, *("" for _ in kept)])
        body += [[f"  {_short(group.series)}", *(line[place] for place in kept)] for group, line in of_task]
    headers = [name, *(header[place] for place in kept)]
    return _plain(body, headers) if body else ""


def _plain(body: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A heading line may run over the columns, which are empty there."""
    filled = [headers, *(line for line in body if any(line[1:]))]
    widths = [max(len(line[place]) for line in filled) for place in range(len(headers))]
    lines = [headers, ["-" * width for width in widths], *body]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
