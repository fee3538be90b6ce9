"""tasks/cache.py: a folder that is built once, found whole or built again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.cache import CHECKSUMS, damage, is_ours, kept

CONTENTS = {"a": b"0123456789" * 1000, "b": b"{}"}


def fill(folder: Path) -> None:
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)


def never(folder: Path) -> None:
    pytest.fail("built again")


def damaged_files() -> list[str]:
    return [*CONTENTS, CHECKSUMS]


def test_a_whole_folder_is_kept(tmp_path: Path) -> None:
    assert kept(tmp_path / "one", fill) == kept(tmp_path / "one", never) == tmp_path / "one"
    assert damage(tmp_path / "one") is None
    assert is_ours(tmp_path / "one")
    assert not is_ours(tmp_path)


@pytest.mark.parametrize("name", damaged_files())
@pytest.mark.parametrize("how", ["flipped", "torn", "empty", "gone"])
def test_a_damaged_file_is_named_and_built_again(
    name: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = kept(tmp_path / "one", fill)
    file, times = folder / name, (folder / name).stat()
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    else:
        content[len(content) // 2] ^= 4
        file.write_bytes({"flipped": content, "torn": content[: len(content) // 2], "empty": b""}[how])
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    (folder / "derived").mkdir()
    kept(folder, fill)
    assert str(file) in caplog.text
    assert "building it again" in caplog.text
    assert {each: (folder / each).read_bytes() for each in CONTENTS} == CONTENTS
    assert damage(folder) is None
    assert not (folder / "derived").exists(), "what was made from it goes with it"
    assert [each.name for each in tmp_path.iterdir()] == ["one"]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        kept(tmp_path / "one", fail)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_build_left_is_removed_and_a_running_one_goes_on(tmp_path: Path) -> None:
    code = f"""
import sys, time, pathlib
from tasks.cache import kept
def slow(folder):
    (folder / "a").write_bytes(b"half")
    print("started", flush=True)
    sys.stdin.read()
kept(pathlib.Path({str(tmp_path)!r}, "two"), slow)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    pipe = subprocess.PIPE
    builds = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=pipe, stdout=pipe) for _ in "kl"]
    assert all(build.stdout.readline() == b"started\n" for build in builds)
    killed, living = builds
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept(tmp_path / "one", fill)
    assert len(list(tmp_path.glob(".building-*"))) == 1, "that of the living"
    living.communicate(b"")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "two"]
    killed.communicate()


def test_leftovers_without_a_lock_are_removed_after_a_day(tmp_path: Path) -> None:
    for name in (".building-old", ".starting-old", ".building-new", ".starting-new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bytes.arrow").write_bytes(b"half")
    for name in (".building-old", ".starting-old"):
        os.utime(tmp_path / name, (0, time.time() - 90_000))
    kept(tmp_path / "one", fill)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".building-new", ".starting-new", "one"]
