"""The causal convolution against `nn.Conv1d`, in parallel and one token at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.ops.causal_conv import causal_conv, causal_conv_step, causal_window


def convolution(n_taps: int, bias: bool = True) -> nn.Conv1d:
    torch.manual_seed(0)
    return nn.Conv1d(6, 6, n_taps, groups=6, bias=bias, dtype=torch.float64)


def expected(x: Tensor, conv: nn.Conv1d) -> Tensor:
    y: Tensor = conv(F.pad(x.mT, (conv.kernel_size[0] - 1, 0))).mT
    return y


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_taps", [1, 2, 4])
@pytest.mark.parametrize("seq_len", [1, 3, 11])
def test_equals_conv1d_with_gradients(
    seq_len: int, n_taps: int, bias: bool, compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    conv = convolution(n_taps, bias)
    x = torch.randn(2, seq_len, 6, dtype=torch.float64, requires_grad=True)
    inputs = [x, *conv.parameters()]
    y, y_expected = causal_conv(x, conv.weight, conv.bias), expected(x, conv)
    dy = torch.randn_like(y)
    torch.testing.assert_close(y, y_expected)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(y_expected, inputs, dy))


@pytest.mark.parametrize("n_prompt", [1, 2, 7])
def test_window_and_steps_continue_a_prompt(n_prompt: int) -> None:
    conv = convolution(4)
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    y = expected(x, conv)
    window = causal_window(x[:, :n_prompt], 4)
    torch.testing.assert_close(causal_conv(x[:, n_prompt:], conv.weight, conv.bias, window), y[:, n_prompt:])
    for t in range(n_prompt, 11):
        y_t, window = causal_conv_step(x[:, t], window, conv.weight, conv.bias)
        torch.testing.assert_close(y_t, y[:, t])


def test_keeps_the_dtype_of_its_input() -> None:
    conv = convolution(4).float()
    x = torch.randn(2, 11, 6).bfloat16()
    y = causal_conv(x, conv.weight, conv.bias)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected(x.float(), conv).bfloat16())
