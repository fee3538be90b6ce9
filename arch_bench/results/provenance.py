"""Provenance of a row: commit and package versions, without importing the packages."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

_PACKAGES = (
    *("arch-bench", "torch", "triton", "lightning", "hydra-core", "datasets"),
    *("mamba-ssm", "causal-conv1d", "fla-core", "flash-linear-attention"),
)


@cache
def versions() -> dict[str, str]:
    """Return package -> version, for the installed packages that can change a figure."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class Commit(NamedTuple):
    """The commit of the checkout that this code runs from."""

    name: str = ""
    is_dirty: bool = False
    """True if the code or the configs differ from it."""
    why: str = ""
    """The reason for a missing name."""


@cache
def commit() -> Commit:
    """Return the commit, or the reason there is none.

    A copy without history (a container, a remote machine) can set ARCH_BENCH_COMMIT instead.
    """
    if told := os.environ.get("ARCH_BENCH_COMMIT"):
        return Commit(told)
    try:
        _git("ls-files", "--error-unmatch", "arch_bench/__init__.py")  # else installed, perhaps inside another checkout
        name = _git("rev-parse", "HEAD")
        return Commit(name, bool(_git("status", "--porcelain", "--", "arch_bench", "tasks", "conf")))
    except _NoAnswer as error:
        return Commit(why=str(error))


@cache
def code() -> str:
    """Return a digest of the training code: the source of arch_bench, without its report, and of tasks."""
    here = Path(__file__).parents[1]
    sources = {path for folder in (here, here.parent / "tasks") for path in folder.rglob("*.py")}
    digest = hashlib.sha256()
    for path in sorted(sources - set((here / "report").rglob("*.py"))):
        digest.update(path.relative_to(here.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


class _NoAnswer(Exception):
    """Raised when git gives no usable answer; the message has the reason."""


def _git(*args: str) -> str:
    try:
        done = subprocess.run(
            ["git", *args],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"LC_ALL": "C"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except FileNotFoundError:
        raise _NoAnswer("git is not installed; set ARCH_BENCH_COMMIT") from None
    except subprocess.TimeoutExpired:
        raise _NoAnswer("git did not answer within 10 s; set ARCH_BENCH_COMMIT") from None
    except OSError as error:
        raise _NoAnswer(f"git cannot be run: {error.strerror or error}; set ARCH_BENCH_COMMIT") from None
    if done.returncode == 0:
        return done.stdout.strip()
    said = next((line for line in done.stderr.splitlines() if line.strip()), f"exit code {done.returncode}")
    for words, why in _REFUSALS.items():
        if words in done.stderr:
            raise _NoAnswer(why)
    raise _NoAnswer(f"git: {said.strip()[:200]}")


_REFUSALS = {
    "dubious ownership": (
        "the checkout belongs to another user, and git refuses it; "
        "git config --global --add safe.directory with its path, or set ARCH_BENCH_COMMIT"
    ),
    "not a git repository": "installed from a package or a copy without its history; set ARCH_BENCH_COMMIT",
    "did not match any file": "installed inside another checkout, not from one of its own; set ARCH_BENCH_COMMIT",
    "ambiguous argument 'HEAD'": "a checkout without a commit",
}
