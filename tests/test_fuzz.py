"""Whatever a key is set to, the answer is one line that says so, or a plan: never a traceback, a page or a silence."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cells import TINY
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from arch_bench import cli
from arch_bench.config.schema import compose
from arch_bench.sweep import sweep

VALUES = [
    *("{}", "[]", "null", "-1", "0", "1e400", "nan", "''", "'a b'", "99999999999999999999999", "100000", "ä", "true"),
    *("0.5", "${nosuch}", "${seed}", "{a:{b:1}}", "[1,a,null]", "[[]]", "???", "a\0b", "{_target_:os.abort}"),
]
OPTIONS = [
    [],
    ["protocol=fair", "launcher=joblib", "backbone=hybrid", "n_layers=2"],
    ["launcher=submitit", "task=recall_mixture", "seq_len=256", "backbone=encoder_decoder"],
    ["protocol=optuna", "protocol.space={optim.lr:[1e-4,1e-1,log]}", "task=text", "backbone=griffin", "n_layers=3"],
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    before = HydraConfig.instance().cfg
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = before


def keys(node: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from keys(value, f"{above}{key}.")


def asked(options: list[str], folder: Path) -> list[str]:
    named = {each.partition("=")[0] for each in options}
    given = [each for each in TINY if each.partition("=")[0] not in named and not ("task" in named and "task." in each)]
    return [*given, *options, "dry_run=true", f"results_dir={folder}"]


def answer(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What is wrong with the answer of the command, in this process; empty for nothing."""
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    fresh = sweep.Sweep()
    for module in (cli, sweep):
        monkeypatch.setattr(module, "SWEEP", fresh)
    monkeypatch.setattr(sys, "argv", ["arch-bench", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the command does
    capsys.readouterr()
    try:
        cli._main()
        code: object = 0
    except SystemExit as end:
        code = end.code
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    is_refused = code == 2 and len(lines) == 1 and lines[0].startswith("arch-bench: ")
    return "" if is_refused or (code == 0 and not lines and " to run" in printed.out) else f"{code}: {printed.err}"


def failures(options: list[str], share: float, folder: Path, *fixtures: Any) -> list[str]:
    base = asked(options, folder)
    found = [*keys(dict(OmegaConf.to_container(compose(base), resolve=True)))]  # type: ignore[arg-type]
    cases = [f"{key}={value}" for key in found for value in VALUES]
    chosen = random.Random(len(options)).sample(cases, round(share * len(cases)))
    return [f"{case} -> {wrong}" for case in chosen if (wrong := answer([*base, case], *fixtures))]


@pytest.mark.parametrize("options", OPTIONS)
def test_some_overrides_are_answered_in_a_line(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not failures(options, 0.003, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_all_overrides_are_answered_in_a_line(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not failures(options, 1.0, tmp_path, monkeypatch, capsys)


LISTED = [
    ["protocol=fair", "protocol.n_rates={}"],
    ["launcher=submitit", "launcher.within=0"],
    ["backbone=hybrid", "backbone.mixer=null"],
    ["backbone=hybrid", "+backbone.mixer.mamba=3"],
    ["hydra.sweeper.params=3"],
    ["hydra=null"],
    ["n_layers=100000"],
    ["results_dir=${nosuch}"],
    ["backbone._target_=arch_bench.backbone.Bakbone"],
    ["backbone.mixer._target_=arch_bench.mixers.recurrent.LTSM"],
    ["optim.schedule={}", "seed=-1"],
]


@pytest.mark.parametrize("overrides", LISTED)
def test_what_ended_in_a_traceback_or_a_hang_is_answered_in_a_line(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not answer(asked(overrides, tmp_path), monkeypatch, capsys)
