"""The journal of a search: an Optuna study in one file, which the trainings of its trials also write to.

The lock is a file created exclusively, which works on NFS too. A process killed while writing (a window of
milliseconds) leaves the lock behind; the next process removes it once it has not changed for 30 seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from arch_bench.config.schema import Cell, ConfigError

if TYPE_CHECKING:
    import optuna


def path_of(cell: Cell, name: str) -> Path:
    """Return the absolute path of a study of a cell's results: later readers may have another working directory."""
    return (Path(cell.results_dir) / "optuna" / f"{name}.log").resolve()


def claim_of(path: Path) -> Path:
    """Return the lock that a sweep holds while it proposes trials. Optuna's lock on the file itself covers single
    lines."""
    return path.parent.parent / "claims" / f"{path.stem}.lock"


def study(path: Path, *, pruner: Any = None) -> optuna.Study:
    """Return the study in a file, creating it if missing. Raises ConfigError if the file is no study, or without
    Optuna."""
    optuna = library()
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
        try:
            return optuna.load_study(storage=storage, study_name=path.stem, pruner=pruner)
        except KeyError:
            return optuna.create_study(storage=storage, study_name=path.stem, pruner=pruner, load_if_exists=True)
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        raise ConfigError(f"{path}: no journal of a search ({error}); move it away, rows are kept") from None


def rehearsal(path: Path, *, anew: bool) -> optuna.Study:
    """Return an in-memory study with the trials of the file, or with none; changes to it leave no trace."""
    copy = library().create_study()
    if path.exists() and not anew:
        copy.add_trials(study(path).get_trials())
    return copy


def library() -> Any:
    """Import Optuna, silencing its log line per trial. Raises ConfigError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"protocol=optuna: {error}; pip install 'arch-bench[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def begin(path: Path, *, anew: bool) -> optuna.Study:
    """Open the study in a file for the sweep that leads the search. anew: discard the existing file.

    An incomplete last line (from a full disk) is cut off, so that later lines do not continue it.
    """
    if anew:
        path.unlink(missing_ok=True)
    elif path.exists() and not _is_whole(path):
        _mend(path)
    return study(path)


def _is_whole(path: Path) -> bool:
    text = path.read_bytes()
    return not text or text.endswith(b"\n")


def _mend(path: Path) -> None:
    """Cut off an incomplete last line, under the lock: a training beside this sweep may be about to complete it."""
    library()
    from optuna.storages.journal import JournalFileOpenLock

    lock = JournalFileOpenLock(str(path))
    lock.acquire()
    try:
        if not _is_whole(path):
            with path.open("r+b") as file:
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
    finally:
        lock.release()
