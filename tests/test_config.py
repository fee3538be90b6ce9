"""The composed config as a record: what it refuses, in one line that names the key, the value and what is allowed."""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from arch_bench.config.errors import quoted
from arch_bench.config.schema import ConfigError, cell_of, compose, recomposed, sweeping_of

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
        ("results_dir", "a\0b", r"results_dir='a\x00b': holds a NUL character; leave it out"),
        ("task.vocab_size", 2**63, "task.vocab_size=9.223e+18: needs an integer of less than 64 bits"),
        ("task.vocab_size", -(10**400), "task.vocab_size=1e300 or more: needs an integer of less than 64 bits"),
        ("n_layers", 1_001, "n_layers=1001: input should be less than or equal to 1000"),
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


def numbers(node: object, path: str) -> list[str]:
    """Every number of a config, by its key."""
    items = enumerate(node) if isinstance(node, list) else node.items() if isinstance(node, dict) else []
    found = [key for name, value in items for key in numbers(value, f"{path}.{name}".strip("."))]
    return [*found, path] if isinstance(node, int | float) and not isinstance(node, bool) else found


GROUPS = [
    "",
    "launcher=submitit",
    "protocol=fair",
    "protocol=optuna",
    "task=adding",
    "backbone=tcn",
    "task=recall_mixture",
]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400"])
@pytest.mark.parametrize("option", GROUPS)
def test_a_number_that_is_not_finite_is_refused_wherever_it_is(option: str, value: str) -> None:
    cfg = compose([option] if option else [])
    keys = numbers(OmegaConf.to_container(cfg, resolve=True), "")
    assert {"time_limit_s", "optim.betas.0", "backbone.dropout"} <= {*keys}
    for key in keys:
        broken = copy.deepcopy(cfg)
        OmegaConf.update(broken, key.replace(".0", "[0]").replace(".1", "[1]"), float(value))
        with pytest.raises(ConfigError, match=rf"={float(value)}: needs a finite number$"):
            cell_of(broken), sweeping_of(broken)


def test_a_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert cell_of(changed("results_dir", "~/x")).results_dir == "/home/me/x"
    assert cell_of(changed("results_dir", "~")).results_dir == "/home/me"
    assert cell_of(changed("results_dir", "a/~/x")).results_dir == "a/~/x"
    with pytest.raises(ConfigError, match=r"^results_dir=~nobody-is-called-so/x: .*; write the folder out$"):
        cell_of(changed("results_dir", "~nobody-is-called-so/x"))


FOLDERS = [
    "plain",
    "v1, final",
    "jörg",
    "o'neil",
    "lr=3",
    "a(b)",
    'say "hi"',
    "a\\",
    'a\\"b',
    "$x",
    "a]b",
    "a: b",
    " a ",
]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_configs_may_have_any_name_when_a_cell_is_composed_anew(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "task"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults: [mqar, _self_]\nn_pairs: 3\n")
    cell = cell_of(compose([f"hydra.searchpath=[{quoted(f'file://{tmp_path / name}')}]", "task=mine"]))
    again = recomposed(cell, {"seed": 3})
    assert (again.task["n_pairs"], again.seed, again.task_name) == (3, 3, "mine")


def test_a_cell_composed_anew_keeps_what_follows_from_what_is_changed() -> None:
    cell = cell_of(compose(["d_model=${seq_len}", "seq_len=128"]))
    again = recomposed(cell, {"seq_len": 32})
    assert (cell.d_model, again.d_model, again.backbone["d_model"]) == (128, 32, 32)
