"""RNN, GRU and LSTM: initialisation, precision, and agreement with PyTorch's layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from arch_bench.mixers import recurrent
from arch_bench.mixers.recurrent import GRU, LSTM, RNN, Recurrent

LAYERS: list[type[Recurrent]] = [RNN, GRU, LSTM]


def make(layer: type[Recurrent], kernel: str, **sizes: Any) -> Recurrent:
    torch.manual_seed(0)
    own = {"forget_bias": 1.0, "chrono_max": 0} if layer is LSTM else {}
    return layer(**{"d_model": 8, **own, **sizes}, kernel=kernel)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kernel", ["aten", "reference"])
def test_autocast_does_not_touch_the_recurrence(layer: type[Recurrent], kernel: str) -> None:
    mixer = make(layer, kernel)
    x = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = mixer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = mixer(x)
        _, state = mixer.prefill(x[:, :-1], mixer.init_state(2, 50))
        stepped, state = mixer.step(x[:, -1], state)
    assert {t.dtype for t in (found, stepped, *state)} == {torch.float32}
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(stepped, exact[:, -1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_long_sequence_goes_through_the_fused_kernel_in_parts(
    layer: type[Recurrent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent, "CUDNN_MAX_LEN", 7)
    x = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mixers = (make(layer, "reference"), make(layer, "aten"))
    (expected, wanted), (found, state) = (m.prefill(x, m.init_state(2, 50)) for m in mixers)
    torch.testing.assert_close((found, *state), (expected, *wanted), atol=1e-6, rtol=1e-6)
    gradients = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kernel", ["aten", "reference"])
def test_equals_the_layer_of_pytorch(layer: type[Recurrent], kernel: str) -> None:
    mixer = make(layer, kernel).double()
    theirs = layer.layer_class(8, 8, batch_first=True).double()  # from other random weights, biases not zero
    mixer.layer.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 20, 8, dtype=torch.float64)
    expected = theirs(x)[0]
    torch.testing.assert_close(mixer(x), expected)
    state = mixer.init_state(3, 20)
    for t in range(20):
        y_t, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y_t, expected[:, t])


@pytest.mark.parametrize(("layer", "n_gates"), [(RNN, 1), (GRU, 3), (LSTM, 4)])
def test_initialisation(layer: type[Recurrent], n_gates: int) -> None:
    w_ih, w_hh, b_ih, b_hh = make(layer, "aten").layer.all_weights[0]
    assert w_hh.shape == (8 * n_gates, 8)
    for gate in w_hh.chunk(n_gates):
        torch.testing.assert_close(gate @ gate.T, torch.eye(8), atol=1e-5, rtol=0)
    biases = (b_ih + b_hh).view(n_gates, 8)
    forget = torch.tensor([[0.0], [1.0], [0.0], [0.0]]) if layer is LSTM else torch.zeros(n_gates, 1)
    assert (biases == forget).all()
    assert w_ih.abs().max() > 0


def test_chrono_initialisation() -> None:
    _, _, b_ih, b_hh = make(LSTM, "aten", d_model=256, chrono_max=100).layer.all_weights[0]
    i, f, g, o = (b_ih + b_hh).chunk(4)
    memory = f.exp()
    assert 1 <= memory.min() < 5
    assert 90 < memory.max() <= 99
    assert memory.mean().item() == pytest.approx(50, abs=5)  # uniform in [1, 99]
    assert (i == -f).all()
    assert not g.any()
    assert not o.any()


@pytest.mark.parametrize("chrono_max", [-5, 1, 2])
def test_chrono_needs_a_memory(chrono_max: int) -> None:
    with pytest.raises(ValueError, match=f"chrono_max={chrono_max} must be 0"):
        make(LSTM, "aten", chrono_max=chrono_max)


@pytest.mark.parametrize(("layer", "n_gates", "n_states"), [(RNN, 1, 1), (GRU, 3, 1), (LSTM, 4, 2)])
def test_flops_and_state_by_hand(layer: type[Recurrent], n_gates: int, n_states: int) -> None:
    mixer = make(layer, "auto")
    assert mixer.flops_per_token(100) == n_gates * (2 * 8 * 8 + 2 * 8 * 8)
    assert mixer.state_bytes(100) == n_states * 8 * 4
    assert mixer.step_kernel == {RNN: "rnn_tanh_cell", GRU: "gru_cell", LSTM: "lstm_cell"}[layer]
    assert make(layer, "reference").step_kernel == "reference"
