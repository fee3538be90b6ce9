"""Decoding as it is timed: eager steps, batches, and what they are said to move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import DECODERS, depth, on_cpu

from arch_bench.backbone import Backbone
from arch_bench.config.instantiate import build
from arch_bench.config.schema import cell_of, compose
from arch_bench.cost import decode
from arch_bench.mixers.base import tensors
from arch_bench.results import Metrics
from arch_bench.runtime.decoder import EagerDecoder
from arch_bench.runtime.measure import Stopwatch

SMALL = ["logger=none", "d_model=16", "n_layers=1", "task.vocab_size=64", "decode.n_tokens=4", "device=cpu"]


def model(name: str) -> Backbone:
    torch.manual_seed(0)
    built: Backbone = build(
        cell_of(compose([*SMALL, f"backbone={name}", depth(name, 1)])), "backbone", vocab_size=64, max_len=32
    )
    return built.eval()


@pytest.mark.parametrize("name", [*map(on_cpu, DECODERS)])
@torch.no_grad()
def test_a_decoder_goes_on_from_a_prompt_and_back_to_it(name: str) -> None:
    backbone = model(name)
    tokens = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(0))
    _, state = backbone.prefill(tokens[:, :12], backbone.init_state(2, 20))
    decoder = EagerDecoder(backbone, state)
    found = torch.stack([decoder(token) for token in tokens[:, 12:].unbind(1)], 1)
    torch.testing.assert_close(found, backbone.head(backbone(tokens))[:, 12:], atol=1e-4, rtol=1e-4)
    decoder.restart()
    decoder(tokens[:, 12])
    assert decoder._state[0].item() == 13


@pytest.mark.parametrize(("free", "expected"), [(0, 1), (2**14, 2), (2**40, decode.MAX_BATCH)])
@torch.no_grad()
def test_the_largest_batch_is_a_power_of_two_that_fits(
    free: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_free_bytes", lambda device: free)
    start = decode._largest(model("transformer"), context_len=28, total=32)  # 2 x 32 x 16 numbers each, and 16 bytes
    assert start.batch_size == expected
    assert start.state[1][0][0].shape[0] == start.batch_size


@torch.no_grad()
def test_a_batch_that_does_not_fit_after_all_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = model("lstm")
    real = backbone.step

    def step(token: torch.Tensor, state: object) -> object:
        if len(token) > 100:
            raise torch.OutOfMemoryError("too many")
        return real(token, state)  # type: ignore[arg-type]

    monkeypatch.setattr(backbone, "step", step)
    assert decode._largest(backbone, context_len=8, total=16).batch_size == 64


def test_rows_of_both_batchings(tmp_path: Path) -> None:
    single, largest = (
        decode.measure(cell_of(compose([*SMALL, f"results_dir={tmp_path}", f"decode.batching={name}"])), 16).metrics
        for name in ("single", "largest")
    )
    assert (single["batching"], single["batch_size"], single["step"]) == ("single", 1, "eager")
    assert (largest["batching"], largest["batch_size"]) == ("largest", decode.MAX_BATCH)
    assert single["prefill_ms"] > 0  # type: ignore[operator]
    assert "prefill_ms" not in largest
    assert single["ms_per_token"] == single["ms_per_token_eager"]
    assert (single["prefill_ms"], single["prefill_step"]) == (single["prefill_ms_eager"], "eager")
    bytes_moved = single["gb_per_s"] * single["ms_per_token"] * 1e6  # type: ignore[operator]
    assert bytes_moved == pytest.approx(4 * single["n_params"] + single["state_bytes"])  # type: ignore[operator]


def least_share_read(backbone: Backbone) -> float:
    """Of the numbers of each tensor of a state: a NaN in the place of one spoils the output, or goes elsewhere.

    Also one that is masked after it was read.
    """
    generator, length = torch.Generator().manual_seed(0), 256
    token, sizes = torch.zeros(1, dtype=torch.long), [t.numel() for t in tensors(backbone.init_state(1, length))]
    shares = []
    for i, size in enumerate(sizes):
        n_read = 0
        for at in torch.randint(size, (8,), generator=generator).tolist() if size > 1 else ():
            state = backbone.init_state(1, length, position=length - 1)
            [*tensors(state)][i].view(-1)[at] = torch.nan
            logits, after = backbone.step(token, state)
            n_read += int(bool(logits.isnan().any()) or not [*tensors(after)][i].view(-1)[at].isnan())
        shares += [n_read / 8] if size > 1 else []
    return min(shares)


@pytest.mark.parametrize("name", [*map(on_cpu, DECODERS)])
@torch.no_grad()
def test_what_reads_a_part_of_its_state_has_no_bandwidth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "copy_gb_per_s", lambda watch, device: 1.0)
    backbone, cpu = model(name), torch.device("cpu")
    measured: Metrics = {"state_bytes": 1, "batch_size": 1, "ms_per_token": 1.0}
    found = decode._traffic(backbone, measured, "fp32", Stopwatch(cpu), cpu)
    is_whole = least_share_read(backbone) == 1
    assert found.keys() == ({"gb_per_s", "copy_gb_per_s"} if is_whole else set())
    assert is_whole != (name in {"bigbird", "dilated", "moba", "nsa", "strided"})


@pytest.mark.parametrize(("name", "kept"), [("lstm", 2 * 8 * (16 * 16 + 16)), ("transformer", 0)])
def test_weights_that_stay_in_fp32_are_counted_so(name: str, kept: int) -> None:
    """Autocast leaves an LSTM's four gates alone: W, U and a bias of each."""
    backbone = build(
        cell_of(compose([*SMALL, f"backbone={name}", depth(name, 2), "n_layers=2"])), "backbone", vocab_size=64
    )
    assert decode._weight_bytes(backbone, "fp32") == 4 * backbone.n_params()
    assert decode._weight_bytes(backbone, "bf16") == 2 * backbone.n_params() + 2 * kept


def test_weights_that_no_token_meets_are_not_moved() -> None:
    """The table of positions, of which one row is read, and what encodes and reads the source."""
    plain, learned = (
        build(cell_of(compose([*SMALL, "backbone=lstm", f"backbone.positions={kind}"])), "backbone", vocab_size=64)
        for kind in ("none", "learned")
    )
    assert decode._weight_bytes(learned, "fp32") == decode._weight_bytes(plain, "fp32")
    both = build(
        cell_of(compose([*SMALL, "backbone=encoder_decoder", "backbone.mixer.qk_norm=true"])),
        "backbone",
        vocab_size=64,
        n_source=lambda n: n // 2,
    )
    encoder = sum(p.numel() for block in both._encoder for p in block.parameters())
    outside = encoder + sum(p.numel() for p in both.source_norm.parameters())
    outside += 16 * 2 * 16 + 16 // 4  # keys and values of the source, and the norm of those keys
    assert decode._weight_bytes(both, "fp32") == 4 * (both.n_params() - outside)
