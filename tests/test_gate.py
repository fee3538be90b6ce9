"""What may be timed: a model that computes what its reference does."""

from __future__ import annotations

import pytest
import torch
from models import BACKBONES, ENCODERS, depth, on_cpu

from arch_bench.backbone import Backbone
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, cell_of, compose
from arch_bench.cost import check
from arch_bench.mixers.recurrent import LSTM
from arch_bench.ops.kernel import Unsupported

SIZES = {"vocab_size": 11, "max_len": 48}


def pair(name: str, *overrides: str) -> tuple[Cell, Backbone]:
    torch.manual_seed(0)
    cell = cell_of(compose([f"backbone={name}", depth(name, 2), "d_model=16", *overrides]))
    return cell, build(cell, "backbone", **SIZES)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*map(on_cpu, BACKBONES)])
def test_every_backbone_passes(name: str, precision: str) -> None:
    cell, backbone = pair(name, "backbone.dropout=0.5")
    before = torch.get_rng_state()
    error = check.check(cell, backbone, precision, **SIZES)["gate_error"]
    assert 0 <= error < check.ALLOWED[precision] * (2 if name == "xlstm" else 1)  # which has eight layers
    assert backbone.training, "it is left as it was"
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [*map(on_cpu, [name for name in BACKBONES if name not in ENCODERS])])
def test_every_decoder_decodes_what_its_reference_computes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LENGTH", 40)
    cell = cell_of(compose([f"backbone={name}", depth(name, 2), "d_model=16", "seq_len=40", "task.n_pairs=4"]))
    before = torch.get_rng_state()
    assert check.check_decode(cell, "fp32", 11, torch.device("cpu"))["gate_error"] < check.ALLOWED["fp32"]  # type: ignore[operator]
    assert torch.equal(torch.get_rng_state(), before)


def test_what_decodes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = LSTM.step
    monkeypatch.setattr(LSTM, "step", lambda self, x_t, state: inner(self, -x_t, state))
    cell = cell_of(compose(["backbone=lstm", "d_model=16"]))
    with pytest.raises(Unsupported, match=r"kernel=aten is .* off its reference in fp32"):
        check.check_decode(cell, "fp32", 11, torch.device("cpu"))


def test_a_kernel_that_is_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, backbone = pair("local_attention", "kernel=blocks")
    mixer = backbone.blocks[0].mixer
    monkeypatch.setattr(mixer, "window", 3)  # it sees less than the reference
    with pytest.raises(Unsupported, match=r"kernel=blocks is .* off its reference in fp32, allowed is 0.001"):
        check.check(cell, backbone, "fp32", **SIZES)


def test_more_is_allowed_where_the_precision_takes_more_from_the_reference_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell, backbone = pair("xlstm")
    monkeypatch.setitem(check.ALLOWED, "bf16", 1e-6)
    assert check.check(cell, backbone, "bf16", **SIZES)["gate_error"] > 1e-4  # type: ignore[operator]
    backbone.eval()
    inner = backbone.norm.forward
    monkeypatch.setattr(backbone.norm, "forward", lambda x: 1.3 * inner(x))
    with pytest.raises(Unsupported, match=r"off its reference in bf16, allowed is 0"):
        check.check(cell, backbone, "bf16", **SIZES)


@pytest.mark.parametrize("name", ["moba", "hybrid"])
def test_what_picks_by_scores_is_compared_in_fp32(name: str) -> None:
    """In bf16 a layer of MoBA may look at other blocks, and its outputs then differ by far more than rounding."""
    pattern = ["backbone.pattern=[moba,local_attention]"] if name == "hybrid" else []
    cell, backbone = pair(name, *pattern)
    found = check.check(cell, backbone, "bf16", **SIZES)
    assert found["gate_precision"] == "fp32"
    assert found["gate_error"] < check.ALLOWED["fp32"]  # type: ignore[operator]


def test_not_a_number_is_refused() -> None:
    cell, backbone = pair("lstm")
    with torch.no_grad():
        backbone.norm.weight.fill_(float("nan"))
    with pytest.raises(Unsupported, match="off its reference"):
        check.check(cell, backbone, "fp32", **SIZES)
