"""Rows on disk: the one store that tables, figures, pages and dashboards are made from. Imports no torch."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

Kind = Literal["quality", "scan", "speed", "decode", "kernels"]
Status = Literal["ok", "oom", "unsupported", "diverged", "timeout", "crashed", "pruned"]
RETRIED: frozenset[Status] = frozenset({"timeout", "crashed"})
"""What may end better the next time."""
Metrics = dict[str, float | int | str | None]
Curve = dict[str, list[int] | list[float] | list[float | None]]
"""A learning curve, column by column: `step`, and what validation found there. None: not finite."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a phase found at one length: a row without its identity and provenance."""

    seq_len: int
    kernel: str = ""
    status: Status = "ok"
    reason: str = ""
    metrics: Metrics = field(default_factory=dict)
    data: dict[str, str | int] = field(default_factory=dict)
    curve: Curve = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: one cell, one kind, one evaluated length."""

    # identity
    experiment: str
    backbone: str
    task: str
    seq_len: int
    """Length evaluated or timed; for `decode`, the context length."""
    train_seq_len: int
    seed: int
    kernel: str
    """The implementation that ran, as the mixers report it; empty when the measurement failed."""
    precision: str
    key: str
    """Hash of the cell's configuration, without bookkeeping and without how a phase measures."""
    kind: Kind
    # outcome
    status: Status
    reason: str = ""
    """Why the status is not `ok`, in one line."""
    metrics: Metrics = field(default_factory=dict)
    """Flat, the unit in the name."""
    curve: Curve = field(default_factory=dict)
    """The learning curve, in a training's row at its own length."""
    # provenance
    commit: str = ""
    dirty: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    data: dict[str, str | int] = field(default_factory=dict)
    """Where the data came from (a corpus and its hash); empty for a generated task."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration of the cell."""
    chosen: str = ""
    """What a protocol chose for this cell, and why."""
    wall_s: float | None = None
    """Seconds of its process, shared equally by the rows that it made."""
    process_bytes: int | None = None
    """What its process held at most: on a GPU what its allocator reserved and the context, else resident memory."""
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        """Raises ValueError for a length that figures have no place for."""
        if min(self.seq_len, self.train_seq_len) < 1:
            raise ValueError(f"seq_len={self.seq_len}, train_seq_len={self.train_seq_len}: each needs at least 1")


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors of a disk that takes nothing more, from anybody."""


class Unsaved(OSError):
    """A full disk has cost rows, which are in `rows`: an attribute goes with an OSError from process to process."""

    rows: Sequence[Row] = ()


def save(row: Row, path: Path) -> None:
    """Write a row so that a reader sees all of it or none."""
    text = json.dumps(dataclasses.asdict(row), indent=1, allow_nan=False)
    # Numbers of a list share a line: a newline never stands in a JSON string, so this meets lists only.
    text = re.sub(r"\[\n[^\[\]{}\"]*\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)
    with whole(path) as file:
        file.write(text.encode())


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears when all of it is on disk, or not at all: temporary name, fsync, rename. Makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # others may read a shared folder; a temporary file is private
            os.fsync(file.fileno())
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).replace(path)


_STALE_S = 86_400


def sweep_up(folder: Path) -> None:
    """Remove what processes that were killed have left behind in a folder, a day later."""
    for path in (*folder.glob("*.tmp"), *folder.glob("*.lock")):
        with suppress(OSError):  # another process sweeps too
            if path.stat().st_mtime < time.time() - _STALE_S:
                path.unlink()


def read(path: Path) -> Row:
    """Raises ValueError, naming the file, for one that is torn, foreign or cannot be read; FileNotFoundError."""
    try:
        return Row(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path}: not a row of arch-bench ({error})") from error


def load(folders: Iterable[Path]) -> list[Row]:
    """Every row of the given results folders (each has a folder `rows`, or is one), oldest first.

    Folders further down, such as `published/`, are other people's results. A file that is no row is named on stderr
    and skipped.
    """
    rows = []
    for path in sorted({path for folder in folders for path in _rows_of(folder.resolve()).glob("*.json")}):
        try:
            rows.append(read(path))
        except FileNotFoundError:  # somebody has just removed it
            continue
        except ValueError as error:
            print(f"skipped {error}", file=sys.stderr)
    return sorted(rows, key=lambda row: row.created_at)


def _rows_of(folder: Path) -> Path:
    return folder if folder.name == "rows" else folder / "rows"


_BOOKKEEPING = frozenset(
    {
        *("results_dir", "logger", "isolate", "rerun", "time_limit_s", "checkpoint_every_s"),
        *("phases", "eval_scales", "chosen", "trial"),
    }
)
_PHASE_SETTINGS = frozenset({"speed", "decode"})
_WHICH_LENGTHS = frozenset({"lengths", "search_max_len"})


ADDED: dict[str, dict[str, Any]] = {
    "trainer": {"strategy": "single", "devices": 1},
    "match": {"tolerance": 0.1},
    "task": {"revision": None},
}
"""Dials that came after rows were published, by group, with the values that leave everything as it was then: the key
does not see those, and old rows keep theirs."""


def cell_key(config: dict[str, Any]) -> str:
    """Hash of what a cell is: its configuration without bookkeeping and without how a phase measures."""
    kept = {k: v for k, v in config.items() if k not in _BOOKKEEPING | _PHASE_SETTINGS}
    for group, neutral in ADDED.items():
        if group in kept:
            kept[group] = {k: v for k, v in kept[group].items() if k not in neutral or v != neutral[k]}
    if "cache_dir" in kept["task"]:  # where a corpus is kept changes nothing that is measured, nor that it is checked
        kept["task"] = {k: v for k, v in kept["task"].items() if k != "sha256"} | {"cache_dir": None}
    return digest(kept)


def file_name(config: dict[str, Any], kind: Kind, seq_len: int, contender: str = "") -> str:
    """The file of one row. The phase's settings are part of the name: other settings are another measurement.

    contender: whose row it is, for a kind that has several at one length.
    """
    phase = "speed" if kind == "kernels" else kind  # which goes by the same lengths and batches
    settings = {k: v for k, v in config.get(phase, {}).items() if k not in _WHICH_LENGTHS}
    name = f"-{re.sub('[^A-Za-z0-9_]+', '_', contender)}" if contender else ""
    return f"{cell_key(config)}-{kind}-{seq_len}-{digest(settings)[:4]}{name}.json"


def checkpoint_path(results_dir: str, config: dict[str, Any]) -> Path:
    """Where the training of a cell is kept until its rows are on disk."""
    return Path(results_dir) / "checkpoints" / f"{cell_key(config)}.ckpt"


def run_id_path(results_dir: str, config: dict[str, Any]) -> Path:
    """Where the name of the W&B run of that training is kept, as long as its checkpoint."""
    return checkpoint_path(results_dir, config).with_suffix(".run")


def forget_training(results_dir: str, config: dict[str, Any]) -> None:
    """Remove what is kept of a training: its rows are on disk."""
    for path in (checkpoint_path(results_dir, config), run_id_path(results_dir, config)):
        path.unlink(missing_ok=True)


def claim_path(results_dir: str, config: dict[str, Any]) -> Path:
    """Where it is noted that somebody runs a cell."""
    return Path(results_dir) / "claims" / f"{cell_key(config)}.lock"


def digest(value: dict[str, Any]) -> str:
    """A short name for a configuration."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
