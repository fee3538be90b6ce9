"""Different seeds are different weights, whatever their size, and those of published rows are what they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arch_bench.config.instantiate import build
from arch_bench.config.schema import ConfigError, cell_of, compose
from arch_bench.runtime.seed import narrow
from arch_bench.train import fit
from arch_bench.train.team import SOLO

LARGE = [1 << 32, (1 << 32) + 1, 1 + (1 << 40), 1 + (1 << 41), (1 << 63) - 1]


def weights(seed: int) -> Tensor:
    small = ["backbone=lstm", "d_model=8", "n_layers=1", "task.vocab_size=32", "logger=none", "device=cpu"]
    cell = cell_of(compose([*small, "precision=fp32", f"seed={seed}"]))
    step = fit._step(cell, build(cell, "task"), torch.device("cpu"), SOLO)
    return torch.cat([parameter.detach().flatten() for parameter in step.backbone.parameters()])


def test_seeds_of_32_bits_are_what_they_were() -> None:
    assert [narrow(seed) for seed in (0, 1, 1000, (1 << 32) - 1)] == [0, 1, 1000, (1 << 32) - 1]


def test_larger_seeds_differ_in_the_bits_that_are_read() -> None:
    found = [narrow(seed) for seed in LARGE]
    assert all(0 <= seed < 1 << 32 for seed in found)
    assert len({*found, 0, 1}) == len(LARGE) + 2


def test_seeds_of_several_parts_differ_by_each() -> None:
    assert len({narrow(0, 0), narrow(0, 1), narrow(1, 0), narrow(1, 1), narrow(0, 0, 0), narrow(0)}) == 6


def test_different_seeds_have_different_weights() -> None:
    found = [weights(seed) for seed in (0, 1, *LARGE)]
    for i, one in enumerate(found):
        assert not any(bool((one == other).all()) for other in found[:i])
    assert torch.equal(found[-1], weights(LARGE[-1]))


@pytest.mark.parametrize("seed", [-1, 1 << 63, 1 << 64, 1 << 200])
def test_a_seed_that_cannot_be_is_refused_in_one_line(seed: int) -> None:
    with pytest.raises(ConfigError, match=r"^seed=.*: (needs an integer|input should be)") as refused:
        cell_of(compose([f"seed={seed}"]))
    assert "\n" not in str(refused.value)
