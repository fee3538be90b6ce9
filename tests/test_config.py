"""The composed config as a record: what it refuses, in one line that names the key, the value and what is allowed."""

from __future__ import annotations

import copy
import re
from functools import cache

import pytest
from omegaconf import DictConfig, OmegaConf

from arch_bench.config import ConfigError, cell_of, compose

NAMES = ["", "..", ".x", "../x", "a/b", "a b", "rows", "Wandb", "hydra"]
"""Of reports: outside results_dir, hidden in it, or among what it holds."""


@cache
def composed() -> DictConfig:
    return compose([])


def changed(key: str, value: object) -> DictConfig:
    cfg = copy.deepcopy(composed())
    OmegaConf.update(cfg, key, value)
    return cfg


def complaint(*overrides: str) -> str:
    with pytest.raises(ConfigError) as found:
        cell_of(compose([*overrides]))
    return str(found.value)


def test_mixers_that_are_not_in_the_pattern_are_refused() -> None:
    pattern = "not in backbone.pattern=['mamba', 'local_attention']; choose from: mamba, local_attention"
    for name in ("mmba", "lstm"):
        told = complaint("backbone=hybrid", f"+backbone.mixer.{name}.d_state=4")
        assert told == f"backbone.mixer.{name}: {pattern}"


def test_what_a_ready_made_pattern_says_of_a_mixer_may_idle_under_another_pattern() -> None:
    cell = cell_of(compose(["backbone=griffin", "backbone.pattern=[rg_lru]"]))
    assert set(cell.backbone["mixer"]) == {"rg_lru", "local_attention"}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("task.seq_len", 16, "task.seq_len=16: set by seq_len=64; change that"),
        ("backbone.max_len", 128, "backbone.max_len=128: set by seq_len=64; change that"),
        ("backbone.d_model", 8, "backbone.d_model=8: set by d_model=64; change that"),
        ("backbone.n_layers", 3, "backbone.n_layers=3: set by n_layers=2; change that"),
        ("optim.betas", [0.9, 1], "optim.betas.1=1: input should be less than 1"),
        ("optim.betas", [-0.1, 0.9], "optim.betas.0=-0.1: input should be greater than or equal to 0"),
        *(("name", name, f"name={name}: a folder of results_dir; give letters, digits, _, - and .") for name in NAMES),
    ],
)
def test_values_that_would_mislead_or_crash_later_are_refused(key: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}"):
        cell_of(changed(key, value))


def test_usual_names_are_taken() -> None:
    assert cell_of(changed("name", "run-2.b_X")).name == "run-2.b_X"


def test_a_value_that_is_missing_is_named() -> None:
    assert complaint("~trainer.max_steps") == "trainer.max_steps: field required"


@pytest.mark.parametrize("text", ["null", "5", "true", "[none]", "none,null"])
def test_options_that_are_no_name_are_refused(text: str) -> None:
    assert complaint(f"logger={text}") == f"logger={text} does not exist; choose from: none, wandb"
