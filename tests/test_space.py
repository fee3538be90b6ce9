"""What a search may try, as it is typed: read, or refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from arch_bench.config.instantiate import made
from arch_bench.config.schema import ConfigError, compose, sweeping_of
from arch_bench.sweep.space import Choice, Range, parsed, shown


def test_a_list_that_ends_in_a_scale_is_a_range_and_any_other_is_values() -> None:
    found = parsed({"optim.lr": [1e-4, 0.1, "log"], "backbone.d_conv": [0, 4], "n_layers": [1, 4, "linear"]})
    assert found == {
        "backbone.d_conv": Choice((0, 4)),
        "n_layers": Range(1, 4, is_log=False),
        "optim.lr": Range(1e-4, 0.1, is_log=True),
    }
    assert [found[dial].is_int for dial in ("n_layers", "optim.lr")] == [True, False]  # type: ignore[union-attr]


def test_what_is_inside() -> None:
    space = parsed({"optim.lr": [1e-4, 0.1, "log"], "backbone.tie_embeddings": [True, None, "x"]})
    rates, ties = space["optim.lr"], space["backbone.tie_embeddings"]
    assert [value in rates for value in (1e-4, 0.1, 0.2, None, True)] == [True, True, False, False, False]
    assert [value in ties for value in (True, None, "x", 1, False)] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (None, "space is empty"),
        ({}, "space is empty"),
        ({"optim.lr": 0.1}, r"optim.lr=0.1: give \[low,high,log\]"),
        ({"optim.lr": [[0.1], 0.2]}, "give"),
        ({"optim.lr": [0.1]}, "at least two values"),
        ({"optim.lr": [0.1, 0.1]}, "each once"),
        ({"optim.lr": [0.1, "log"]}, "two numbers and linear or log"),
        ({"optim.lr": [0.1, "high", "log"]}, "two numbers"),
        ({"optim.lr": [False, True, "linear"]}, "two numbers"),
        ({"optim.lr": [0.1, 0.1, "log"]}, "first bound must be below the second"),
        ({"optim.lr": [0, 0.1, "log"]}, "log range needs positive bounds"),
        ({"seed": [0, 1]}, "seed cannot be searched; choose among backbone"),
        ({"optim": [0, 1]}, "optim cannot be searched"),
        ({"task.n_pairs": [2, 4]}, "task.n_pairs cannot be searched"),
        ({"trainer.n_val_batches": [2, 4]}, "trainer.n_val_batches cannot be searched"),
    ],
)
def test_what_is_refused(space: dict[str, Any] | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parsed(space)


def test_it_can_be_typed() -> None:
    space = "{optim.lr:[1e-4,1e-1,log],backbone.mlp:[gelu,swiglu],trainer.batch_size:[32,64,128]}"
    node = sweeping_of(compose(["protocol=optuna", f"protocol.space={space}"])).protocol
    assert parsed(node["space"]) == {
        "backbone.mlp": Choice(("gelu", "swiglu")),
        "optim.lr": Range(1e-4, 0.1, is_log=True),
        "trainer.batch_size": Choice((32, 64, 128)),
    }
    made("protocol", node, "")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("n_trials=0", r"^protocol.n_trials=0, n_at_once=1, n_random=10, prune_from_trial=5: each needs at least 1$"),
        ("prune_from=2.0", r"^protocol.prune_from=2: a share, from 0 to 1$"),
        ("sampler=grid", r"^protocol.sampler=grid: input should be 'tpe' or 'random'$"),
        ("space={d_model:[8,16]}", r"^protocol.space: d_model is what match=true chooses; match=false to search it$"),
        ("space=null", r"^protocol.space is empty: name what to search"),
    ],
)
def test_a_mistake_in_the_protocol_is_one_line(override: str, words: str) -> None:
    overrides = ["protocol=optuna", "protocol.space={optim.lr:[1e-4,1e-1,log]}", f"protocol.{override}"]
    if override.startswith("space"):
        del overrides[1]
    with pytest.raises(ConfigError, match=words):
        made("protocol", sweeping_of(compose(overrides)).protocol, "")


def test_it_is_shown_as_it_is_typed() -> None:
    values = {"optim.lr": 0.00316, "backbone.d_conv": 4, "backbone.mlp": "gelu", "backbone.tie_embeddings": None}
    assert shown(values) == "optim.lr=0.00316, backbone.d_conv=4, backbone.mlp=gelu, backbone.tie_embeddings=null"
