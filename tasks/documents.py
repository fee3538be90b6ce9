"""Sources of text: files, the Python standard library, an address, or a data set of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np

from tasks.base import Split
from tasks.cache import checksum, is_ours
from tasks.hub import Hub
from tasks.packs import Document, Packs, Part, brief
from tasks.source import SPLIT_SHARES, Source

NO_GLOB = frozenset({"*.txt", ""})
NO_COLUMN = frozenset({"text", ""})
"""Default values of a setting, which count as not set."""
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings"}
"""Folders of the standard library that are left out. The code tables of `encodings` are a hundred nearly equal files:
whichever split one falls in, train holds most of its content."""
_OPEN_FILE = re.compile(r"/dev/(fd/|std|zero|u?random)|/proc/[^/]+/fd/")
"""Paths that are open in one process only, such as `<(zcat a.gz)` in a shell: other processes find nothing there, or
something else."""


class Files(Source):
    """Files: text, one document each; tables (Parquet, Arrow, JSON lines, CSV), one document per row; or either packed.

    Text is kept unchanged in any encoding, except that UTF-16 and UTF-32 are refused and byte order marks are left
    out. `tasks.formats` detects the kind of a file.

    A split gets whole files, so that the splits share none. The files are ordered by the SHA-256 of their content
    (a fixed shuffle: in order of name, the test split would be the last few folders) and each goes to the split that
    its middle byte falls in. Exact copies of a file count once. If that leaves a split with less than half of its
    share, because the files are few or one is huge, all of them are joined in order of name and cut by position.

    If any file is a table, file names decide the splits, provided that they name all three; otherwise all files are
    joined and cut by position, as for a data set of the hub.
    """

    def __init__(
        self, folder: Path, files: list[Path], *, path: str, text_column: str, name: str | None = None
    ) -> None:
        """Keep the files. path: `task.path`. name: the name of the only file, if `path` does not give it."""
        self.folder = folder
        self.files = files
        self.path = path
        self.text_column = text_column
        self.name = name

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.text_column.encode())
        for file in self.files:
            name = os.fsencode(file.relative_to(self.folder).as_posix())  # a name may have any encoding too
            digest.update(b"\0" + name + b"\0" + checksum(file).encode())
        return digest.hexdigest()

    def groups(self, workplace: Path) -> list[Iterator[Document]]:
        packs = Packs(self.path, self.text_column, workplace)
        parts = [part for file in self.files for part in packs.parts(file, self.name or self._shown(file))]
        has_rows = any(part.kind != "text" for part in parts)
        if not has_rows and self.text_column not in NO_COLUMN:
            raise ValueError(
                f"task.text_column={self.text_column} is for tables and data sets of the hub, and "
                f"task.path={self.path} is text. Leave it out, or give Parquet, Arrow, JSON lines or CSV by their names"
            )
        by_digest = {_sha256(part.path): part for part in reversed(parts)}
        kept = set(by_digest.values())
        in_order = [part for part in parts if part in kept]
        dealt = _named(in_order) if has_rows else _deal([by_digest[digest] for digest in sorted(by_digest)])
        groups = dealt or [in_order]
        return [chain.from_iterable(map(packs.documents, group)) for group in groups]

    def _shown(self, file: Path) -> str:
        """Return the name of a file for messages, in any encoding."""
        return os.fsencode(file.relative_to(self.folder)).decode(errors="replace")


class Download(Source):
    """File at an address, or the files of an archive there, read as by `Files`; `datasets` downloads it."""

    def __init__(self, address: str, text_column: str) -> None:
        self.address = address
        self.text_column = text_column
        self._found: Path | None = None

    def fingerprint(self) -> str:
        # The server is not contacted again, like the hub: a finished build must open without a network.
        return hashlib.sha256(f"address\0{self.address}\0{self.text_column}".encode()).hexdigest()

    def groups(self, workplace: Path) -> list[Iterator[Document]]:
        import datasets

        try:
            self._found = Path(datasets.DownloadManager().download(self.address))
        except Exception as error:  # as in `Hub`
            raise ValueError(
                f"task.path={self.address} cannot be downloaded ({brief(error)}); without a network give a local path "
                "or task.path=stdlib"
            ) from error
        name = PurePosixPath(urlsplit(self.address).path).name
        files = Files(self._found.parent, [self._found], path=self.address, text_column=self.text_column, name=name)
        return files.groups(workplace)

    def reject(self) -> None:
        if self._found is not None:
            self._found.unlink(missing_ok=True)


def find(
    path: str,
    glob: str,
    config_name: str | None,
    text_column: str,
    max_bytes: int | None,
    *,
    revision: str | None = None,
    sha256: str | None = None,
) -> Source:
    """Return the source that `task.path` names. Raises ValueError if it is missing or a setting is idle."""
    if not path:
        raise ValueError("task.path= is empty: needs stdlib, a file, a folder, an address or a data set of the hub")
    local = _expanded(path)
    is_address = path.startswith(("http://", "https://"))
    is_hub = not (path == "stdlib" or is_address or local.exists() or _OPEN_FILE.match(path))
    if is_hub and (path.startswith((".", "~", os.sep)) or path.count("/") > 1):  # a data set's name is `[owner/]name`
        raise ValueError(f"task.path={path}: no such file or folder")
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"task.max_bytes={max_bytes} is too small: needs max_bytes >= 1")
    if glob not in NO_GLOB and not local.is_dir():
        raise ValueError(f"task.glob={glob} is for folders, and task.path={path} is none. Leave it out")
    if is_hub:
        return Hub(path, config_name, text_column, max_bytes, revision)
    _refuse_idle(path, config_name=config_name, max_bytes=max_bytes, revision=revision)
    if path == "stdlib":
        return standard_library(text_column)
    if is_address:
        _refuse_unsafe(path, sha256)
        return Download(path, text_column)
    if local.is_dir():
        return _folder(local, glob, path, text_column)
    if _OPEN_FILE.match(path) or not local.is_file():
        raise ValueError(
            f"task.path={path} is a pipe or a device, and a corpus is read by several processes, more than once. "
            "Write it to a file; one that is packed is read as it is"
        )
    return Files(local.parent, [local], path=path, text_column=text_column)


def _refuse_idle(path: str, **settings: object) -> None:
    """Raise ValueError if a setting that only the hub uses is set."""
    idle = [f"task.{key}={value}" for key, value in settings.items() if value is not None]
    if idle:
        are = "are" if len(idle) > 1 else "is"
        raise ValueError(f"{', '.join(idle)} {are} for data sets of the hub, and task.path={path} is none. Set null")


def _refuse_unsafe(address: str, sha256: str | None) -> None:
    """Raise ValueError for plain http without a checksum: the text could be changed in transit without a trace."""
    host = urlsplit(address).hostname or ""
    is_here = host in {"localhost", "::1"} or host.startswith("127.")
    if address.startswith("http://") and sha256 is None and not is_here:
        raise ValueError(
            f"task.path={address}: what comes by plain http may be changed on its way. Give an https:// address, or "
            "task.sha256 of the text"
        )


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # the path names the home of an unknown user
        raise ValueError(f"task.path={path}: {error}") from error


def _folder(folder: Path, glob: str, path: str, text_column: str) -> Files:
    """Return the files of a folder, except those of a cache inside it, which would change the corpus at every start."""
    try:
        found = [file for file in folder.rglob(glob) if file.is_file()]
    except (NotImplementedError, ValueError) as error:  # an absolute or an empty pattern
        raise ValueError(f"task.path={folder}: task.glob={glob}: {error}") from error
    between = {parent for file in found for parent in file.parents if folder in parent.parents}
    ours = {parent for parent in between if is_ours(parent)}
    files = sorted((file for file in found if ours.isdisjoint(file.parents)), key=Path.as_posix)
    if not files:
        raise ValueError(f"task.path={folder}: no file in this folder or below it matches task.glob={glob}")
    return Files(folder, files, path=path, text_column=text_column)


def standard_library(text_column: str = "text") -> Files:
    """Return the Python source of this interpreter's standard library, without the folders of NOT_LIBRARY."""
    folder = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for top, folders, names in os.walk(folder):
        folders[:] = set(folders) - NOT_LIBRARY  # in place, so that the walk skips them: site-packages can be vast
        files += [Path(top, name) for name in names if name.endswith(".py")]
    return Files(folder, sorted(files, key=Path.as_posix), path="stdlib", text_column=text_column)


