"""What only a CUDA device can show: fused kernels against their references, and whole cells. `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arch_bench import run
from arch_bench.backbone import Backbone
from arch_bench.config import CONF, build, cell_of, compose
from arch_bench.ops import attention
from arch_bench.ops.kernel import Unsupported
from arch_bench.positions import alibi_slopes
from arch_bench.usage import options

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # what torch and triton warn of differs between their versions
]
FUSED = {"lstm": "cudnn", "transformer": "sdpa", "local_attention": "flex", "mamba": "mamba_ssm"}
VOCAB, BATCH, LENGTH = 64, 2, 200


def backbone(name: str, kernel: str) -> Backbone:
    torch.manual_seed(0)
    cell = cell_of(compose([f"backbone={name}", f"kernel={kernel}", "d_model=64", f"seq_len={LENGTH}"]))
    try:
        with torch.device("cuda"):
            return build(cell, "backbone", vocab_size=VOCAB)  # in training mode: cuDNN has no backward in the other
    except Unsupported as error:
        pytest.skip(str(error))


def tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1)).cuda()


def test_auto_is_the_fused_kernel() -> None:
    found = {name: backbone(name, "auto").kernel for name in options(CONF, "backbone")}
    assert {name: found[name] for name in ("lstm", "transformer", "local_attention")} == {
        name: FUSED[name] for name in ("lstm", "transformer", "local_attention")
    }


@pytest.mark.parametrize(("name", "kernel"), [*FUSED.items(), ("local_attention", "blocks"), ("mamba", "chunked")])
def test_kernel_equals_reference(name: str, kernel: str) -> None:
    reference, fused = backbone(name, "reference"), backbone(name, kernel)
    fused.load_state_dict(reference.state_dict())
    expected, found = (model.head(model(tokens())) for model in (reference, fused))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    expected.square().mean().backward()
    found.square().mean().backward()
    wanted = dict(reference.named_parameters())
    for key, parameter in fused.named_parameters():
        assert parameter.grad is not None
        error = (parameter.grad - wanted[key].grad).norm() / wanted[key].grad.norm()  # type: ignore[union-attr, operator]
        assert error < 1e-2, f"{key}: {error}"


@pytest.mark.parametrize(("name", "kernel"), FUSED.items())
def test_decode_equals_forward(name: str, kernel: str) -> None:
    model, x = backbone(name, kernel), tokens()
    with torch.no_grad():
        y, state = model.prefill(x[:, :150], model.init_state(BATCH, LENGTH))
        found = [y]
        for t in range(150, LENGTH):
            y, state = model.step(x[:, t], state)
            found.append(y)
        expected = model.head(model(x))[:, 149:]
    torch.testing.assert_close(torch.stack(found, 1), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("with_slopes", [False, True])
@pytest.mark.parametrize("window", [7, 64, 1000])
def test_flex_equals_the_reference(window: int, with_slopes: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 300, 32, device="cuda", requires_grad=True) for _ in range(3))
    slopes = alibi_slopes(4).cuda() if with_slopes else None
    expected = attention.local_reference(q, k, v, window, slopes)
    found = attention.local_flex(q, k, v, window, slopes)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    for got, want in zip(torch.autograd.grad(found.square().sum(), (q, k, v)), wanted, strict=True):
        assert (got - want).norm() / want.norm() < 1e-2


@pytest.mark.parametrize("name", FUSED)
def test_a_cell_runs_in_bf16(name: str, tmp_path: Path) -> None:
    small = "seq_len=128 task.n_pairs=8 eval_scales=[1] speed.lengths=[256] decode.lengths=[256] decode.n_tokens=8"
    steps = "trainer.max_steps=20 trainer.val_every=10 logger=none speed.n_steps=3"
    cell = cell_of(compose([f"backbone={name}", f"results_dir={tmp_path}", *small.split(), *steps.split()]))
    rows = run.run_cell(cell, say=lambda row: None)
    assert [row.status for row in rows] == ["ok"] * 3, [row.reason for row in rows]
    assert {row.precision for row in rows} == {"bf16"}
    assert all(row.metrics["peak_mem_bytes"] for row in rows if row.kind != "quality")
