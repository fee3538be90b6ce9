"""What produced a row: the commit and the versions. Needs no import of what it names."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    *("arch-bench", "torch", "triton", "lightning", "hydra-core", "datasets"),
    *("mamba-ssm", "causal-conv1d", "fla-core", "flash-linear-attention"),
)


@cache
def versions() -> dict[str, str]:
    """Package -> version, for those installed that can change a figure."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit() -> tuple[str, bool]:
    """(commit, whether the code or the configs differ from it) of the checkout this code runs from.

    A copy without its history (a container, a remote machine) is told by ARCH_BENCH_COMMIT; else it is ("", False).
    """
    if told := os.environ.get("ARCH_BENCH_COMMIT"):
        return told, False
    if not _git("ls-files", "--error-unmatch", "arch_bench/__init__.py"):
        return "", False  # installed, perhaps inside somebody else's checkout
    return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--", "arch_bench", "tasks", "conf"))


@cache
def code() -> str:
    """Digest of what trains: the source of arch_bench, without its report, and of tasks."""
    here = Path(__file__).parent
    sources = {path for folder in (here, here.parent / "tasks") for path in folder.rglob("*.py")}
    digest = hashlib.sha256()
    for path in sorted(sources - set((here / "report").rglob("*.py"))):
        digest.update(path.relative_to(here.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _git(*args: str) -> str:
    try:
        done = subprocess.run(
            ["git", *args], cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
