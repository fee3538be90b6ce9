"""Kernels of other libraries: what is refused is remembered, what is a device's trouble is not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from arch_bench.ops import fused
from arch_bench.ops.fused import refusal


class Heads(NamedTuple):
    d_key: int


class Kernel:
    """Fails with its error, if it has one, and counts how often it was tried."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.n_tried = error, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.n_tried += 1
        if self.error is not None:
            raise self.error
        return x.square()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return tmp_path


def tried_twice(kernel: Kernel, about: object) -> list[str | None]:
    return [refusal("fla", kernel, (torch.ones(2),), about) for _ in range(2)]


def test_what_runs_is_not_refused(cache: Path) -> None:
    assert tried_twice(Kernel(None), Heads(4)) == [None, None]
    assert not list(cache.iterdir())


def test_a_refusal_is_found_once_and_says_where_it_is_kept(cache: Path) -> None:
    kernel = Kernel(ValueError("key too wide\nmore"))
    first, second = tried_twice(kernel, Heads(4))
    assert first == "fla cannot train this here (ValueError: key too wide)"
    (note,) = (cache / "arch_bench").iterdir()
    assert second == f"{first}, as found before: {note}"
    assert kernel.n_tried == 1
    note.unlink()
    assert tried_twice(Kernel(None), Heads(4)) == [None, None], "the note gone, it is tried anew"


def test_other_shapes_and_other_versions_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(ValueError("no"))
    tried_twice(kernel, Heads(4))
    tried_twice(kernel, Heads(8))
    assert kernel.n_tried == 2
    monkeypatch.setattr(fused, "_version", lambda name: "another")
    tried_twice(kernel, Heads(4))
    assert kernel.n_tried == 3


@pytest.mark.parametrize("about", [None, Heads(4)])
def test_trouble_of_the_device_is_not_kept(about: Heads | None, cache: Path) -> None:
    kernel = Kernel(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert all("illegal memory access" in str(reason) for reason in tried_twice(kernel, about))
    assert kernel.n_tried == 2
    assert not list(cache.iterdir())


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(cache: Path) -> None:
    (cache / "arch_bench").write_text("a file where a folder should be")
    kernel = Kernel(ValueError("no"))
    assert tried_twice(kernel, Heads(4)) == ["fla cannot train this here (ValueError: no)"] * 2
