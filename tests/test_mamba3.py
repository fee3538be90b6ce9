"""Mamba-3: against the authors' step in plain PyTorch, its kernels, initialisation, state and counts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tensor_sizes import largest_tensor
from torch import Tensor

from arch_bench.mixers.base import tensors
from arch_bench.mixers.mamba2 import DT_RANGE
from arch_bench.mixers.mamba3 import DECAYS, Mamba3
from arch_bench.ops.kernel import Unsupported
from arch_bench.ops.trapezoid import Inputs, trapezoid, trapezoid_step

B, H, K, V = 2, 3, 8, 5


def build(kernel: str = "chunked", **sizes: Any) -> Mamba3:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_state": 8, "d_head": 8, "expand": 2, "rope_fraction": 0.5, "decay": "softplus", **sizes}
    mixer = Mamba3(**sizes, kernel=kernel)
    with torch.no_grad():
        for parameter in (mixer.B_bias, mixer.C_bias, mixer.D):
            parameter.add_(torch.randn_like(parameter))  # told apart
    return mixer


def op_inputs(length: int) -> Inputs:
    rng = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(B, H, length, d, generator=rng, dtype=torch.float64) for d in (K, K, V))
    log_decay, now, before = (torch.rand(B, H, length, generator=rng, dtype=torch.float64) for _ in range(3))
    return Inputs(*(x.requires_grad_() for x in (q, k, v, -log_decay, now, before)))


# --- the authors' form ------------------------------------------------------------------------------------------------


class Token(NamedTuple):
    """A, dt, trap: (b, n); B, C: (b, n, s); x, z: (b, n, h)."""

    A: Tensor
    dt: Tensor
    trap: Tensor
    B: Tensor
    C: Tensor
    x: Tensor
    z: Tensor


def state_update(state: Tensor, token: Token, last: tuple[Tensor, Tensor], D: Tensor) -> tuple[Tensor, Tensor]:
    """`selective_state_update_fused_ref_v2` of mamba_ssm 2.3.2 (ops/cute/mamba3/mamba3_step_fn.py) for rank 1.

    state: (b, n, h, s); last: B and x of the token before.
    """
    A, dt, trap, B, C, x, z = token
    B_state, x_state = last
    alpha = torch.exp(A * dt)
    beta = (1.0 - trap) * dt * alpha
    gamma = trap * dt
    x_now = torch.einsum("bnh,bns->bnhs", x * gamma.unsqueeze(-1), B)
    x_last = torch.einsum("bnh,bns->bnhs", x_state * beta.unsqueeze(-1), B_state)
    state = state * alpha[:, :, None, None] + x_now + x_last
    out = torch.einsum("bnhs,bns->bnh", state, C) + x * D[None, :, None]
    return out * z * torch.sigmoid(z), state


def test_a_heavy_tail_by_hand() -> None:
    a = torch.tensor([-3.0, -1.0, 0.0, 2.0], requires_grad=True)
    found = DECAYS["heavy_tail"](a)
    torch.testing.assert_close(found, torch.tensor([1 / 4, 1 / 2, 1, 3]))
    (slope,) = torch.autograd.grad(found.sum(), a)
    torch.testing.assert_close(slope[[0, 1, 3]], torch.tensor([1 / 16, 1 / 4, 1]))
    with pytest.raises(ValueError, match="decay=exp is unknown here; choose from: softplus, heavy_tail"):
        build(decay="exp")


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """As mamba3_siso_step_kernel: all pairs of neighbours, those beyond the angles by zero."""
    angles = F.pad(angles, (0, x.shape[-1] // 2 - angles.shape[-1]))
    x0, x1 = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((x0 * angles.cos() - x1 * angles.sin(), x0 * angles.sin() + x1 * angles.cos()), -1).flatten(-2)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def stepped(mixer: Mamba3, inputs: Tensor) -> Tensor:
    """`Mamba3.step` of mamba_ssm 2.3.2 over a sequence (SISO, ngroups=1, without a norm at the end)."""
    h, n, p = mixer.state_shape
    batch = len(inputs)
    widths = [h * p, h * p, n, n, h, h, h, int(n * 0.5) // 2]
    state, angle = inputs.new_zeros(batch, h, p, n), inputs.new_zeros(batch, h, widths[-1])
    last = inputs.new_zeros(batch, h, n), inputs.new_zeros(batch, h, p)
    outputs = []
    for u in inputs.unbind(1):
        z, x, B, C, dd_dt, dd_A, trap, angles = (u @ mixer.in_proj.weight.T).split(widths, -1)
        A = torch.clamp(-mixer.decay(dd_A), max=-1e-4)
        dt = F.softplus(dd_dt + mixer.dt_bias)
        angle = angle + torch.tanh(angles).unsqueeze(-2) * math.pi * dt.unsqueeze(-1)
        B = rotate(rms_norm(B, mixer.B_norm.weight).unsqueeze(-2) + mixer.B_bias[:, 0], angle)
        C = rotate(rms_norm(C, mixer.C_norm.weight).unsqueeze(-2) + mixer.C_bias[:, 0], angle)
        z, x = z.unflatten(-1, (h, p)), x.unflatten(-1, (h, p))
        y, state = state_update(state, Token(A, dt, trap.sigmoid(), B, C, x, z), last, mixer.D)
        last = B, x
        outputs.append(y.flatten(-2) @ mixer.out_proj.weight.T)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("decay", ["softplus", "heavy_tail"])
@pytest.mark.parametrize("kernel", ["chunked", "reference"])
@torch.no_grad()
def test_equals_the_authors_step(kernel: str, decay: str) -> None:
    mixer, x = build(kernel, decay=decay).double(), 2 * torch.randn(2, 70, 16, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), stepped(mixer, x), atol=1e-9, rtol=1e-9)


# --- the op -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 150])
def test_chunks_equal_the_recurrence(length: int) -> None:
    inputs = op_inputs(length)
    (found, last), (expected, end) = (trapezoid(inputs, kernel=kernel) for kernel in ("chunked", "reference"))
    torch.testing.assert_close((found, last), (expected, end), atol=1e-9, rtol=1e-9)
    weights = torch.randn_like(expected)
    found, expected = (
        torch.autograd.grad((o * weights).sum(), inputs, materialize_grads=True) for o in (found, expected)
    )
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_steps_equal_the_recurrence() -> None:
    inputs = op_inputs(9)
    expected, end = trapezoid(inputs, kernel="reference")
    state = torch.zeros_like(end)
    k, v = inputs.k.new_zeros(B, H, K), inputs.v.new_zeros(B, H, V)
    for t in range(9):
        token = Inputs(*(x[:, :, t] for x in inputs))
        torch.testing.assert_close(trapezoid_step(token, k, v, state=state), expected[:, :, t])
        k, v = token.k, token.v
    torch.testing.assert_close(state, end)


def test_without_the_token_before_it_is_linear_attention() -> None:
    inputs = op_inputs(20)._replace(before=torch.zeros(B, H, 20, dtype=torch.float64))
    q, k, v, log_decay, now, _ = inputs
    total = log_decay.cumsum(-1)
    decay = (total[..., :, None] - total[..., None, :]).exp().tril()
    expected = (q @ k.mT * decay * now[..., None, :]) @ v
    torch.testing.assert_close(trapezoid(inputs, kernel="chunked")[0], expected)


def test_memory_is_linear_in_the_length() -> None:
    def largest(length: int) -> int:
        inputs = Inputs(*(x.detach().float().requires_grad_() for x in op_inputs(length)))
        return largest_tensor(lambda: trapezoid(inputs, kernel="chunked")[0])

    assert largest(2048) == 2 * largest(1024) < B * H * 2048 * 64 * 2


# --- the mixer --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_many_steps_turn_as_far_as_one_sum() -> None:
    mixer, x = build(), torch.randn(1, 1, 16).expand(1, 3000, 16)
    mixer.dt_bias.fill_(2.0)  # always the same way, thousands of turns
    _, state = mixer.prefill(x, mixer.init_state(1, 3001))
    exact = mixer._project(x).turns().double().sum(1)
    off = (state[3].double() - exact).remainder(2 * math.pi)
    assert torch.minimum(off, 2 * math.pi - off).max() < 1e-4


def test_initialisation() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 128, "d_state": 16, "d_head": 2, "expand": 2, "rope_fraction": 1.0}
    mixer = Mamba3(**sizes, decay="softplus", kernel="chunked")  # type: ignore[arg-type]
    steps = F.softplus(mixer.dt_bias)
    assert steps.min() >= DT_RANGE[0] * 0.99
    assert steps.max() <= DT_RANGE[1] * 1.01
    assert steps.log().mean().item() == pytest.approx(sum(map(math.log, DT_RANGE)) / 2, abs=0.4)
    for parameter in (mixer.B_bias, mixer.C_bias, mixer.D):
        assert (parameter == 1).all()
    exempt = {name for name, p in mixer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert exempt == {"dt_bias", "B_bias", "C_bias", "D"}


def test_the_state_is_as_long_as_it_says() -> None:
    shapes = [tuple(t.shape) for t in tensors(build().init_state(2, 100))]
    assert shapes == [(2, 4, 8, 8), (2, 4, 8), (2, 4, 8), (2, 4, 2)]


@pytest.mark.parametrize(("rope_fraction", "pairs"), [(0.5, 2), (1.0, 4)])
def test_flops_by_hand(rope_fraction: float, pairs: int) -> None:
    projections = 2 * 16 * (32 + 32 + 8 + 8 + 3 * 4 + pairs) + 2 * 32 * 16
    assert build(rope_fraction=rope_fraction).flops_per_token(10) == projections + 4 * 4 * 8 * 8


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_head": 5}, r"d_head=5 must divide expand \* d_model=32"),
        ({"rope_fraction": 0.7}, "rope_fraction=0.7 must be 0.5 or 1.0"),
        ({"d_state": 3}, "rope_fraction=0.5 must be .* leave d_state=3 a pair"),
    ],
)
def test_bad_sizes_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**sizes)


def test_fused_kernels_are_refused_without_cuda() -> None:
    for kernel in ("mamba_ssm", "fla"):
        with pytest.raises(Unsupported, match=f"kernel={kernel}: needs a CUDA device, not cpu"):
            build(kernel)
