"""Resume an interrupted training: its state is saved to disk at intervals, and on SIGTERM."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, cast

import lightning.pytorch as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from arch_bench import results
from arch_bench.config.schema import Cell
from arch_bench.results import files, provenance
from arch_bench.runtime.measure import device_name
from arch_bench.train.module import LitSequence
from arch_bench.train.team import SOLO, Team

_OURS = "arch_bench"
"""Key of our own entry in a checkpoint; Lightning does not read it."""
_UNREADABLE = (OSError, EOFError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, pickle.PickleError)
"""Exceptions raised by reading a file that is not a checkpoint."""
_PIECE = 2**22
"""Bytes per read."""


def path_of(cell: Cell) -> Path:
    """Return the path that holds a cell's training until its rows are on disk."""
    return results.checkpoint_path(cell.results_dir, cell.model_dump())


class _Sealed:
    """A file written sequentially and then sealed with its SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        """Append the checksum; torch ignores bytes after its archive."""
        self._file.write(self._digest.digest())


def _is_whole(file: IO[bytes]) -> bool:
    """Check that a sealed file is unchanged; torch.load would accept flipped bits as weights."""
    digest = hashlib.sha256()
    left = file.seek(0, os.SEEK_END) - digest.digest_size
    file.seek(0)
    while left > 0:
        piece = file.read(min(left, _PIECE))
        digest.update(piece)
        left -= len(piece)
    return digest.digest() == file.read()


class WholeFiles(TorchCheckpointIO):
    """Checkpoint IO that writes a file whole or not at all, and seals it. Raises OSError, naming the file.

    `load_checkpoint` returns content read earlier: another sweep may have replaced or removed the file since then.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def load_checkpoint(self, *_: Any, **__: Any) -> dict[str, Any]:
        found, self.found = self.found, {}
        return found

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with files.whole(Path(path)) as file:
                sealed = _Sealed(file)
                torch.save(checkpoint, cast("IO[bytes]", sealed))
                sealed.seal()
        except RuntimeError as error:  # torch's writer raises this when the disk is full
            raise OSError(f"{path}: {error}") from error


class Checkpoint(Callback):
    """Callback that saves training between two blocks: every `checkpoint_every_s` seconds, and on SIGTERM.

    If a validation is due, it runs first: Lightning would skip it on resuming. On SIGTERM the callback saves and raises
    SystemExit(143). Before the first block and during tests there is nothing to save, so SIGTERM keeps the handler that
    was set before Lightning's. Seconds are summed over all attempts, without the time spent saving.

    data: where the examples come from, as the task's `provenance` reports it.
    """

    def __init__(self, cell: Cell, device: torch.device, data: dict[str, str | int]) -> None:
        self._path = path_of(cell)
        self._every_s = cell.checkpoint_every_s
        self._made_by: dict[str, Any] = {
            "cell": results.cell_key(cell.model_dump()),
            "code": provenance.code(),
            "versions": provenance.versions(),
            "device": device_name(device),
            "data": data,
        }
        self.files = WholeFiles()
        self.n_attempts = 1
        """Number of attempts so far, each resumed from the one before."""
        self._compile_s = 0.0
        self._began = time.perf_counter()
        self._due = math.inf
        self._is_asked = False
        self._before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    @property
    def train_s(self) -> float:
        """Seconds since training began, over all attempts."""
        return time.perf_counter() - self._began

    def compile_s(self, model: LitSequence) -> float:
        """Return the seconds spent compiling, autotuning and capturing, over all attempts."""
        return self._compile_s + model.settle_s

    def find(self, team: Team = SOLO) -> Path | None:
        """Return the checkpoint to resume from, the same on every rank, or None.

        A file that is damaged, or was made by something else, is named on stderr and left alone.
        """
        self.files.found, why = self._read()
        spent = self.files.found.get(_OURS, {}).get("spent")
        if team.together(str(spent)) != str(spent):
            why = "was replaced while it was read"
        if why:
            print(f"{self._path} {why}: training starts afresh", file=sys.stderr)
        return None if why or spent is None else self._path

    def _read(self) -> tuple[dict[str, Any], str]:
        """Return the saved state, and otherwise an empty dict with the reason if a file had to be refused."""
        if self._every_s is None or not self._path.exists():
            return {}, ""
        try:
            with self._path.open("rb") as file:
                if not _is_whole(file):
                    return {}, "is damaged: its content and its checksum differ"
                file.seek(0)
                saved = torch.load(file, map_location="cpu", weights_only=True)
            made_by = saved[_OURS]["made_by"]
            other = [name for name, value in self._made_by.items() if made_by[name] != value]
        except FileNotFoundError:  # another sweep has finished this training and removed the file
            return {}, ""
        except _UNREADABLE as error:
            return {}, f"cannot be read ({type(error).__name__})"
        return ({}, f"is of another {' and another '.join(other)}") if other else (saved, "")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        spent = {"train_s": self.train_s, "compile_s": self.compile_s(pl_module), "n_attempts": self.n_attempts}
        checkpoint[_OURS] = {"made_by": self._made_by, "spent": spent}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        spent = checkpoint[_OURS]["spent"]
        self._began -= spent["train_s"]
        self._compile_s, self.n_attempts = spent["compile_s"], spent["n_attempts"] + 1
        print(f"    goes on after {checkpoint['global_step']:,} steps ({self._path})", file=sys.stderr)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._hear(self._before)
        if self._every_s is not None:
            self._due = time.monotonic() + self._every_s
            files.sweep_up(self._path.parent)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: LitSequence, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._every_s is not None:
            self._hear(self._note)
        if (batch_idx + 1) % trainer.val_check_batch:  # type: ignore[operator]
            self._between_blocks(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: LitSequence) -> None:  # type: ignore[override]
        if trainer.state.fn == TrainerFn.FITTING:
            self._between_blocks(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._hear(self._before)
        if self._is_asked:  # SIGTERM arrived in the last block, after which there is nothing to save
            signal.raise_signal(signal.SIGTERM)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._hear(self._before)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._hear(self._before)

    def _hear(self, handler: Any) -> None:
        """Set the SIGTERM handler. Each new trainer installs Lightning's own, which would swallow the signal."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    def _note(self, *_: Any) -> None:
        self._is_asked = True

    def _between_blocks(self, trainer: L.Trainer, pl_module: LitSequence) -> None:
        """Save if it is due, and exit if SIGTERM was received; the ranks decide together."""
        if trainer.should_stop or trainer.global_step >= trainer.max_steps:
            return
        agree = trainer.strategy.reduce_boolean_decision
        is_asked = agree(self._is_asked, all=False)
        if not is_asked and not agree(time.monotonic() >= self._due, all=False):
            return
        pl_module.catch_up()
        if pl_module.latest is not None and not math.isfinite(pl_module.latest.loss):
            return  # training has diverged; `Watch` raises after the next block
        self._save(trainer)
        if is_asked:
            raise SIGTERMException(128 + signal.SIGTERM)

    def _save(self, trainer: L.Trainer) -> None:
        """Save; a full disk costs a warning, not the training."""
        assert self._every_s is not None
        started = time.perf_counter()
        try:
            trainer.save_checkpoint(self._path)
        except OSError as error:
            print(f"no checkpoint: {error}", file=sys.stderr)
        self._began += time.perf_counter() - started
        self._due = time.monotonic() + self._every_s
