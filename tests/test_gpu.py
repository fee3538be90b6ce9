"""What only a CUDA device can show: fused kernels, captured steps, and whole cells. `pytest -m gpu`."""

from __future__ import annotations

import copy
import importlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import fla_pairs
import pytest
import torch
from fla_pairs import PAIRS
from models import BACKBONES, CORE, DECODERS, depth

from arch_bench import results
from arch_bench.backbone import Backbone
from arch_bench.cell import run
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, cell_of, compose
from arch_bench.mixers.fla_layer import FlaLayer, not_installed
from arch_bench.ops import attention, local_attention, nsa
from arch_bench.ops.causal_conv import causal_conv
from arch_bench.ops.kernel import Unsupported
from arch_bench.ops.linear_cross_entropy import linear_cross_entropy
from arch_bench.ops.linear_cross_entropy import obstacles as loss_obstacles
from arch_bench.ops.tuning import parallel_tuning
from arch_bench.positions import alibi_slopes
from arch_bench.runtime.decoder import EagerDecoder, GraphDecoder
from arch_bench.runtime.precision import set_tf32
from arch_bench.train import fit
from arch_bench.train.generation import generate
from arch_bench.train.optimizer import rate_factor
from arch_bench.train.step import TrainStep, list_scored
from tasks import corpus
from tasks.base import stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # what torch and triton warn of differs between their versions
]
FUSED = {"lstm": "cudnn", "transformer": "sdpa", "local_attention": "flex", "mamba": "mamba_ssm"}
VOCAB, BATCH, LENGTH = 64, 2, 200


@pytest.fixture(autouse=True)
def tuned_in_parallel() -> Iterator[None]:
    with parallel_tuning():
        yield


def cell_for(name: str, kernel: str = "auto", *overrides: str) -> Cell:
    sizes = [depth(name, 2), f"kernel={kernel}", "d_model=64", f"seq_len={LENGTH}"]
    return cell_of(compose([f"backbone={name}", *sizes, *overrides]))


def backbone(name: str, kernel: str, *overrides: str) -> Backbone:
    torch.manual_seed(0)
    try:
        with torch.device("cuda"):  # in training mode: cuDNN has no backward in the other
            return build(cell_for(name, kernel, *overrides), "backbone", vocab_size=VOCAB)
    except Unsupported as error:
        pytest.skip(str(error))


def tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1)).cuda()


def test_auto_is_the_fused_kernel() -> None:
    found = {name: backbone(name, "auto").kernel for name in FUSED}
    assert found["lstm"] == "cudnn"
    assert found["local_attention"] == "flex", "FlashAttention takes no fp32"
    assert found["transformer"] == "sdpa_efficient", "the only backend that takes fp32"


def test_auto_is_the_fastest_backend_that_was_measured() -> None:
    heads = attention.Heads(CUDA, torch.bfloat16, n_heads=4, n_kv_heads=4, d_head=32, with_slopes=False)
    times = [attention._sdpa_speed(name, heads) for name in attention.sdpa_obstacles(heads) if "sdpa_" in name]
    assert times == sorted(times), "the fastest comes first"  # type: ignore[type-var]
    refused = attention.sdpa_obstacles(heads._replace(dtype=torch.float32))
    assert "cannot run here" in str(refused["sdpa_flash"])


def kernels_here(name: str) -> list[str]:
    """What a mixer can run on this device besides its reference; the mixers of a pattern share `auto` only."""
    if cell_for(name).backbone["pattern"] is not None:
        return ["auto"]
    with torch.device("cuda"):
        offered = build(cell_for(name), "backbone", vocab_size=VOCAB).mixer.kernels
    return [kernel for kernel, obstacle in offered.items() if obstacle is None and kernel != "reference"]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of what is zero, zero: behind a matrix that begins with zeros (RWKV-7's) no gradient arrives."""
    return 0.0 if found.equal(expected) else ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_kernel_equals_the_reference(name: str, precision: str) -> None:
    """Outputs and gradients; in bf16 what is left of the reference in fp32 is rounding."""
    reference = backbone(name, "reference")
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        kernels = kernels_here(name)
    expected = reference.head(reference(tokens()))
    expected.square().mean().backward()
    wanted = {key: p.grad for key, p in reference.named_parameters()}
    allowed = {"fp32": (2e-3, 1e-2), "bf16": (8e-2, 0.3)}[precision]
    for kernel in kernels:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            fused = backbone(name, kernel)
            fused.load_state_dict(reference.state_dict())
            found = fused.head(fused(tokens()))
        assert relative(found.float(), expected) < allowed[0], kernel
        found.float().square().mean().backward()
        for key, parameter in fused.named_parameters():
            assert parameter.grad is not None, f"{kernel}: {key}"
            assert relative(parameter.grad, wanted[key]) < allowed[1], f"{kernel}: {key}"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DECODERS)
