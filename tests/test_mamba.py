"""The selective scan and the Mamba mixer: kernels against the reference, steps against the parallel form."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch_bench.mixers.base import tensors
from arch_bench.mixers.mamba import DT_RANGE, Mamba
from arch_bench.ops.kernel import Unsupported
from arch_bench.ops.selective_scan import ScanInputs, obstacles, selective_scan

D, N = 6, 4


def build(kernel: str = "chunked", d_model: int = 32, **sizes: Any) -> Mamba:
    torch.manual_seed(0)
    return Mamba(
        **{"d_model": d_model, "d_state": 8, "d_conv": 4, "expand": 2, "dt_rank": "auto", **sizes}, kernel=kernel
    )


def scan_inputs(seq_len: int, batch: int = 2) -> ScanInputs:
    """u, delta, A, B, C, skip, z, delta_bias in float64, with decays from nearly 0 to nearly 1."""
    torch.manual_seed(seq_len)
    shapes = [
        (batch, seq_len, D),
        (batch, seq_len, D),
        (D, N),
        *[(batch, seq_len, N)] * 2,
        (D,),
        (batch, seq_len, D),
        (D,),
    ]
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    inputs[1] *= 3
    inputs[2] = -torch.exp(inputs[2])
    return ScanInputs(*(x.requires_grad_() for x in inputs))


# 1 to 63: one chunk, several segments; 64 to 331: several chunks, the last one full, short or empty
@pytest.mark.parametrize("seq_len", [1, 2, 7, 63, 64, 130, 257, 331])
def test_chunked_equals_reference_with_gradients(seq_len: int) -> None:
    inputs = scan_inputs(seq_len)
    y, last = selective_scan(inputs, kernel="chunked")
    y_reference, last_reference = selective_scan(inputs, kernel="reference")
    dy = torch.randn_like(y)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(y, y_reference, **close)
    torch.testing.assert_close(last, last_reference, **close)
    gradients = (torch.autograd.grad(y_k, inputs, dy) for y_k in (y, y_reference))
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, **close)


@pytest.mark.parametrize("seq_len", [5, 66])
def test_gradcheck(seq_len: int) -> None:
    assert torch.autograd.gradcheck(
        lambda *inputs: selective_scan(ScanInputs(*inputs), kernel="chunked")[0],
        tuple(scan_inputs(seq_len, batch=1)),
        fast_mode=True,
    )


def test_extreme_decays_stay_finite() -> None:
    inputs = scan_inputs(200)
    inputs = inputs._replace(delta=300 * inputs.delta, A=100 * inputs.A)
    inputs = ScanInputs(*(x.detach().float().requires_grad_() for x in inputs))
    y, last = selective_scan(inputs, kernel="chunked")
    gradients = torch.autograd.grad(y.sum(), inputs)
    assert all(x.isfinite().all() for x in (y, last, *gradients))


@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_steps_equal_forward(kernel: str) -> None:
    mixer = build(kernel)
    x = torch.randn(3, 75, 32)
    with torch.no_grad():
        y, state = mixer(x), mixer.init_state(3, 75)
        for t in range(75):
            y_t, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y_t, y[:, t], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_prompt", [1, 2, 70])
def test_prefill_then_steps_equal_forward(n_prompt: int) -> None:
    mixer = build()
    x = torch.randn(3, 75, 32)
    with torch.no_grad():
        y = mixer(x)
        y_prompt, state = mixer.prefill(x[:, :n_prompt], mixer.init_state(3, 75))
        torch.testing.assert_close(y_prompt, y[:, :n_prompt], rtol=1e-4, atol=1e-4)
        for t in range(n_prompt, 75):
            y_t, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y_t, y[:, t], rtol=1e-4, atol=1e-4)


def test_no_gradient_from_the_future() -> None:
    x = torch.randn(2, 70, 32, requires_grad=True)
    (dx,) = torch.autograd.grad(build()(x)[:, 40].sum(), x)
    assert dx[:, 41:].abs().max() == 0
    assert (dx[:, :41].abs().amax((0, 2)) > 0).all()


def test_initial_step_sizes_and_flags() -> None:
    mixer = build(d_model=128)
    dt = F.softplus(mixer.dt_proj.bias)
    assert DT_RANGE[0] * 0.999 <= dt.min() < 2 * DT_RANGE[0]
    assert DT_RANGE[1] / 2 < dt.max() <= DT_RANGE[1] * 1.001
    torch.testing.assert_close(torch.exp(mixer.A_log[5]), torch.arange(1.0, 9.0))
    flagged = {name for name, p in mixer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert flagged == {"A_log", "D"}


def test_parameters_match_mamba_ssm() -> None:
    mixer = build(d_model=40, d_state=16, expand=2)
    assert {name: tuple(p.shape) for name, p in mixer.state_dict().items()} == {
        "in_proj.weight": (160, 40),
        "conv1d.weight": (80, 1, 4),
        "conv1d.bias": (80,),
        "x_proj.weight": (3 + 32, 80),  # dt_rank = ceil(40 / 16)
        "dt_proj.weight": (80, 3),
        "dt_proj.bias": (80,),
        "A_log": (80, 16),
        "D": (80,),
        "out_proj.weight": (40, 80),
    }


@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_scan_is_float32_under_autocast(kernel: str) -> None:
    inputs = ScanInputs(*(x.detach().float() for x in scan_inputs(100)))
    y, last = selective_scan(inputs, kernel=kernel)
    with torch.autocast("cpu", torch.bfloat16):
        y_autocast, last_autocast = selective_scan(inputs, kernel=kernel)
    torch.testing.assert_close((y_autocast, last_autocast), (y, last), rtol=0, atol=0)


def test_mixer_trains_and_decodes_under_autocast() -> None:
    mixer, x = build(), torch.randn(2, 70, 32)
    y_float = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
        y.float().square().sum().backward()
        with torch.no_grad():
            y_prompt, (window, h) = mixer.prefill(x, mixer.init_state(2, 70))
            y_t, _ = mixer.step(x[:, 0], (window, h))
    assert (y.dtype, window.dtype, h.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert y_t.shape == (2, 32)
    torch.testing.assert_close(y.float(), y_float, rtol=0.1, atol=0.05)
    torch.testing.assert_close(y_prompt, y)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_state_bytes_are_those_of_its_tensors() -> None:
    mixer = build(d_model=32, d_state=8, d_conv=4, expand=2)
    assert mixer.state_bytes(10) == mixer.state_bytes(100_000) == 4 * (3 * 64 + 64 * 8)
    assert [tuple(t.shape) for t in tensors(mixer.init_state(5, 10, position=9))] == [(5, 3, 64), (5, 64, 8)]


def test_fused_kernel_is_refused_without_cuda() -> None:
    assert obstacles(torch.device("cpu"), 16)["mamba_ssm"] == "needs a CUDA device, not cpu"
    with pytest.raises(Unsupported, match="CUDA"):
        build("mamba_ssm")
    assert build("auto").kernel == "chunked"


# --- against mamba_ssm itself ----------------------------------------------------------------------------------------


def on_cuda(test: Any) -> Any:
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


def original(mixer: Mamba, d_model: int) -> nn.Module:
    """`mamba_ssm.Mamba` with this mixer's weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the package's own imports
        mamba_ssm = pytest.importorskip("mamba_ssm", exc_type=ImportError)
    theirs: nn.Module = mamba_ssm.Mamba(d_model, d_state=mixer.d_state, d_conv=mixer.d_conv, device="cuda")
    theirs.load_state_dict(mixer.state_dict())
    mixer.load_state_dict(theirs.state_dict())
    return theirs


