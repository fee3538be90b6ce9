"""Layers of flash-linear-attention as mixers: what is refused and how, and by an interpreter that they work."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted_fla import interpreted

from arch_bench import catalog
from arch_bench.backbone import Backbone
from arch_bench.cell import match, run
from arch_bench.config.instantiate import build
from arch_bench.config.schema import Cell, ConfigError, cell_of, compose
from arch_bench.cost import check, kernels
from arch_bench.mixers import fla_layer
from arch_bench.mixers.fla_layer import FlaLayer
from arch_bench.mixers.recurrent import LSTM
from arch_bench.ops.kernel import Unsupported

SIZES = {"vocab_size": 11, "max_len": 48}


def needs_fla(test: Any) -> Any:
    skip = pytest.mark.skipif(fla_layer.not_installed() is not None, reason="needs flash-linear-attention")
    return skip(pytest.mark.filterwarnings("ignore")(test))  # importing it warns of the CPU, and of what it imports


def layer(name: str = "GatedSlotAttention", options: dict[str, Any] | None = None, **dials: Any) -> FlaLayer:
    return FlaLayer(**{"d_model": 32, "n_heads": 2, "kernel": "auto", **dials}, layer=name, options=options)


def cell(*overrides: str) -> Cell:
    return cell_of(compose(["backbone=fla", "d_model=16", "n_layers=1", *overrides]))


@pytest.fixture
def without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(fla_layer, "distribution", absent)


@pytest.mark.usefixtures("without_the_package")
def test_without_the_package_it_says_what_to_install() -> None:
    with pytest.raises(Unsupported, match=r"^fla.layers.DeltaNet needs flash-linear-attention: pip install"):
        layer("DeltaNet")


@pytest.mark.usefixtures("without_the_package")
def test_a_cell_that_cannot_run_has_rows_that_say_so(tmp_path: Path) -> None:
    small = "seq_len=32 eval_scales=[1] speed.lengths=[32] decode.lengths=[32] phases=[quality,speed,decode,kernels]"
    rows = run.run_cell(
        cell(*small.split(), "logger=none", "isolate=false", f"results_dir={tmp_path}"), say=lambda row: None
    )
    assert {row.kind for row in rows} == {"speed", "decode", "kernels", "quality"}
    assert {row.status for row in rows} == {"unsupported"}
    assert all("pip install flash-linear-attention" in str(row.reason) for row in rows)


@pytest.mark.usefixtures("without_the_package")
def test_a_budget_cannot_be_met_without_the_package() -> None:
    with pytest.raises(
        ConfigError, match=r"match.params=1000000: fla.layers.GatedSlotAttention needs flash-linear-attention"
    ):
        match.matched(cell("match.params=1000000"))


def test_the_catalog_knows_it_without_the_package() -> None:
    assert catalog._known(cell())[0] == FlaLayer.card
    assert catalog._row("fla")[-2] == "`fla`"


@needs_fla
def test_an_unknown_layer_is_named_beside_those_that_exist() -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"^layer=DeltaNot is unknown; choose from: ABCAttention, .*GatedDeltaProduct"),
    ):
        layer("DeltaNot")


@needs_fla
def test_a_cpu_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"^fla.layers.GatedSlotAttention needs a CUDA device, not cpu$"):
        layer()


@needs_fla
def test_there_is_no_reference_but_to_count() -> None:
    with torch.device("meta"):
        assert layer(kernel="reference").kernel == "fla"
    with pytest.raises(Unsupported, match=r"^kernel=reference: fla.layers.DeltaNet has none here$"):
        layer("DeltaNet", kernel="reference")


@needs_fla
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "GatedSlotAttention",
            {"n_slot": 4},
            "options.n_slot is nothing that fla.layers.GatedSlotAttention takes; choose",
        ),
        ("GatedSlotAttention", {"layer_idx": 4}, "options.layer_idx is nothing"),
        ("HGRN2Attention", {}, r"fla.layers.HGRN2Attention refuses d_model=32, n_heads=2, options=\{\} \(Zero"),
        ("RWKV7Attention", {}, "fla.layers.RWKV7Attention refuses .*must be divisible by"),
    ],
)
def test_bad_values_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        layer(name, options)


@needs_fla
def test_arguments_reach_the_layer() -> None:
    with torch.device("meta"):
        built: Any = layer("GatedSlotAttention", {"num_slots": 5, "expand_v": 2}, n_heads=4).layer
        assert (built.hidden_size, built.num_heads, built.num_slots, built.expand_v, built.layer_idx) == (
            32,
            4,
            5,
            2,
            0,
        )
        assert layer("GatedSlotAttention", {"num_heads": 8}).layer.num_heads == 8


@needs_fla
def test_a_budget_is_met_without_a_device() -> None:
    found, n_params = match.matched(cell("match.params=1000000"))
    assert n_params == pytest.approx(1_000_000, rel=match.GOOD)
    assert found.d_model != 16


def recurrent() -> tuple[Cell, Backbone]:
    chosen = cell_of(compose(["backbone=lstm", "d_model=16", "n_layers=1"]))
    return chosen, build(chosen, "backbone", **SIZES)


def test_the_gate_says_when_it_has_no_reference() -> None:
    chosen, backbone = recurrent()
    assert "gate_error" in check.check(chosen, backbone, "fp32", **SIZES)
    backbone.mixer.kernels = FlaLayer.kernels
    assert check.check(chosen, backbone, "fp32", **SIZES) == {"gate_why": check.NO_REFERENCE}


def test_utilisation_is_left_out_where_flops_are_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "backbone=lstm d_model=16 n_layers=1 seq_len=32 speed.lengths=[32] phases=[speed] logger=none isolate=false"
    dials = [*small.split(), "task.n_pairs=2", "speed.n_steps=3", "speed.tokens_per_step=64", f"results_dir={tmp_path}"]
    monkeypatch.setattr(LSTM, "counts_all_flops", FlaLayer.counts_all_flops)
    (row,) = run.run_cell(cell_of(compose(dials)), say=lambda row: None)
    assert row.status == "ok", row.reason
    assert not {"flops_per_token", "tflops", "matmul_share", "mfu"} & set(row.metrics)
    assert {"train_step_ms", "matmul_tflops"} <= set(row.metrics)


@pytest.mark.usefixtures("without_the_package")
def test_the_only_contender_is_what_refuses() -> None:
    assert kernels.contenders(cell()) == ["auto"]


@needs_fla
@pytest.mark.slow
def test_layers_by_the_interpreter() -> None:
    """Decoding equals the forward pass, and layers equal mixers of ours with their weights."""
    said = interpreted("layers")
    assert said.count("decodes\n") == 2
    assert said.count("equals ours\n") == 4
    assert said.count("does not decode\n") == 1
