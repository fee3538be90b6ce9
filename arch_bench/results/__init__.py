"""Rows on disk: the single store behind tables, figures, pages and dashboards. Imports no torch."""

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
"""Statuses that a retry may improve."""
Metrics = dict[str, float | Whole | str | bool | None]
Curve = dict[str, list[Whole] | list[float] | list[float | None]]
"""A learning curve by columns: `step`, and the validation figures at each. None: not finite."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A phase's result at one length: a row without its identity and provenance."""

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
    """The implementation that ran, as the mixers report it; empty if the measurement failed."""
    precision: str
    key: str
    """Hash of the cell's configuration, without bookkeeping and without a phase's measurement settings."""
    kind: Kind
    # outcome
    status: Status
    reason: str = ""
    """The reason for a status other than `ok`, in one line."""
    metrics: Metrics = field(default_factory=dict)
    """A flat mapping; units are part of the names."""
    curve: Curve = field(default_factory=dict)
    """The learning curve; only in a training's row at its own length."""
    # provenance
    commit: str = ""
    commit_why: str = ""
    """The reason for a missing commit."""
    dirty: bool = False
    versions: Versions = field(default_factory=dict)
    device: str = ""
    data: dict[str, str | int] = field(default_factory=dict)
    """The origin of the data (a corpus and its hash); empty for a generated task."""
    config: Config = field(default_factory=dict)
    """The resolved configuration of the cell."""
    chosen: str = ""
    """The choice a protocol made for this cell, and its reason."""
    wall_s: float | None = None
    """Seconds of its process, divided equally among the rows that it made."""
    process_bytes: Whole | None = None
    """Peak memory of its process: on a GPU the allocator's reserved bytes plus the context, else resident memory."""
    created_at: Date = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        """Raise ValueError for a length below 1, which figures cannot show."""
        if min(self.seq_len, self.train_seq_len) < 1:
            raise ValueError(f"seq_len={self.seq_len}, train_seq_len={self.train_seq_len}: each needs at least 1")


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors of a disk that accepts no more writes from any process."""


class Unsaved(OSError):
    """Raised when a full disk has cost rows, which are in `rows`: an OSError keeps attributes between processes."""

    rows: Sequence[Row] = ()


def save(row: Row, path: Path) -> Row | None:
    """Write a row atomically; values that JSON cannot hold become text, or null.

    A better existing row is kept and returned: a later timeout does not overwrite an earlier measurement.
    """
    if row.status != "ok" and (kept := _better(path, row.status)) is not None:
        return kept
    text = json.dumps(plain.fields(dataclasses.asdict(row)), indent=1, allow_nan=False)
    # Put the numbers of a list on one line: a newline never stands in a JSON string, so this matches lists only.
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
    """Rank a status: a measurement first, then final failures, then those that a retry may improve."""
    return 2 if status == "ok" else 0 if status in RETRIED else 1


LARGEST = 16 * 2**20
"""Maximum bytes of a row's file."""
_ROW = TypeAdapter(Row)


def read(path: Path) -> Row:
    """Read a row. Raises ValueError, naming the file, if it is torn, foreign or unreadable; FileNotFoundError."""
    try:
        return _ROW.validate_json(_content(path))
    except FileNotFoundError:
        raise
    except ValidationError as error:
        raise ValueError(f"{path}: not a row of arch-bench ({_complaint(error)})") from None
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: not a row of arch-bench ({error})") from error


def _content(path: Path) -> bytes:
    """Return the bytes of a regular file. Reading another kind, such as a pipe, might never end."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise ValueError("no ordinary file")
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST >> 20} MiB")
    return content


def _complaint(error: ValidationError) -> str:
    """Return the first problem of a row, and its location."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}"[:200] if where else first["msg"][:200]


_known: dict[Path, tuple[tuple[int, ...], Row]] = {}
"""Rows that `load` has read, by file, with a fingerprint of the file: a sweep loads them repeatedly."""


def _remembered(path: Path) -> Row:
    """Return the cached row if the file is unchanged, else read it. Raises as `read`."""
    now = path.stat()
    print_ = (now.st_ino, now.st_mtime_ns, now.st_ctime_ns, now.st_size)
    before = _known.get(path)
    if before is None or before[0] != print_:
        before = _known[path] = (print_, read(path))
    return before[1]


def load(folders: Iterable[Path]) -> list[Row]:
    """Return all rows of the given results folders (each has a folder `rows`, or is one), oldest first.

    Deeper folders, such as `published/`, hold other people's results. A file that is not a row is named on stderr and
    skipped.
    """
    rows = []
    for path in sorted({path for folder in folders for path in _rows_of(folder.resolve()).glob("*.json")}):
        try:
            rows.append(_remembered(path))
        except FileNotFoundError:  # another process has just removed it
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
"""Settings added after rows were published, by group, with the values that keep the earlier behaviour: the key ignores
those values, so old rows keep their keys."""


def cell_key(config: dict[str, Any]) -> str:
    """Return the hash of a cell's configuration, without bookkeeping and without a phase's measurement settings."""
    kept = {k: v for k, v in config.items() if k not in _BOOKKEEPING | _PHASE_SETTINGS}
    for group, neutral in ADDED.items():
        if group in kept:
            kept[group] = {k: v for k, v in kept[group].items() if k not in neutral or v != neutral[k]}
    if "cache_dir" in kept["task"]:  # neither a corpus's folder nor its checksum changes a measurement
        kept["task"] = {k: v for k, v in kept["task"].items() if k != "sha256"} | {"cache_dir": None}
    return digest(kept)


def file_name(config: dict[str, Any], kind: Kind, seq_len: int, contender: str = "") -> str:
    """Return the name of a row's file. It includes the phase's settings: other settings are another measurement.

    contender: the row's contender, for a kind with several rows at one length.
    """
    phase = "speed" if kind == "kernels" else kind  # kernels are timed at the same lengths and batches
    settings = {k: v for k, v in config.get(phase, {}).items() if k not in _WHICH_LENGTHS}
    name = f"-{re.sub('[^A-Za-z0-9_]+', '_', contender)}" if contender else ""
    return f"{cell_key(config)}-{kind}-{seq_len}-{digest(settings)[:4]}{name}.json"


def checkpoint_path(results_dir: str, config: dict[str, Any]) -> Path:
    """Return the path that holds a cell's training until its rows are on disk."""
    return Path(results_dir) / "checkpoints" / f"{cell_key(config)}.ckpt"


def run_id_path(results_dir: str, config: dict[str, Any]) -> Path:
    """Return the path that holds the ID of that training's W&B run, kept as long as its checkpoint."""
    return checkpoint_path(results_dir, config).with_suffix(".run")


def forget_training(results_dir: str, config: dict[str, Any]) -> None:
    """Remove a training's checkpoint and run ID, once its rows are on disk."""
    for path in (checkpoint_path(results_dir, config), run_id_path(results_dir, config)):
        path.unlink(missing_ok=True)


def claim_path(results_dir: str, config: dict[str, Any]) -> Path:
    """Return the lock file of the process that runs a cell."""
    return Path(results_dir) / "claims" / f"{cell_key(config)}.lock"


def digest(value: dict[str, Any]) -> str:
    """Return a short hash of a configuration."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