_SAYS_SPLIT: dict[Split, re.Pattern[str]] = {
    "train": re.compile(r"(?<![a-z0-9])(train|training)(?![a-z0-9])"),
    "validation": re.compile(r"(?<![a-z0-9])(validation|valid|val|dev)(?![a-z0-9])"),
    "test": re.compile(r"(?<![a-z0-9])(test|testing|eval|evaluation)(?![a-z0-9])"),
}
"""Words by which `datasets` assigns local files to splits."""


def _named(parts: list[Part]) -> list[list[Part]] | None:
    """Group files by the split in their names; None unless every file names one split and all three occur."""
    said = {part: [split for split, word in _SAYS_SPLIT.items() if word.search(part.name.lower())] for part in parts}
    groups = [[part for part in parts if said[part] == [split]] for split in _SAYS_SPLIT]
    return groups if all(groups) and sum(map(len, groups)) == len(parts) else None


def _deal(parts: list[Part]) -> list[list[Part]] | None:
    """Assign each file, in order, to the split that its middle byte falls in; None if a split comes out too small."""
    sizes = np.array([part.path.stat().st_size for part in parts], dtype=np.int64)
    middles = sizes.cumsum() - sizes / 2
    shares = sizes.sum() * np.array(list(SPLIT_SHARES.values()))
    split_of = np.searchsorted(shares.cumsum()[:-1], middles, side="right")
    if (np.bincount(split_of, weights=sizes, minlength=len(shares)) * 2 < shares).any():
        return None
    return [[parts[i] for i in np.flatnonzero(split_of == split)] for split in range(len(shares))]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
