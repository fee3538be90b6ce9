"""The LSTM: initialisation and precision."""

from __future__ import annotations

import pytest
import torch

from arch_bench.mixers import recurrent
from arch_bench.mixers.recurrent import LSTM


def make(kernel: str) -> LSTM:
    torch.manual_seed(0)
    return LSTM(d_model=8, forget_bias=1.0, kernel=kernel)


@pytest.mark.parametrize("kernel", ["aten", "reference"])
def test_autocast_does_not_touch_the_recurrence(kernel: str) -> None:
    mixer = make(kernel)
    x = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = mixer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = mixer(x)
        _, state = mixer.prefill(x[:, :-1], mixer.init_state(2, 50))
        stepped, (h, c) = mixer.step(x[:, -1], state)
    assert found.dtype == stepped.dtype == h.dtype == c.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(stepped, exact[:, -1], atol=1e-6, rtol=1e-6)


def test_a_long_sequence_goes_through_the_fused_kernel_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "CUDNN_MAX_LEN", 7)
    x = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (expected, wanted), (found, state) = (m.prefill(x, m.init_state(2, 50)) for m in (make("reference"), make("aten")))
    torch.testing.assert_close((found, *state), (expected, *wanted), atol=1e-6, rtol=1e-6)
    gradients = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_initialisation() -> None:
    w_ih, w_hh, b_ih, b_hh = make("aten").lstm.all_weights[0]
    for gate in w_hh.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(8), atol=1e-5, rtol=0)
    assert (b_ih + b_hh).chunk(4)[1].unique().tolist() == [1.0]
    assert w_ih.abs().max() > 0
