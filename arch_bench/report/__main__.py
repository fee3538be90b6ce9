"""`arch-bench-report`: from rows on disk to a folder that a person can read."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from arch_bench import results
from arch_bench.report import folder
from arch_bench.results import Row

EPILOG = """\
Without --out, each experiment gets its own report in DIR/EXPERIMENT (in DIR itself, if DIR has the experiment's
name), below the first DIR. With --out, everything selected goes into one report, so that experiments can be compared.
"""


class Refused(Exception):
    """Input that no report can be made of, in one line."""


def main(argv: list[str] | None = None) -> None:
    """Command line. Exits with 2, and one line on stderr, for input that cannot be reported on."""
    arguments = _parser().parse_args(argv)
    try:
        written = _report(arguments.dirs or [Path("results")], arguments.experiment, arguments.out)
    except Refused as refusal:
        print(f"arch-bench-report: {refusal}", file=sys.stderr)
        sys.exit(2)
    try:
        print(*written, sep="\n", flush=True)
    except BrokenPipeError:  # whoever read has read enough, and every report is written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes when it ends


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="arch-bench-report",
        description="Make tables, figures and one self-contained page from rows (DIR/rows/*.json).",
        epilog=EPILOG,
    )
    parser.add_argument("dirs", nargs="*", type=Path, metavar="DIR", help="a results folder (default: results)")
    parser.add_argument("--experiment", metavar="NAME", help="report on this experiment only")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write one report of everything selected here")
    return parser


def _report(dirs: Sequence[Path], experiment: str | None, out: Path | None) -> list[Path]:
    by_experiment = _select(_load(dirs), experiment)
    if out:
        merged = [row for rows in by_experiment.values() for row in rows]
        return _write(merged, out, " + ".join(by_experiment))
    paths = []
    for name, rows in by_experiment.items():
        paths += _write(rows, dirs[0] if dirs[0].resolve().name == name else folder.place(dirs[0], name), name)
    return paths


def _load(dirs: Sequence[Path]) -> list[Row]:
    for each in dirs:
        if not each.is_dir():
            raise Refused(f"{each} is no folder; name one that holds rows, or measure something with arch-bench first")
    rows = results.load(dirs)
    if not rows:
        places = ", ".join(str(each) for each in dirs)
        raise Refused(
            f"no rows in {places} (looked for rows/*.json there); run arch-bench first, or name another folder"
        )
    return rows


def _select(rows: Sequence[Row], experiment: str | None) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {name: [] for name in sorted({row.experiment for row in rows})}
    for row in rows:
        found[row.experiment].append(row)
    if experiment is None:
        return found
    if experiment not in found:
        raise Refused(f"no experiment {experiment} in these rows; there is {', '.join(found)}")
    return {experiment: found[experiment]}


def _write(rows: list[Row], out: Path, title: str) -> list[Path]:
    try:
        return folder.write(rows, out, title)
    except OSError as error:
        raise Refused(f"cannot write to {out} ({error.strerror or error}); choose another folder with --out") from error


if __name__ == "__main__":
    main()
