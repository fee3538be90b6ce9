"""Objects from YAML: what does not fit a constructor is one line with the whole key."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig

from arch_bench.config import ConfigError, cell_of, compose, sweeping_of
from arch_bench.objects import build, made


def build_all(cfg: DictConfig) -> None:
    cell, sweeping = cell_of(cfg), sweeping_of(cfg)
    build(cell, "backbone", vocab_size=build(cell, "task").vocab_size)
    made("launcher", sweeping.launcher, "")
    made("protocol", sweeping.protocol, "")


def complaint(*overrides: str) -> str:
    """What is said of the first of task, backbone, launcher and protocol that cannot be built."""
    cfg = compose([*overrides])
    with pytest.raises(ConfigError) as found:
        build_all(cfg)
    return str(found.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["~task.n_pairs"], "task.n_pairs is missing: tasks.recall.MQAR needs it"),
        (["~backbone.dropout"], "backbone.dropout is missing: arch_bench.backbone.Backbone needs it"),
        (
            ["~backbone.mixer.n_heads", "backbone.mixer.n_kv_heads=4"],
            "backbone.mixer.n_heads is missing: arch_bench.mixers.attention.Attention needs it",
        ),
        (["~task._target_"], "task._target_=None: needs the name of a class"),
        (["+task._target_.x=1"], "task._target_={'x': 1}: needs the name of a class"),
    ],
)
def test_what_is_missing_is_named(overrides: list[str], told: str) -> None:
    assert complaint(*overrides) == told


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["launcher=joblib", "launcher.pack=zero"], "launcher.pack=zero: input should be a valid integer or 'auto'"),
        (["backbone=mamba", "backbone.mixer.dt_rank=1.5"], "backbone.mixer.dt_rank=1.5: input should be a valid "),
        (["backbone=tcn", "backbone.mixer.dilations=[1,a]"], "backbone.mixer.dilations.1=a: input should be a valid "),
    ],
)
def test_a_wrong_type_is_named_by_its_key_and_with_all_that_is_allowed(overrides: list[str], told: str) -> None:
    assert complaint(*overrides).startswith(told)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["backbone.mixer.n_heads=3"], "backbone=transformer: backbone.mixer.n_heads=3 must divide d_model=64"),
        (["backbone.mlp_ratio=0"], "backbone=transformer: backbone.mlp_ratio=0 leaves"),
        (["backbone.d_conv=-1"], "backbone=transformer: backbone.d_conv=-1: needs 0 (none) or more"),
        (["backbone=hybrid", "+backbone.mixer.local_attention.window=0"], "backbone.mixer.local_attention.window=0 "),
        (["seq_len=8"], "task=mqar: seq_len=8 is too short for task.n_pairs=4"),
        (["launcher=submitit", "launcher.within.pack=0"], "launcher.within.pack=0: needs at least 1"),
        (["protocol=fair", "protocol.ratio=1"], "protocol.ratio=1: needs more than 1"),
        (["protocol=optuna"], "protocol.space is empty"),
    ],
)
def test_what_a_constructor_refuses_is_named_by_its_whole_key(overrides: list[str], told: str) -> None:
    assert told in complaint(*overrides)
