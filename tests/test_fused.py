"""Kernels of other libraries: what is refused is remembered, what is a device's trouble is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from arch_bench.mixers import mamba2, mamba3
from arch_bench.ops import delta_rule, fused, generalised_delta_rule, linear_attention
from arch_bench.ops.fused import refusal

CPU = torch.device("cpu")


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


class Cubed(torch.autograd.Function):
    """x^3, with a gradient that is so many times too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return ctx.factor * 3 * x**2 * gradient, None


@pytest.mark.parametrize(
    ("factor", "off_by"), [(1.0, None), (1.05, None), (1.2, "0.2"), (0.0, "1"), (float("nan"), "nan")]
)
def test_a_kernel_whose_gradients_are_others_is_refused(factor: float, off_by: str | None) -> None:
    found = refusal("fla", lambda x: Cubed.apply(x, factor), (torch.ones(8, 4, 2),), truth=lambda x: x**3)
    if off_by is None:
        assert found is None
    else:
        assert found is not None
        assert f"(Disagreement: its gradient at input 1 of 1 is off by {off_by}, more than 0.1)" in found


def test_a_kernel_whose_output_is_another_is_refused_though_its_numbers_are_all_there() -> None:
    found = refusal("fla", lambda x: x.flip(1), (torch.ones(8, 64, 2),), truth=lambda x: x)
    assert found is not None
    assert "its output is off by" in found


FAMILIES: list[tuple[Any, str, Any]] = [
    *(
        (linear_attention, "_fla_refusal", (CPU, torch.bfloat16, 2, 8, 16, decay))
        for decay in ("none", "head", "token", "channel")
    ),
    *((delta_rule, "_fla_refusal", (CPU, torch.bfloat16, 2, 8, 16, is_gated)) for is_gated in (False, True)),
    (generalised_delta_rule, "_fla_refusal", (CPU, torch.bfloat16, 2, 8)),
    (mamba2, "_mamba_ssm_obstacle", (CPU, torch.bfloat16, 2, 8, 16, "token")),
    (mamba3, "_mamba_ssm_obstacle", (CPU, torch.bfloat16, 2, 8, 16, "token")),
]


@pytest.mark.parametrize(("module", "name", "sizes"), FAMILIES)
def test_what_a_kernel_is_held_to_has_gradients_everywhere(
    module: Any, name: str, sizes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of the kernel, which runs on CUDA only, the truth itself, and then without one of its gradients."""
    asked: dict[str, Any] = {}

    def refusal(package: str, run: Any, inputs: Any, about: Any, truth: Any) -> None:
        asked.update(inputs=inputs, truth=truth)

    for place in (module, fused):
        monkeypatch.setattr(place, "TRIAL", (4, 40))
    monkeypatch.setattr(module, "refusal", refusal)
    monkeypatch.setattr(module, "missing", lambda *_: None)
    monkeypatch.setattr(linear_attention, "is_miscompiled", lambda _: False)
    args = (module.Heads(*sizes), 2) if module is mamba3 else (module.Heads(*sizes),)
    assert getattr(module, name).__wrapped__(*args) is None
    truth, inputs = asked["truth"], asked["inputs"]
    assert fused._failure(truth, truth, inputs) is None
    for i in range(len(inputs)):
        lost = fused._failure(lambda *x, i=i: truth(*x[:i], x[i].detach() + 0 * x[i], *x[i + 1 :]), truth, inputs)
        assert f"its gradient at input {i + 1} of {len(inputs)} is off by 1," in str(lost)


@pytest.mark.parametrize(
    ("capability", "release", "expected"),
    [((9, 0), "3.6.0", True), ((9, 0), "3.7.1", False), ((9, 0), "3.3.1", False), ((8, 0), "3.6.0", False)],
)
def test_a_kernel_that_is_miscompiled_is_known(
    capability: tuple[int, int], release: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(linear_attention.metadata, "version", lambda _: release)
    assert linear_attention.is_miscompiled(torch.device("cuda")) == expected


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(cache: Path) -> None:
    (cache / "arch_bench").write_text("a file where a folder should be")
    kernel = Kernel(ValueError("no"))
    assert tried_twice(kernel, Heads(4)) == ["fla cannot train this here (ValueError: no)"] * 2
