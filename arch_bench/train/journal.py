"""The journal of a search: a study of Optuna in one file, which the trainings of its trials write to as well.

The lock is a file that is made exclusively, which holds on NFS too. A process that is killed while it writes, a matter
of milliseconds, leaves it behind; whoever comes next takes it away when it has not changed for 30 seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from arch_bench.config.schema import Cell, ConfigError

if TYPE_CHECKING:
    import optuna


def path_of(cell: Cell, name: str) -> Path:
    """Where a study of a cell's results is. Absolute: who works on it later may have another working directory."""
    return (Path(cell.results_dir) / "optuna" / f"{name}.log").resolve()


def claim_of(path: Path) -> Path:
    """What a sweep holds while it proposes trials. The lock of the file itself is Optuna's, for single lines."""
    return path.parent.parent / "claims" / f"{path.stem}.lock"


def study(path: Path, *, pruner: Any = None) -> optuna.Study:
    """The study in a file, made if it is not there. Raises ConfigError for a file that is none, or without Optuna."""
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
    """A study in memory with the trials of the file, or with none: what is done to it leaves no trace."""
    copy = library().create_study()
    if path.exists() and not anew:
        copy.add_trials(study(path).get_trials())
    return copy


def library() -> Any:
    """Optuna, without its remarks on every trial. Raises ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"protocol=optuna: {error}; pip install 'arch-bench[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def begin(path: Path, *, anew: bool) -> optuna.Study:
    """The study in a file, for who leads the search. anew: without what is there.

    A last line that was not written to its end (a full disk) is cut off before others are written behind it.
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
    """Under the lock, for a training beside this sweep may be about to end the line."""
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