@pytest.fixture
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 convolutions without TF32, which rounds their inputs to 11 bits."""
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")


def outputs_and_gradients(module: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        y = module(x)
    parameters = dict(module.named_parameters())
    loss = (y.float() * torch.linspace(-1, 1, y.shape[-1], device=y.device)).sum()
    return [y, *torch.autograd.grad(loss, [x, *(parameters[name] for name in sorted(parameters))])]


@on_cuda
@pytest.mark.parametrize("kernel", ["mamba_ssm", "chunked"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("seq_len", [1, 100, 2500])
@pytest.mark.usefixtures("full_precision")
def test_equals_mamba_ssm(kernel: str, dtype: torch.dtype, tolerance: float, seq_len: int) -> None:
    with torch.device("cuda"):
        mixer = build(kernel, d_model=64, d_state=16)
        x = torch.randn(4, seq_len, 64)
    found, expected = (outputs_and_gradients(m, x, dtype) for m in (mixer, original(mixer, 64)))
    smallest = 1e-3 * max(tensor.float().norm() for tensor in expected)  # at L = 1 the gradient of A is rounding
    for ours, theirs in zip(found, expected, strict=True):
        error = (ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=smallest)
        assert error < tolerance


@on_cuda
@pytest.mark.parametrize("kernel", ["mamba_ssm", "chunked"])
@pytest.mark.usefixtures("full_precision")
def test_steps_equal_forward_on_cuda(kernel: str) -> None:
    with torch.device("cuda"):
        mixer = build(kernel)
        x = torch.randn(3, 80, 32)
    with torch.no_grad():
        y = mixer(x)
        y_prompt, state = mixer.prefill(x[:, :70], mixer.init_state(3, 80))
        torch.testing.assert_close(y_prompt, y[:, :70], rtol=1e-3, atol=1e-4)
        for t in range(70, 80):
            y_t, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y_t, y[:, t], rtol=1e-3, atol=1e-4)


@on_cuda
@pytest.mark.parametrize("kernel", ["mamba_ssm", "chunked"])
def test_training_step_replays_as_a_cuda_graph(kernel: str) -> None:
    with torch.device("cuda"):
        mixer = build(kernel)
        x = torch.randn(4, 256, 32)

    def gradients() -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16):
            return list(torch.autograd.grad(mixer(x).float().square().sum(), list(mixer.parameters())))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradients()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    x.copy_(torch.randn_like(x))
    graph.replay()
    for replayed, eager in zip(captured, gradients(), strict=True):
        assert (replayed - eager).norm() <= 1e-2 * eager.norm()
