"""Rows on disk: the one store that tables, figures, pages and dashboards are made from. Imports no torch."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from arch_bench.results import plain
from arch_bench.results.files import whole
from arch_bench.results.row_fields import Config, Date, Length, Name, Versions, Whole

Kind = Literal["quality", "scan", "speed", "decode", "kernels"]
Status = Literal["ok", "oom", "unsupported", "diverged", "timeout", "crashed", "pruned"]
RETRIED: frozenset[Status] = frozenset({"timeout", "crashed"})
"""What may end better the next time."""
Metrics = dict[str, float | Whole | str | bool | None]
Curve = dict[str, list[Whole] | list[float] | list[float | None]]
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

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    # identity
    experiment: Name
    backbone: str
    task: str
    seq_len: Length
    """Length evaluated or timed; for `decode`, the context length."""
    train_seq_len: Length
    seed: Whole
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
    commit_why: str = ""
    """Why there is no commit."""
    dirty: bool = False
    versions: Versions = field(default_factory=dict)
    device: str = ""
    data: dict[str, str | int] = field(default_factory=dict)
    """Where the data came from (a corpus and its hash); empty for a generated task."""
    config: Config = field(default_factory=dict)
    """The resolved configuration of the cell."""
    chosen: str = ""
    """What a protocol chose for this cell, and why."""
    wall_s: float | None = None
    """Seconds of its process, shared equally by the rows that it made."""
    process_bytes: Whole | None = None
    """What its process held at most: on a GPU what its allocator reserved and the context, else resident memory."""
    created_at: Date = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        """Raises ValueError for a length that figures have no place for."""
        if min(self.seq_len, self.train_seq_len) < 1:
            raise ValueError(f"seq_len={self.seq_len}, train_seq_len={self.train_seq_len}: each needs at least 1")


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors of a disk that takes nothing more, from anybody."""


class Unsaved(OSError):
    """A full disk has cost rows, which are in `rows`: an attribute goes with an OSError from process to process."""

    rows: Sequence[Row] = ()


def save(row: Row, path: Path) -> Row | None:
    """Write a row so that a reader sees all of it or none; what it holds that no row can becomes text, or null.

    A better row that is there stays, and is returned: what was measured once is lost to no time limit of a later day.
    """
    if row.status != "ok" and (kept := _better(path, row.status)) is not None:
        return kept
    text = json.dumps(plain.fields(dataclasses.asdict(row)), indent=1, allow_nan=False)
    # Numbers of a list share a line: a newline never stands in a JSON string, so this meets lists only.
    text = re.sub(r"\[\n[^\[\]{}\"]*\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)
    with whole(path) as file:
        file.write(text.encode())
    return None


def _better(path: Path, status: Status) -> Row | None:
    try:
        row = read(path)
    except (FileNotFoundError, ValueError):
        return None
    return row if _worth(row.status) > _worth(status) else None


def _worth(status: Status) -> int:
    """A measurement is worth most, then what is final, then what may end better the next time."""
    return 2 if status == "ok" else 0 if status in RETRIED else 1


LARGEST = 16 * 2**20
"""Bytes of a file that may be a row."""
_ROW = TypeAdapter(Row)


def read(path: Path) -> Row:
    """Raises ValueError, naming the file, for one that is torn, foreign or cannot be read; FileNotFoundError."""
    try:
        return _ROW.validate_json(_content(path))
    except FileNotFoundError:
        raise
    except ValidationError as error:
        raise ValueError(f"{path}: not a row of arch-bench ({_complaint(error)})") from None
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: not a row of arch-bench ({error})") from error


def _content(path: Path) -> bytes:
    """The bytes of an ordinary file. One of another kind, such as a pipe, might never end."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise ValueError("no ordinary file")
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST >> 20} MiB")
    return content


def _complaint(error: ValidationError) -> str:
    """The first thing that is wrong with a row, and where."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}"[:200] if where else first["msg"][:200]


_known: dict[Path, tuple[tuple[int, ...], Row]] = {}
"""Rows that `load` has read, by file, with what tells that it is still the same: a sweep loads them again and again."""


def _remembered(path: Path) -> Row:
    """Raises as `read`."""
    now = path.stat()
    print_ = (now.st_ino, now.st_mtime_ns, now.st_ctime_ns, now.st_size)
    before = _known.get(path)
    if before is None or before[0] != print_:
        before = _known[path] = (print_, read(path))
    return before[1]


def load(folders: Iterable[Path]) -> list[Row]:
    """Every row of the given results folders (each has a folder `rows`, or is one), oldest first.

    Folders further down, such as `published/`, are other people's results. A file that is no row is named on stderr
    and skipped.
    """
    rows = []
    for path in sorted({path for folder in folders for path in _rows_of(folder.resolve()).glob("*.json")}):
        try:
            rows.append(_remembered(path))
        except FileNotFoundError:  # somebody has just removed it
            continue
        except (ValueError, OSError) as error:
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
