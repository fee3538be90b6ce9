"""Measure what `results/published/CAMPAIGN.md` lists, in its order, for a given time; rows on disk are not made again.

    python benchmarks/campaign.py --minutes 60              # go on where the last one stopped
    python benchmarks/campaign.py --minutes 9 --only mqar_lengths
    python benchmarks/campaign.py --publish                 # copy the new rows to results/published, and report

Every line of that page that begins with `arch-bench ` is one item, filed under its experiment. Each begins with the
published rows of its experiment, so that any machine with a GPU goes on from there. At the end of its time an item is
asked to stop (SIGTERM): trainings under way are kept in its checkpoints, and the same command resumes them.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "results" / "published"
GRACE_S = 30
"""Seconds that trainings have to save themselves."""


class Item(NamedTuple):
    """One command of the campaign."""

    name: str
    arguments: list[str]


def items(page: str) -> Iterator[Item]:
    """Yield the commands of the page, in order. Raises ValueError for one that names no experiment."""
    for line in page.splitlines():
        if line.startswith("arch-bench "):
            _, *arguments = shlex.split(line)
            names = [found[1] for each in arguments if (found := re.fullmatch(r"experiment=(\w+)", each))]
            if not names:
                raise ValueError(f"{line}: names no experiment. Add experiment=NAME")
            yield Item(names[0], arguments)


def begin_with_published(name: str, results: Path) -> None:
    """Copy the published rows of an experiment to where it goes on, unless they are there."""
    rows = results / name / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    for path in (PUBLISHED / name / "rows").glob("*.json"):
        if not (rows / path.name).exists():
            shutil.copy(path, rows)


def measure(item: Item, results: Path, until: float) -> int:
    """Run one item until it ends or its time does; return its exit code, which is 143 where its time ended."""
    begin_with_published(item.name, results)
    command = [sys.executable, "-m", "arch_bench.cli", *item.arguments, f"results_dir={results / item.name}"]
    print("+", shlex.join(command[2:]), flush=True)
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            return process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def publish(results: Path) -> None:
    """Copy rows that are new or better to `results/published`, and build each experiment's report."""
    for rows in sorted(results.glob("*/rows")):
        name, target = rows.parent.name, PUBLISHED / rows.parent.name
        (target / "rows").mkdir(parents=True, exist_ok=True)
        for path in rows.glob("*.json"):
            shutil.copy(path, target / "rows")
        subprocess.run([sys.executable, "-m", "arch_bench.report", str(target), "--out", str(target)], check=True)
        print(f"{name}: {len(list((target / 'rows').glob('*.json')))} rows published")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=60.0, help="all items together")
    parser.add_argument("--only", metavar="EXPERIMENT", help="leave out all others")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "campaign")
    parser.add_argument("--publish", action="store_true", help="measure nothing; copy rows to results/published")
    parser.add_argument("overrides", nargs="*", help="added to every command")
    asked = parser.parse_args()
    if asked.publish:
        publish(asked.results)
        return
    until = time.monotonic() + 60 * asked.minutes
    for listed in items((PUBLISHED / "CAMPAIGN.md").read_text()):
        if asked.only not in (None, listed.name):
            continue
        item = listed._replace(arguments=[*listed.arguments, *asked.overrides])
        if time.monotonic() >= until:
            print(f"not begun for want of time: {item.name}")
            continue
        print(f"{item.name}: exit code {measure(item, asked.results, until)}", flush=True)


if __name__ == "__main__":
    main()
