"""What produced a report, and how its numbers came about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from arch_bench.report import dials, differences, outliers, scaling, stats
from arch_bench.report.study import Study

METHOD = (
    "Points are means over seeds; brackets and whiskers are the 95 % Student-t interval of that mean, of a cost by "
    "factors of it, of a share within 0 and 100 %. One seed has no such interval. Neither have scores with two humps, "
    "some seeds near 100 % and others far below: there every seed is shown. An interval cannot know of a second hump "
    "that no seed has met: three equal seeds may have left out what one in two would show.",
    "Timings of one seed have whiskers from the 10th to the 90th percentile of the timed steps.",
    "Rows that did not end well give no value; they are crosses beyond the worst value and lines in a table. "
    "Seeds that diverged count against the share that solved a task.",
    "A sentence that one scores best, is last or is ahead of another needs a difference by Welch's t test with Holm's "
    "correction for all pairs of its task and for the tasks told of, by the same test with the spread also of those "
    "whose seeds score like both, and by an exact permutation test of all contenders of the task (which two with three "
    f"seeds cannot reach). Of studies whose contenders are equal, at most {100 * stats.LEVEL:.0f} % state any such "
    f"difference; under {stats.LEAST_SEEDS} seeds none is stated. Scores within 1 point (0.01 bits per byte), or of "
    "trainings that all stopped because they had reached trainer.stop_at, are level.",
    "Shares of seeds that solve a task are compared by Fisher's exact test, also with Holm's correction. Three seeds "
    "against three never differ by it: 3/3 against 0/3 has p = 0.10.",
    "A learning rate is chosen by the lowest validation loss of a scan (of trainings that stop early, by the fewest "
    "steps), and other dials by that of a search; the test split has no part in it.",
    "Dashed lines are what guessing scores, by the name of the guess.",
    "Costs are compared only under one batch policy and on one device. L^ stands for the exponent that a cost grows "
    f"with: the least-squares slope of its logarithm over that of the length, at the {scaling.N_LENGTHS} longest "
    "lengths that share a batch size, each counted once by the geometric mean of its processes. Its brackets are the "
    "least and the greatest slope between neighbouring ones of these lengths: how far the cost is from one power of "
    "the length, not how sure a number is.",
    "A crossover is the first length from which on one series is ahead of another that was ahead of it, beyond the "
    "spread of both.",
    f"A timing more than {outliers.OFF:g}x off the line between its neighbours (a bend from fixed to quadratic cost "
    f"allowed for), or with a backward over {outliers.BACKWARD:g}x its forward, is flagged as an outlier and kept.",
    "Kernels are timed as one layer alone, each in a process of its own. A bare call is a library's own layer, or its "
    "function between the same projections.",
    "Of rows measured twice (same configuration, kind, length and device) the newest counts.",
)


def provenance(study: Study) -> list[tuple[str, str]]:
    """Name and value of each fact, those that have none left out."""
    rows = study.every
    kinds = Counter(row.kind for row in rows)
    dates = sorted(row.created_at for row in rows)
    facts = [
        ("rows", f"{len(rows):,} ({', '.join(f'{kinds[kind]:,} {kind}' for kind in sorted(kinds))})"),
        ("experiment", _joined(row.experiment for row in rows)),
        ("measured", " to ".join(dict.fromkeys((dates[0][:19], dates[-1][:19])))),
        ("commit", _joined(_commit(row.commit, row.dirty) for row in rows)),
        ("data", _joined(", ".join(f"{name} {value}" for name, value in row.data.items()) for row in rows)),
        ("device", _joined(row.device for row in rows)),
        ("versions", _joined(f"{name} {version}" for row in rows for name, version in row.versions.items())),
        ("precision", _joined(row.precision for row in rows)),
        ("kernels", _joined(f"{row.backbone}: {row.kernel}" for row in rows if row.kernel and row.kind != "kernels")),
        ("seeds", ", ".join(str(seed) for seed in sorted({row.seed for row in rows}))),
        ("the same in every cell", _same(study)),
        ("differs, but is not in the names", differences.told(study.labels)),
    ]
    return [(name, value) for name, value in facts if value]


def _commit(commit: str, dirty: bool) -> str:
    return commit[:12] + (" with uncommitted changes" if dirty else "")


def _same(study: Study) -> str:
    return ", ".join(f"{dial} {dials.show(value)}" for dial, value in dials.shared(study.labels.cells).items())


def _joined(words: Iterable[str]) -> str:
    return ", ".join(sorted({word for word in words if word}))
