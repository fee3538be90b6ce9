"""Objects from YAML: what does not fit a constructor is one line with the whole key."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig

from arch_bench.config.instantiate import build, made
from arch_bench.config.schema import CONF, ConfigError, cell_of, compose, sweeping_of
from arch_bench.config.usage import options


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
        (
            ["+backbone.mixer.window=4"],
            "backbone.mixer.window=4: arch_bench.mixers.attention.Attention takes no window",
        ),
        (["+task.other={a:1}"], "task.other={'a': 1}: tasks.recall.MQAR takes no other"),
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


CALLED = "import pathlib; pathlib.Path('called').touch()\n"
PRINT = "{_target_:builtins.print,_args_:[HELLO]}"
NO_TASK = "needs a class derived from tasks.base.Task"
NO_MIXER = "needs a class derived from arch_bench.mixers.base.Mixer"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (f"+task._args_=[{PRINT}]", "task._args_: arguments are given by their names; leave it out"),
        ("+task._partial_=true", "task._partial_=True: tasks.recall.MQAR is made at once; leave it out"),
        ("+task._recursive_=false", "task._recursive_: arguments are given by their names; leave it out"),
        ("+backbone.mixer._convert_=all", "backbone.mixer._convert_: arguments are given by their names; leave it out"),
        ("backbone.mixer._partial_=false", "backbone.mixer._partial_=False: arch_bench.mixers.attention.Attention "),
        (
            f"++task.n_pairs={PRINT}",
            "task.n_pairs._target_=builtins.print: task.n_pairs is a plain value, and names no",
        ),
        (f"++task.n_pairs=[{PRINT}]", "task.n_pairs: is a plain value, and names no class"),
        (f"++task.n_pairs={{a:{PRINT}}}", "task.n_pairs: is a plain value, and names no class"),
        (
            f"+task.other={PRINT}",
            "task.other={'_target_': 'builtins.print', '_args_': ['HELLO']}: tasks.",
        ),
        ("task._target_=builtins.print", "task._target_=builtins.print: builtins is not written in Python"),
        ("task._target_=nosuch.Task", "task._target_=nosuch.Task: there is no module nosuch"),
        ("task._target_=tasks.recall.MQRA", "task._target_=tasks.recall.MQRA: tasks.recall has no class MQRA"),
        ("task._target_=tasks.recall", "task._target_=tasks.recall: tasks has no class recall"),
        ("task._target_=sneaky.f", "task._target_=sneaky.f: sneaky has no class f"),
        ("task._target_=sneaky.Plain", f"task._target_=sneaky.Plain: {NO_TASK}"),
        ("task._target_=sneaky.Other", f"task._target_=sneaky.Other: {NO_TASK}"),
        ("task._target_=sneaky.Popen", f"task._target_=sneaky.Popen: {NO_TASK}"),
        (
            "backbone._target_=sneaky.Plain",
            "backbone._target_=sneaky.Plain: needs a class derived from arch_bench.backb",
        ),
        (
            "backbone._target_=tasks.recall.MQAR",
            "backbone._target_=tasks.recall.MQAR: needs a class derived from arch_b",
        ),
        ("backbone.mixer._target_=sneaky.Plain", f"backbone.mixer._target_=sneaky.Plain: {NO_MIXER}"),
        (
            "protocol._target_=sneaky.Rounds",
            "protocol._target_=sneaky.Rounds: needs a class derived from arch_bench.sweep.pro",
        ),
        (
            "launcher._target_=threading.Thread",
            "launcher._target_=threading.Thread: needs a class derived from arch_be",
        ),
    ],
)
def test_a_target_is_looked_at_before_its_module_runs(
    override: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is called that is no class of the kind that the group needs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sneaky = "from subprocess import Popen\nclass Plain: ...\nclass Other(dict): ...\ndef f(): ...\n"
    (tmp_path / "sneaky.py").write_text(CALLED + sneaky + "class Rounds:\n    def rounds(self, cells): ...\n")
    assert complaint(override).startswith(told)
    assert not (tmp_path / "called").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("raised", "told"), [("", "ValueError"), ("'m' * 5_000_000", "mmm"), ("'a\\n\\nb'", "a b")])
def test_a_constructor_of_the_users_says_something_in_one_bounded_line(
    raised: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"refusing_{abs(hash(raised))}"
    body = f"class Own(MQAR):\n    def check(self):\n        raise ValueError({raised})\n"
    (tmp_path / f"{name}.py").write_text(f"from tasks.recall import MQAR\n{body}")
    said = complaint(f"task._target_={name}.Own")
    assert said.startswith(f"task=mqar: {told}")
    assert "\n" not in said
    assert len(said) < 2_000


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("import no_such_library", "ModuleNotFoundError(\"No module named 'no_such_library'\")"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError("),
        ("raise SystemExit('no luck')", "no luck"),
    ],
)
def test_a_module_of_the_users_that_cannot_be_imported_says_why(
    line: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"unlucky_{abs(hash(line))}"
    (tmp_path / f"{name}.py").write_text(f"from tasks.recall import MQAR\n{line}\nclass Own(MQAR): ...\n")
    said = complaint(f"task._target_={name}.Own")
    assert said.startswith(f"task._target_={name}.Own: ")
    assert told in said
    assert "\n" not in said


OWN = """\
import tasks.recall as recall
from arch_bench.mixers import attention
from arch_bench.sweep.protocols import Grid
class Pairs(recall.MQAR):
    pass
class Mine(attention.Attention):
    pass
class Rows(Grid):
    pass
"""


def test_a_users_own_package_is_taken_wherever_its_names_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_parts" / "deep").mkdir(parents=True)
    (tmp_path / "own_parts" / "__init__.py").write_text("from .deep import *\nfrom .deep.parts import Mine as Ours\n")
    (tmp_path / "own_parts" / "deep" / "__init__.py").write_text(
        "try:\n    from .parts import Pairs, Rows\nfinally:\n    pass\n"
    )
    (tmp_path / "own_parts" / "deep" / "parts.py").write_text(OWN)
    names = [
        "task._target_=own_parts.Pairs",
        "backbone.mixer._target_=own_parts.Ours",
        "protocol._target_=own_parts.Rows",
    ]
    build_all(compose(names))
    mixed = (
        "+task.components.more={_target_:tasks.mixture.Component,weight:1.0,share:0.5,task:{_target_:own_parts.Pairs,"
    )
    tail = "seq_len:64,n_pairs:2,vocab_size:64,power_a:0.01,filler:zero}}"
    build_all(compose(["task=recall_mixture", "seq_len=256", mixed + tail]))


def test_every_option_of_every_group_passes() -> None:
    for group in ("task", "protocol", "launcher"):
        for name in options(CONF, group):
            space = ["protocol.space={optim.lr:[1e-4,1e-1,log]}"] * (name == "optuna")
            cfg = compose([f"{group}={name}", *["seq_len=256"] * (group == "task"), *space])
            made(group, getattr(sweeping_of(cfg) if group != "task" else cell_of(cfg), group), "")
