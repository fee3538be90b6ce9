"""Where text comes from: files, the Python standard library, or a data set of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tasks.base import Split

SPLIT_SHARES: dict[Split, float] = {"train": 0.9, "validation": 0.05, "test": 0.05}
"""Of the bytes, where the source does not say which document belongs to which split."""

HUB_TIMEOUT_S = 5.0
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


class Source(ABC):
    """Documents, and a cheap way to tell that they have changed."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the documents do. Computed at every start, so it reads no document."""

    @abstractmethod
    def groups(self) -> list[Iterator[bytes]]:
        """The documents of train, validation and test; or all in one group, to be cut by position."""


class Files(Source):
    """Files as raw bytes, one document each, whatever their encoding.

    A split gets whole files, so that the splits share none. The files are ordered by the SHA-256 of their content
    (a fixed shuffle: in order of name, the test split would be the last few folders) and each goes to the split that
    its middle byte falls in. Exact copies of a file count once. If that leaves a split with less than half of its
    share, because the files are few or one is huge, all of them are joined in order of name and cut by position.
    """

    def __init__(self, folder: Path, files: list[Path]) -> None:
        self.folder = folder
        self.files = files

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(self.folder.resolve()).encode())
        for file in self.files:
            stat = file.stat()
            digest.update(f"\0{file.relative_to(self.folder).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
        return digest.hexdigest()

    def groups(self) -> list[Iterator[bytes]]:
        files = [file for file in self.files if file.stat().st_size]
        by_digest = {_sha256(file): file for file in reversed(files)}
        groups = _deal([by_digest[digest] for digest in sorted(by_digest)]) or [files]
        return [map(Path.read_bytes, group) for group in groups]


class Hub(Source):
    """A data set of the Hugging Face hub: one text column, one document per row.

    Its own train, validation and test splits are kept where it has all three. Otherwise all its rows are joined in
    order and cut by position: rows are often single lines, and dealing those out would put neighbouring lines of one
    article into different splits.
    """

    def __init__(self, name: str, config_name: str | None, text_column: str) -> None:
        self.name = name
        self.config_name = config_name
        self.text_column = text_column

    def fingerprint(self) -> str:
        # The hub is not asked: what was built once must open without a network. Provenance has the content's hash.
        return hashlib.sha256(f"hub\0{self.name}\0{self.config_name}\0{self.text_column}".encode()).hexdigest()

    def groups(self) -> list[Iterator[bytes]]:
        splits = self._load()
        for rows in splits.values():
            self._check_column(rows.features)
        if set(splits) >= set(get_args(Split)):
            return [self._texts([splits[split]]) for split in get_args(Split)]
        return [self._texts(list(splits.values()))]

    def _load(self) -> Any:
        import datasets
        from huggingface_hub import HfApi

        try:
            if not datasets.config.HF_HUB_OFFLINE:  # this fails at once; load_dataset alone retries for 23 s
                HfApi().dataset_info(self.name, timeout=HUB_TIMEOUT_S)
            return datasets.load_dataset(self.name, self.config_name)
        except Exception as error:  # the hub's HTTP library, and with it each error class, changes between versions
            raise ValueError(
                f"task.path={self.name} is no file or folder, and cannot be loaded as a data set of the hub "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); without a network give a local path "
                "or task.path=stdlib, or set HF_HUB_OFFLINE=1 to use a data set downloaded before"
            ) from error

    def _check_column(self, features: Any) -> None:
        columns = [name for name, kind in features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
        if self.text_column not in columns:
            raise ValueError(
                f"task.text_column={self.text_column} is no text column of task.path={self.name}; "
                f"choose from: {', '.join(columns)}"
            )

    def _texts(self, splits: list[Any]) -> Iterator[bytes]:
        for rows in splits:
            for batch in rows.select_columns([self.text_column]).iter(batch_size=1000):
                yield from (text.encode() for text in batch[self.text_column] if text is not None)


def find(path: str, glob: str, config_name: str | None, text_column: str) -> Source:
    """The source that `task.path` names. Raises ValueError when nothing is there."""
    if path == "stdlib":
        return standard_library()
    local = Path(path).expanduser()
    if local.is_file():
        return Files(local.parent, [local])
    if local.is_dir():
        return _folder(local, glob)
    if not path or path.startswith((".", "~", os.sep)) or path.count("/") > 1:  # the hub has `name` and `owner/name`
        raise ValueError(f"task.path={path}: no such file or folder")
    return Hub(path, config_name, text_column)


def _folder(folder: Path, glob: str) -> Files:
    files = sorted((file for file in folder.rglob(glob) if file.is_file()), key=Path.as_posix)
    if not files:
        raise ValueError(f"task.path={folder}: no file in this folder or below it matches task.glob={glob}")
    return Files(folder, files)


def standard_library() -> Files:
    """The Python source of this interpreter's standard library, without its tests and the installed packages."""
    folder = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for top, folders, names in os.walk(folder):
        folders[:] = set(folders) - NOT_LIBRARY  # in place, so that the walk skips them: site-packages can be vast
        files += [Path(top, name) for name in names if name.endswith(".py")]
    return Files(folder, sorted(files, key=Path.as_posix))


def _deal(files: list[Path]) -> list[list[Path]] | None:
    """Files in their order, each to the split in which its middle byte falls; None if a split comes out too small."""
    sizes = np.array([file.stat().st_size for file in files], dtype=np.int64)
    middles = sizes.cumsum() - sizes / 2
    shares = sizes.sum() * np.array(list(SPLIT_SHARES.values()))
    split_of = np.searchsorted(shares.cumsum()[:-1], middles, side="right")
    if (np.bincount(split_of, weights=sizes, minlength=len(shares)) * 2 < shares).any():
        return None
    return [[files[i] for i in np.flatnonzero(split_of == split)] for split in range(len(shares))]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
