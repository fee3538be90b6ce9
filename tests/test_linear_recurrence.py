"""The linear recurrence: kernels against each other, and where closed forms break."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arch_bench.ops.linear_recurrence import linear_recurrence


def inputs(length: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    a = torch.rand(2, length, 3, generator=generator, dtype=dtype) * 2 - 1
    b = torch.randn(2, length, 3, generator=generator, dtype=dtype)
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 32, 33, 100])
def test_parallel_equals_reference_with_gradients(length: int) -> None:
    a, b = inputs(length)
    found, expected = (linear_recurrence(a, b, kernel=kernel) for kernel in ("parallel", "reference"))
    torch.testing.assert_close(found, expected)
    dh = torch.randn_like(found)
    gradients = [torch.autograd.grad(h, (a, b), dh) for h in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_by_hand() -> None:
    a, b = torch.tensor([0.0, 2.0, -1.0])[None, :, None], torch.tensor([1.0, 10.0, 100.0])[None, :, None]
    for kernel in ("parallel", "reference"):
        assert linear_recurrence(a, b, kernel=kernel).flatten().tolist() == [1.0, 12.0, 88.0]


def test_inputs_of_any_layout() -> None:
    a, b = (x.detach().mT.contiguous().mT for x in inputs(21))
    dh = torch.ones_like(a).sum(-1, keepdim=True).expand_as(a)
    for x in (a, b):
        x.requires_grad_()
    found, expected = (linear_recurrence(a, b, kernel=kernel) for kernel in ("parallel", "reference"))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(h, (a, b), dh) for h in (found, expected)))


@pytest.mark.parametrize("decay", [0.0, 1e-30, 1.0])
def test_decays_at_their_limits(decay: float) -> None:
    """A product of 300 decays of 1e-30 is 0, and so is its logarithm's exponential: a closed form divides by it."""
    _, b = inputs(300, torch.float32)
    a = torch.full_like(b, decay, requires_grad=True)
    found, expected = (linear_recurrence(a, b, kernel=kernel) for kernel in ("parallel", "reference"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(h.sum(), (a, b)) for h in (found, expected)), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["parallel", "reference"])
def test_half_precision_is_widened(kernel: str) -> None:
    a, b = (x.detach().bfloat16() for x in inputs(50))
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_recurrence(a, b, kernel=kernel)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, linear_recurrence(a.float(), b.float(), kernel=kernel), atol=0, rtol=0)
