"""A cell is one sweep's at a time: others leave it alone, and get it when that sweep is done with it, or dead."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import SoftFileLease

from arch_bench.cell import claim
from arch_bench.cell.claim import Taken, claimed, wait


@contextmanager
def held(path: Path) -> Iterator[None]:
    """By another thread, for the claims of one thread are one."""
    begun, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with claimed(path):
            begun.set()
            is_over.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert begun.wait(60)
        yield
    finally:
        is_over.set()
        holder.join()


def _claim_and_die(path: Path) -> None:
    lease = SoftFileLease(path, lease_duration=claim.LEASE_S)
    lease.acquire()
    os._exit(1)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "LEASE_S", 0.5)
    monkeypatch.setattr(claim, "GLANCE_S", 0.05)


def test_a_claim_is_one_sweeps_until_it_ends(tmp_path: Path) -> None:
    path, other = tmp_path / "claims" / "cell.lock", tmp_path / "claims" / "other.lock"
    with held(path):
        with pytest.raises(Taken) as taken, claimed(path):
            pass
        assert taken.value.path == path
        assert wait([path], patience_s=0) == set()
        assert wait([path, other], patience_s=60) == {other}
    assert wait([path], patience_s=0) == {path}
    assert not list(path.parent.iterdir())


@pytest.mark.usefixtures("fast")
def test_a_claim_of_a_living_process_lasts_longer_than_its_lease(tmp_path: Path) -> None:
    path = tmp_path / "cell.lock"
    with held(path):
        assert wait([path], patience_s=1.2) == set()


def test_a_claim_of_a_dead_process_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cell.lock"
    process = multiprocessing.get_context("spawn").Process(target=_claim_and_die, args=(path,))
    process.start()
    process.join()
    assert path.exists()
    with claimed(path):
        pass


@pytest.mark.usefixtures("fast")
def test_a_claim_of_another_machine_is_free_when_it_is_touched_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cell.lock"
    with monkeypatch.context() as patched:
        patched.setattr("filelock._marker.host_name", lambda: "elsewhere")
        with claimed(path):
            text = path.read_text()
    assert "elsewhere" in text
    path.write_text(text)
    assert wait([path], patience_s=0) == set()
    assert wait([path], patience_s=60) == {path}


@pytest.mark.parametrize("text", ["", "torn"])
def test_a_claim_without_a_record_is_free_after_a_moment(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cell.lock"
    path.write_text(text)
    assert wait([path], patience_s=60) == {path}
    path.write_text("")
    with pytest.raises(Taken), claimed(path):
        pass


def test_the_claims_of_dead_processes_are_swept_up(tmp_path: Path) -> None:
    living, dead = tmp_path / "living.lock", tmp_path / "dead.lock"
    process = multiprocessing.get_context("spawn").Process(target=_claim_and_die, args=(dead,))
    process.start()
    process.join()
    with held(living):
        claim.sweep_up(tmp_path)
        assert list(tmp_path.iterdir()) == [living]
