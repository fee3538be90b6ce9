"""Where text comes from: files, the Python standard library, an address, or a data set of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import math
import os
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tasks.base import Split

SPLIT_SHARES: dict[Split, float] = {"train": 0.9, "validation": 0.05, "test": 0.05}
"""Of the bytes, where the source does not say which document belongs to which split."""

PIECE_BYTES = 1 << 20
"""What is read of a file at a time."""
ROWS_AT_ONCE = 100
"""What is read of a data set at a time: 40 MB, where rows are books."""
HUB_TIMEOUT_S = 5.0
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings"}
"""Folders of the standard library that are left out. The code tables of `encodings` are a hundred files that say the
same: whichever split one falls in, train has read most of it."""


Document = Iterable[bytes]
"""Its pieces, one after the other: a document may be larger than memory."""


class Source(ABC):
    """Documents, and a cheap way to tell that they have changed."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the documents do. Computed at every start, so it reads no document."""

    @abstractmethod
    def groups(self) -> list[Iterator[Document]]:
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
        digest = hashlib.sha256(os.fsencode(self.folder.resolve()))  # a name may have any encoding too
        for file in self.files:
            stat = file.stat()
            name = os.fsencode(file.relative_to(self.folder).as_posix())
            digest.update(b"\0" + name + f"\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
        return digest.hexdigest()

    def groups(self) -> list[Iterator[Document]]:
        files = [file for file in self.files if file.stat().st_size]
        by_digest = {_sha256(file): file for file in reversed(files)}
        kept = set(by_digest.values())
        groups = _deal([by_digest[digest] for digest in sorted(by_digest)]) or [[f for f in files if f in kept]]
        return [map(_pieces, group) for group in groups]


class Download(Source):
    """A file at an address, or the files of an archive there, as `Files` takes them.

    `datasets` downloads it once, to its own cache, and unpacks it.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def fingerprint(self) -> str:
        return hashlib.sha256(f"address\0{self.address}".encode()).hexdigest()  # not asked again, as the hub is not

    def groups(self) -> list[Iterator[Document]]:
        import datasets

        try:
            found = Path(datasets.DownloadManager().download_and_extract(self.address))
        except Exception as error:  # as in `Hub`
            raise ValueError(
                f"task.path={self.address} cannot be downloaded ({_brief(error)}); without a network give a local path "
                "or task.path=stdlib"
            ) from error
        return (Files(found.parent, [found]) if found.is_file() else _folder(found, "*")).groups()


class Hub(Source):
    """A data set of the Hugging Face hub: one text column, one document per row.

    Its own train, validation and test splits are kept where it has all three. Otherwise all its rows are joined in
    order and cut by position: rows are often single lines, and dealing those out would put neighbouring lines of one
    article into different splits.

    With `max_bytes` it is streamed, not downloaded: whole documents from its start until they hold so much (of its own
    splits, each until it has its share of `SPLIT_SHARES`, or ends).
    """

    def __init__(self, name: str, config_name: str | None, text_column: str, max_bytes: int | None) -> None:
        self.name = name
        self.config_name = config_name
        self.text_column = text_column
        self.max_bytes = max_bytes

    def fingerprint(self) -> str:
        # The hub is not asked: what was built once must open without a network. Provenance has the content's hash.
        taken = "" if self.max_bytes is None else f"\0{self.max_bytes}"
        return hashlib.sha256(f"hub\0{self.name}\0{self.config_name}\0{self.text_column}{taken}".encode()).hexdigest()

    def groups(self) -> list[Iterator[Document]]:
        splits = self._load()
        for rows in splits.values():
            self._check_column(rows)
        if set(splits) >= set(get_args(Split)):
            return [self._documents([splits[split]], SPLIT_SHARES[split]) for split in get_args(Split)]
        return [self._documents(list(splits.values()), 1.0)]

    def _load(self) -> Any:
        import datasets
        from huggingface_hub import HfApi

        streaming = {} if self.max_bytes is None else {"streaming": True}
        try:
            if not datasets.config.HF_HUB_OFFLINE:  # this fails at once; load_dataset alone retries for 23 s
                HfApi().dataset_info(self.name, timeout=HUB_TIMEOUT_S)
            return datasets.load_dataset(self.name, self.config_name, **streaming)
        except Exception as error:  # the hub's HTTP library, and with it each error class, changes between versions
            raise ValueError(
                f"task.path={self.name} is no file or folder, and cannot be loaded as a data set of the hub "
                f"({_brief(error)}); without a network give a local path "
                "or task.path=stdlib, or set HF_HUB_OFFLINE=1 to use a data set downloaded before"
            ) from error

    def _check_column(self, rows: Any) -> None:
        if rows.features is None:  # a stream of files that do not say: its first row does
            columns = [name for name, value in next(iter(rows), {}).items() if isinstance(value, str)]
        else:
            kinds = {name: getattr(kind, "dtype", "") for name, kind in rows.features.items()}
            columns = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
        if self.text_column not in columns:
            raise ValueError(
                f"task.text_column={self.text_column} is no text column of task.path={self.name}; "
                f"choose from: {', '.join(columns)}"
            )

    def _documents(self, splits: list[Any], share: float) -> Iterator[Document]:
        room = math.inf if self.max_bytes is None else self.max_bytes * share
        for text in self._texts(splits):
            yield (text,)
            room -= len(text)
            if room <= 0:
                return

    def _texts(self, splits: list[Any]) -> Iterator[bytes]:
        for rows in splits:
            for batch in rows.select_columns([self.text_column]).iter(batch_size=ROWS_AT_ONCE):
                yield from (text.encode() for text in batch[self.text_column] if text is not None)


def find(path: str, glob: str, config_name: str | None, text_column: str, max_bytes: int | None) -> Source:
    """The source that `task.path` names. Raises ValueError when nothing is there."""
    if not path:
        raise ValueError("task.path= is empty: needs stdlib, a file, a folder, an address or a data set of the hub")
    local = _expanded(path)
    is_address = path.startswith(("http://", "https://"))
    is_hub = not (path == "stdlib" or is_address or local.exists())
    if is_hub and (path.startswith((".", "~", os.sep)) or path.count("/") > 1):  # it has `[owner/]name`
        raise ValueError(f"task.path={path}: no such file or folder")
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"task.max_bytes={max_bytes} is too small: needs max_bytes >= 1")
    if is_hub:
        return Hub(path, config_name, text_column, max_bytes)
    if max_bytes is not None:
        raise ValueError(f"task.max_bytes={max_bytes} is for data sets of the hub, and task.path={path} is none")
    if path == "stdlib":
        return standard_library()
    if is_address:
        return Download(path)
    return Files(local.parent, [local]) if local.is_file() else _folder(local, glob)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # the home of a user that is none
        raise ValueError(f"task.path={path}: {error}") from error


def _folder(folder: Path, glob: str) -> Files:
    try:
        files = sorted((file for file in folder.rglob(glob) if file.is_file()), key=Path.as_posix)
    except (NotImplementedError, ValueError) as error:  # an absolute pattern, an empty one
        raise ValueError(f"task.path={folder}: task.glob={glob}: {error}") from error
    if not files:
        raise ValueError(f"task.path={folder}: no file in this folder or below it matches task.glob={glob}")
    return Files(folder, files)


def standard_library() -> Files:
    """The Python source of this interpreter's standard library, without the folders of NOT_LIBRARY."""
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


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