def test_decode_equals_forward(name: str) -> None:
    model, x = backbone(name, "auto"), tokens()
    with torch.no_grad():
        y, state = model.prefill(x[:, :150], model.init_state(BATCH, LENGTH))
        found = [y]
        for t in range(150, LENGTH):
            y, state = model.step(x[:, t], state)
            found.append(y)
        expected = model.head(model(x))[:, 149:]
    torch.testing.assert_close(torch.stack(found, 1), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_graph_decodes_what_eager_steps_do(name: str) -> None:
    model, x = backbone(name, "auto").eval(), tokens()
    _, state = model.prefill(x[:, :150], model.init_state(BATCH, LENGTH))
    graph = GraphDecoder(model, state, x[:, 150])
    eager = EagerDecoder(model, copy.deepcopy(graph.state))  # capturing has written to it
    for t in range(150, LENGTH):
        torch.testing.assert_close(graph(x[:, t]), eager(x[:, t]), atol=1e-4, rtol=1e-4)
    graph.restart()
    assert graph.state[0].item() == 150


@pytest.mark.parametrize("name", CORE)
@torch.no_grad()
def test_what_is_generated_is_what_a_cpu_generates(name: str) -> None:
    model = backbone(name, "auto").eval()
    torch.nn.init.normal_(model.head.weight)  # far from a tie between the likeliest tokens
    x = tokens()[:, :50]
    found = generate(model, x, 30).cpu()
    written = torch.cat((x.cpu(), found[:, :-1]), 1)
    with torch.device("cpu"):
        slow = build(cell_for(name, "reference"), "backbone", vocab_size=VOCAB).eval()
    slow.load_state_dict({key: value.cpu() for key, value in model.state_dict().items()})
    logits = slow.head(slow(written))[:, 49:]
    chosen = logits.gather(-1, found.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(chosen, logits.amax(-1), atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_trains_as_a_graph(name: str) -> None:
    dials = [f"backbone={name}", depth(name, 2)]
    step = train_step("graph", *dials)
    found = losses(step, 0, 20)
    assert (step.kind, step.why) == ("graph", None)
    expected = losses(train_step("eager", *dials), 0, 20)
    torch.testing.assert_close(found[:3], expected[:3], rtol=2e-3, atol=2e-3)
    is_deep = depth(name, 2) != "n_layers=2"  # AdamW starts with steps as large where a gradient is rounding alone
    torch.testing.assert_close(found, expected, rtol=2e-2 if is_deep else 2e-3, atol=2e-3)


def test_a_window_by_flash_attention_is_the_same_work() -> None:
    mixer = backbone("local_attention", "flex").mixer
    mixer.is_rotary = False
    x = torch.randn(2, 300, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(mixer.bare()["varlen_attn"](x), mixer(x), atol=2e-2, rtol=2e-2)


def test_the_layer_of_mamba_ssm_is_the_same_work() -> None:
    mixer = backbone("mamba", "mamba_ssm").mixer
    layer: Any = mixer.bare()["mamba_ssm.Mamba"]
    layer.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 100, 64, device="cuda")
    torch.testing.assert_close(layer(x), mixer(x), atol=2e-3, rtol=2e-3)


def test_the_mamba2_layer_of_mamba_ssm_is_the_same_work() -> None:
    """To what tf32 leaves of it, in which its kernels multiply."""
    mixer = backbone("mamba2", "chunked").mixer
    layer: Any = mixer.bare().get("mamba_ssm.Mamba2") or pytest.skip("needs mamba_ssm")
    layer.load_state_dict(mixer.state_dict())
    assert_equal_layers(layer, mixer, 64)


@pytest.mark.parametrize("name", PAIRS)
def test_a_layer_of_fla_is_the_same_work(name: str) -> None:
    """With the same weights; where they differ by convention, `fla_pairs` says how that is levelled."""
    layers = fla_layers()
    torch.manual_seed(0)
    with CUDA:
        mixer, layer = PAIRS[name](layers)
    is_bf16 = name in ("DeltaNet", "GatedDeltaNet")  # fla refuses the former in float32
    assert_equal_layers(lambda x: layer(x)[0], mixer, fla_pairs.D, is_bf16=is_bf16)


def assert_equal_layers(layer: Any, mixer: Any, d_model: int, *, is_bf16: bool = False) -> None:
    """In bf16 the layer only: ours alone is then 0.8 % off itself in float32, and its gradients 1 %."""
    x = torch.randn(2, 200, d_model, device="cuda", requires_grad=True)
    expected = mixer(x)
    with torch.autocast("cuda", torch.bfloat16, enabled=is_bf16):
        found = layer(x)
    assert relative(found.float(), expected) < (3e-2 if is_bf16 else 1e-2)
    upstream = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    with where_triton_is_right():
        (got,) = torch.autograd.grad(found, x, upstream.to(found.dtype))
    assert relative(got, wanted) < (5e-2 if is_bf16 else 2e-2)


@contextmanager
def where_triton_is_right() -> Iterator[None]:
    """Skips what fla refuses: on Hopper, Triton below 3.7.1 makes wrong gradients of gates (its issue 640)."""
    try:
        yield
    except (RuntimeError, Unsupported) as error:
        if "upgrade Triton" not in str(error):
            raise
        pytest.skip(str(error))


def fla_layers() -> Any:
    if (obstacle := not_installed()) is not None:
        pytest.skip(obstacle)
    return importlib.import_module("fla.layers")


FLA_LAYERS: dict[str, dict[str, Any]] = {
    "GatedSlotAttention": {},
    "GatedDeltaProduct": {"head_dim": 32},
    "KimiDeltaAttention": {"head_dim": 32},
    "RWKV6Attention": {},
    "Comba": {"head_dim": 32},
}


def fla_mixer(name: str) -> FlaLayer:
    fla_layers()
    torch.manual_seed(0)
    with CUDA, torch.autocast("cuda", torch.bfloat16):
        return FlaLayer(d_model=64, layer=name, n_heads=2, options=FLA_LAYERS.get(name), kernel="auto").eval()


@pytest.mark.parametrize("name", FLA_LAYERS)
@torch.no_grad()
def test_a_layer_of_fla_is_a_mixer(name: str) -> None:
    """In bf16, which some of them ask for: shape, causality, and decoding after a prompt as the forward pass."""
    with where_triton_is_right():
        mixer = fla_mixer(name)
    x = torch.randn(2, 200, 64, device="cuda")
    other = torch.cat((x[:, :130], torch.randn(2, 70, 64, device="cuda")), 1)
    with torch.autocast("cuda", torch.bfloat16):
        expected, changed = mixer(x).float(), mixer(other).float()
        y, state = mixer.prefill(x[:, :150], mixer.init_state(2, 200))
        found = [*y.unbind(1)]
        for x_t in x[:, 150:].unbind(1):
            y_t, state = mixer.step(x_t, state)
            found.append(y_t)
    assert expected.shape == x.shape
    assert relative(changed[:, :130], expected[:, :130]) < 1e-3
    assert relative(changed[:, 130:], expected[:, 130:]) > 1e-1
    assert relative(torch.stack(found, 1).float(), expected) < 5e-2


def test_a_layer_of_fla_that_counts_positions_on_the_host_does_not_decode() -> None:
    mixer = fla_mixer("MultiScaleRetention")
    with (
        torch.autocast("cuda", torch.bfloat16),
        pytest.raises(Unsupported, match=r"MultiScaleRetention is .* off its forward pass when it decodes"),
    ):
        mixer.init_state(1, 100)


def test_a_layer_of_fla_that_cannot_train_in_a_precision_says_so() -> None:
    fla_layers()
    with CUDA, pytest.raises(Unsupported, match=r"fla.layers.GatedDeltaProduct: .* does not support float32"):
        FlaLayer(d_model=64, layer="GatedDeltaProduct", n_heads=2, options={"head_dim": 32}, kernel="auto")


def test_the_mamba3_layer_of_mamba_ssm_is_the_same_work() -> None:
    """To what bf16 leaves of it, as its kernels round all inputs so, and approximate tanh, sine and cosine."""
    reference = backbone("mamba3", "reference").mixer
    layer: Any = reference.bare().get("mamba_ssm.Mamba3") or pytest.skip("needs mamba_ssm")
    has_heavy_tail = hasattr(importlib.import_module("mamba_ssm.modules.mamba3"), "heavy_tail_activation")
    decay = f"backbone.mixer.decay={'heavy_tail' if has_heavy_tail else 'softplus'}"  # after 2.3.2, and up to it
    reference = backbone("mamba3", "reference", decay).mixer
    layer.load_state_dict(reference.state_dict())
    x = torch.randn(2, 200, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert relative(layer(x).float(), reference(x).float()) < 3e-2
        mixer = backbone("mamba3", "mamba_ssm", decay).mixer
        mixer.load_state_dict(reference.state_dict())
        y, state = mixer.prefill(x[:, :150], mixer.init_state(2, 200))
        found = [*y.unbind(1)]
        for x_t in x[:, 150:].unbind(1):
            y_t, state = mixer.step(x_t, state)
            found.append(y_t)
    assert relative(torch.stack(found, 1).float(), reference(x)) < 3e-2


def test_native_sparse_attention_by_fla_equals_the_reference() -> None:
    sizes = nsa.Sizes(block=16, top_k=4, window=32)
    if (obstacle := nsa.obstacles(attention.Heads(CUDA, torch.float32, 16, 1, 32, False), sizes)["fla"]) is not None:
        pytest.skip(obstacle)
    torch.manual_seed(0)
    shapes = [(2, 16, 300, 32), (2, 1, 300, 32), (2, 1, 300, 32), (3, 2, 16, 300, 1)]
    inputs = nsa.Inputs(*(torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes))
    found, expected = (nsa.KERNELS[kernel](inputs, sizes, None) for kernel in ("fla", "reference"))
    assert relative(found, expected) < 2e-2, "tf32 chooses otherwise where two blocks weigh the same"
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for got, want in zip(torch.autograd.grad(found.square().sum(), inputs), wanted, strict=True):
        assert relative(got, want) < 5e-2


def test_cudnn_gets_a_long_sequence_in_parts() -> None:
    model = backbone("lstm", "cudnn")
    hidden = model(torch.randint(VOCAB, (1, 2**16), device="cuda"))  # more than it takes at once
    hidden.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.blocks.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("with_slopes", [False, True])
@pytest.mark.parametrize(("length", "window"), [(200, 64), (300, 7), (300, 64), (300, 1000)])
def test_flex_equals_the_reference(length: int, window: int, with_slopes: bool) -> None:
    slopes = alibi_slopes(4).cuda() if with_slopes else None
    q, k, v = heads(length, torch.float32)
    expected = attention.local_reference(q, k, v, window, slopes)
    assert_same(local_attention.flex(q, k, v, window, slopes), expected, (q, k, v), 5e-3)


@pytest.mark.parametrize(("length", "window"), [(200, 64), (300, 7), (300, 2), (300, 1000)])
def test_varlen_equals_the_reference(length: int, window: int) -> None:
    q, k, v = heads(length, torch.bfloat16)
    expected = attention.local_reference(q, k, v, window)
    assert_same(local_attention.varlen(q, k, v, window), expected, (q, k, v), 2e-2)


def heads(length: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, 4, length, 32, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))


def assert_same(
    found: torch.Tensor, expected: torch.Tensor, inputs: tuple[torch.Tensor, ...], tolerance: float
) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for got, want in zip(torch.autograd.grad(found.square().sum(), inputs), wanted, strict=True):
        assert (got - want).norm() / want.norm() < 2 * tolerance


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_compiled_convolution_equals_the_eager_one(channels_first: bool, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 300, 64, device="cuda", dtype=precision)
    x = (x.mT.contiguous().mT if channels_first else x).requires_grad_()
    conv = torch.nn.Conv1d(64, 64, 4, groups=64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
        expected = causal_conv(x, conv.weight, conv.bias)
        found = torch.compile(causal_conv)(x, conv.weight, conv.bias)
    assert_same(found, expected, (x, *conv.parameters()), 1e-3 if precision == torch.float32 else 2e-2)


@pytest.mark.parametrize("name", FUSED)
def test_a_cell_runs_in_bf16(name: str, tmp_path: Path) -> None:
    small = "seq_len=128 task.n_pairs=8 eval_scales=[1] speed.lengths=[256] decode.lengths=[256] decode.n_tokens=8"
    steps = "trainer.max_steps=20 trainer.val_every=10 logger=none speed.n_steps=3"
    cell = cell_of(compose([f"backbone={name}", f"results_dir={tmp_path}", *small.split(), *steps.split()]))
    rows = run.run_cell(cell, say=lambda row: None)
    assert [row.status for row in rows] == ["ok"] * 3, [row.reason for row in rows]
    assert {row.precision for row in rows} == {"bf16"}
    speed, decode, scored = rows
    assert (decode.metrics["step"], decode.metrics["prefill_step"]) == ("graph", "graph"), decode.metrics
    assert speed.metrics["peak_mem_bytes"] > 16384 * 128 * 4, "activations are counted, though a graph holds them"  # type: ignore[operator]
    assert speed.kernel in {FUSED[name], "sdpa_cudnn", "sdpa_flash", "varlen"} - {"flex"}
    assert (speed.metrics["step"], speed.metrics["step_why"]) == ("graph", None)
    assert (scored.metrics["step"], scored.metrics["step_why"]) == ("graph", None)
    assert speed.metrics["forward_ms"] < speed.metrics["forward_backward_ms"] < speed.metrics["train_step_ms"]  # type: ignore[operator]
    assert all(row.metrics["peak_mem_bytes"] for row in rows if row.kind != "quality")


@pytest.fixture(autouse=True)
def _fp32_means_fp32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    set_tf32("fp32")
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


STEP = ["seq_len=64", "d_model=64", "task.n_pairs=8", "task.vocab_size=64", "optim.lr=1e-3", "precision=fp32"]
CUDA = torch.device("cuda")


def train_step(kind: str, *overrides: str, change: Any = None) -> TrainStep:
    cell = cell_of(compose([*STEP, *overrides]))
    torch.manual_seed(0)
    try:
        with CUDA:
            model = build(cell, "backbone", vocab_size=64)
    except Unsupported as error:
        pytest.skip(str(error))
    if change is not None:
        change(model)
    return TrainStep(model, cell.optim, max_steps=200, kind=kind, precision=cell.precision, loss_kernel="full")


def losses(step: TrainStep, first: int, last: int) -> torch.Tensor:
    task = build(cell_of(compose(STEP)), "task")
    found = []
    for i in range(first, last):
        step(list_scored(task.sample(16, stream(0, "train", i, CUDA), CUDA), task.max_scored))
        found.append(step.figures(1)[0])
    return torch.stack(found).cpu()


@pytest.mark.parametrize("name", FUSED)
def test_every_way_to_step_gives_the_same_losses(name: str) -> None:
    expected = losses(train_step("eager", f"backbone={name}"), 0, 200)
    assert expected[-1] < expected[0]
    for kind in ("compiled", "graph"):
        step = train_step(kind, f"backbone={name}")
        found = losses(step, 0, 200)
        assert (step.kind, step.why) == (kind, None)
        assert step.count.item() == 200
        torch.testing.assert_close(found[:50], expected[:50], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_dropout_differs_at_every_replay_and_the_seed_decides() -> None:
    def run() -> list[float]:
        step = train_step("graph", "backbone.dropout=0.5", "optim.lr=1e-30", "optim.weight_decay=0")
        task = build(cell_of(compose(STEP)), "task")
        batch = list_scored(task.sample(16, stream(0, "train", 0, CUDA), CUDA), task.max_scored)
        found = []
        for _ in range(8):
            step(batch)
            found.append(step.figures(1)[0].item())
        assert step.kind == "graph"
        return found

    first, second = run(), run()
    assert len(set(first)) == 8
    assert first == second


def test_the_rate_moves_inside_the_graph() -> None:
    step = train_step("graph", "optim.warmup=0.1", "optim.schedule=cosine")
    rates = []
    for i in range(40):
        losses(step, i, i + 1)
        rates.append(step.rate.item())
    optim = cell_of(compose([*STEP, "optim.warmup=0.1"])).optim
    assert rates == pytest.approx([1e-3 * rate_factor(torch.tensor(i), 200, optim).item() for i in range(40)], rel=1e-5)
    assert all(a < b for a, b in pairwise(rates[:20]))


def test_a_graph_resumes_where_it_stopped() -> None:
    expected = losses(train_step("graph", "backbone=mamba"), 0, 40)
    first = train_step("graph", "backbone=mamba")
    losses(first, 0, 20)
    second = train_step("graph", "backbone=mamba")
    second.backbone.load_state_dict(first.backbone.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.resume(20)
    torch.testing.assert_close(losses(second, 20, 40), expected[20:], rtol=1e-3, atol=1e-3)


class Peeking(torch.nn.Module):
    """Reads a value back to the host, which no graph can hold."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        return y if y.sum().item() > -1e30 else -y


class Waiting(torch.nn.Module):
    """Waits for the device out of sight of the debug mode: it is the capture that fails."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        wait()
        return y


@torch.compiler.disable
def wait() -> None:
    torch.cuda.synchronize()


@pytest.mark.parametrize("spoiler", [Peeking, Waiting])
def test_what_cannot_be_captured_falls_back_and_says_why(spoiler: Any) -> None:
    def spoil(model: Any) -> None:
        model.blocks[0].mlp = spoiler(model.blocks[0].mlp)

    step = train_step("graph", change=spoil)
    found = losses(step, 0, 5)
    assert step.kind in {"compiled", "eager"}
    assert step.why is not None
    assert step.why.startswith("graph: ")
    expected = losses(train_step("eager"), 0, 5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # the attempts have changed nothing
    dropped = losses(train_step("graph", "backbone.dropout=0.1"), 0, 5)  # nor is the random state spoilt
    assert torch.isfinite(dropped).all()


@pytest.mark.parametrize("kernel", ["fla", "torch"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_chunked_loss_equals_the_full_one(kernel: str, precision: torch.dtype) -> None:
    if (obstacle := loss_obstacles(CUDA)[kernel]) is not None:
        pytest.skip(obstacle)
    torch.manual_seed(0)
    x = torch.randn(3000, 64, device="cuda", requires_grad=True)
    weight = torch.randn(1000, 64, device="cuda", requires_grad=True)
    targets = torch.randint(1000, (3000,), device="cuda")
    targets[::7] = -100
    found = {}
    for name in ("full", kernel):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = linear_cross_entropy(x, weight, targets, kernel=name)
        found[name] = loss, *torch.autograd.grad(loss, (x, weight))
    for got, want in zip(found[kernel], found["full"], strict=True):
        assert (got - want).norm() / want.norm() < 1e-2


def test_a_corpus_too_large_for_the_device_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "RESIDENT_MAX_BYTES", 0)
    steps = "trainer.max_steps=130 trainer.val_every=65 logger=none isolate=false phases=[quality] eval_scales=[1]"
    cell = cell_of(compose(["task=text", "d_model=32", f"results_dir={tmp_path}", *steps.split()]))
    (row,) = run.run_cell(cell, say=lambda row: None)
    assert (row.status, row.metrics["step"]) == ("ok", "graph")
    assert row.metrics["loss_nats"] < 4  # type: ignore[operator]


def test_a_cell_that_was_interrupted_goes_on_as_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are those of an undisturbed one, up to the order in which the device adds."""
    dials = (
        "backbone=mamba task=mqar seq_len=64 d_model=64 logger=none isolate=false phases=[quality] eval_scales=[1,2]"
    )
    steps = "trainer.max_steps=256 trainer.val_every=128 precision=fp32"

    def measured(name: str) -> list[results.Row]:
        cell = cell_of(compose([*dials.split(), *steps.split(), f"results_dir={tmp_path / name}"]))
        return run.run_cell(cell, say=lambda row: None)

    class Watch(fit.Watch):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, *args)
            if trainer.global_step == 192:
                signal.raise_signal(signal.SIGTERM)

    whole = measured("whole")
    Watch.__qualname__ = "Watch"  # by which Lightning knows its state
    with monkeypatch.context() as patch:
        patch.setattr(fit, "Watch", Watch)
        with pytest.raises(SystemExit) as end:
            measured("parts")
    assert end.value.code == 143
    (saved,) = (tmp_path / "parts" / "checkpoints").iterdir()
    assert torch.load(saved, weights_only=True)["global_step"] == 192
    parts = measured("parts")
    assert not saved.exists()
    for found, expected in zip(parts, whole, strict=True):
        assert (found.status, found.kernel, found.metrics["step"]) == ("ok", expected.kernel, "graph")
        assert found.metrics["n_attempts"] == 2
        assert found.metrics.keys() == expected.metrics.keys()
        for metric in ("steps", "steps_to_99", "n_params", "loss_kernel"):
            assert found.metrics[metric] == expected.metrics[metric], metric
        for metric in ("loss_nats", "val_loss_nats", "token_accuracy", "val_token_accuracy"):
            assert found.metrics[metric] == pytest.approx(expected.metrics[metric], rel=1e-2, abs=1e-2), metric
