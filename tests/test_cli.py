"""What a user types, in a real process: help, a cell, a sweep, mistakes, Ctrl-C."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.errors import ConfigCompositionException, OverrideParseException

from arch_bench import results
from arch_bench.config.errors import one_line
from arch_bench.config.schema import CONF, cell_of, compose, recomposed
from arch_bench.config.usage import GROUPS, options

TINY = [
    "logger=none",
    "isolate=false",
    "seq_len=16",
    "d_model=16",
    "n_layers=1",
    "task.n_pairs=2",
    "task.vocab_size=64",
    "eval_scales=[1]",
    "trainer.max_steps=2",
    "trainer.batch_size=4",
    "trainer.val_every=2",
    "phases=[quality]",
]


def arch_bench(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "arch_bench", *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_help_lists_groups_and_dials(tmp_path: Path) -> None:
    text = arch_bench("--help", cwd=tmp_path).stdout
    for group in GROUPS:
        assert re.search(rf"^  {group}$", text, re.MULTILINE), group
        for option in options(CONF, group):
            assert re.search(rf"^    {option} +\w.{{12}}", text, re.MULTILINE), f"{group}={option}: a line of comment"
    assert max(map(len, text.splitlines())) <= 160
    for dial in ("seq_len", "d_model", "n_layers", "seed", "precision", "kernel", "step", "phases", "eval_scales"):
        assert re.search(rf"^  {dial}: .*#", text, re.MULTILINE), dial
    assert "$" not in text


def test_the_version_is_that_of_the_harness(tmp_path: Path) -> None:
    done = arch_bench("--version", cwd=tmp_path)
    assert re.fullmatch(r"arch-bench [\d.]+, torch [\d.]+\S*, hydra 1\.3\.[\d.]+\n", done.stdout)
    assert done.returncode == 0


def test_the_composed_config_can_be_seen(tmp_path: Path) -> None:
    done = arch_bench("backbone=lstm", "--cfg", "job", "--resolve", cwd=tmp_path)
    assert done.returncode == 0
    assert "_target_: arch_bench.mixers.recurrent.LSTM" in done.stdout
    assert "backbone_name: lstm" in done.stdout


def test_the_command_module_imports_nothing_slow() -> None:
    code = (
        "import sys, arch_bench.cli; print([m for m in ('torch', 'lightning', 'wandb', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_sweep_prints_each_cell_and_writes_its_report(tmp_path: Path) -> None:
    sweep = ["-m", *TINY, "backbone=lstm,transformer", "seed=0,1"]
    done = arch_bench(*sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [f"[{i}/4]" in done.stdout for i in (1, 2, 3, 4)] == [True] * 4
    assert len(results.load([tmp_path / "results"])) == 4
    assert (tmp_path / "results" / "adhoc" / "report.html").exists()
    assert (tmp_path / "results" / "adhoc" / "report.md").exists()


def test_a_single_cell_ends_with_its_table_and_where_its_rows_are(tmp_path: Path) -> None:
    done = arch_bench(*TINY, "backbone=lstm", cwd=tmp_path)
    (row,) = (tmp_path / "results" / "rows").iterdir()
    *table, _, last = done.stdout.splitlines()
    assert [line.split()[0] for line in table[-4:]] == ["scores", "------", "mqar", "lstm"]
    assert last == f"rows: results/rows/{row.name.partition('-')[0]}-*.json"
    assert not (tmp_path / "results" / "adhoc").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["backbone=mamb"], f"backbone=mamb does not exist; choose from: {', '.join(options(CONF, 'backbone'))}"),
        (["task.n_pais=3"], "task.n_pais is not a key; task has: seq_len, n_pairs"),
        (["dmodel=3"], "(did you mean d_model?)"),
        (["lr=1e-3"], "(did you mean optim.lr?)"),
        (["task.max_steps=3"], "(did you mean trainer.max_steps?)"),
        (["-m", "seed=range(3,1)"], "seed=range(3,1): no cells; "),
        (["-m", "hydra.sweeper.params=3"], "hydra.sweeper.params=3: Cannot assign int to Dict[str, str]"),
        (
            ["backbone=lstm", "-m", "task=mqar"],
            "task=mqar: stands apart from the other values; put -m and other ",
        ),
        (["--backbone", "lstm"], "--backbone: no flag of this command; values have no dashes: write backbone=VALUE"),
        (["--backbone=lstm"], "--backbone=lstm: no flag of this command; values have no dashes: write backbone=VALUE"),
        (["-x"], "-x: no flag of this command; arch-bench --hydra-help lists them"),
        (["-m", "--cfg", "job"], "-m and --cfg: not together; choose one"),
        (["--cfg", "jobs"], "argument --cfg/-c: invalid choice: 'jobs' (choose from "),
        (["--resolve"], "--resolve: goes with --cfg; write --cfg job --resolve"),
        (
            ["+hydra.callbacks.x={_target_:builtins.print}"],
            "hydra.callbacks.x: classes of Hydra's are chosen ",
        ),
        (["d_model=abc"], "d_model=abc: input should be a valid integer"),
        (["optim.lr=[oops"], "optim.lr=[oops: brackets that do not match; "),
        (["results_dir=blocked/here"], "blocked"),
        (["-m", "logger=wandb,null"], "logger=wandb,null does not exist; choose from: none, wandb"),
        (["launcher.pack=0"], "launcher.pack: the launcher chosen has no dials; choose a launcher that has it: joblib"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)  # which other tests ask for in this process
            for case in (
                (["task.n_pairs=5"], "seq_len=16 is too short for task.n_pairs=5: needs seq_len >= 4 * n_pairs = 20"),
                (["backbone.mixer.n_heads=3"], "backbone.mixer.n_heads=3 must divide d_model=16"),
                (["~task.n_pairs"], "task.n_pairs is missing: tasks.recall.MQAR needs it"),
            )
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, args: list[str], words: str) -> None:
    (tmp_path / "blocked").write_text("a file where a folder should be")
    n_flags = int(args[0] == "-m")  # which stand before or after all values
    done = arch_bench(*args[:n_flags], *TINY, *args[n_flags:], cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_key_of_swept_backbones_that_the_default_lacks_is_told_how_to_be_set(tmp_path: Path) -> None:
    sweep = ["-m", *TINY, "backbone=mamba,mamba2", "dry_run=true"]
    done = arch_bench(*sweep, "backbone.mixer.d_state=16", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "arch-bench: backbone.mixer.d_state is not a key of the default backbone; in a sweep over backbone, write "
        "++backbone.mixer.d_state to set it in each\n"
    )
    assert arch_bench(*sweep, "++backbone.mixer.d_state=16", cwd=tmp_path).returncode == 0
    assert not list(tmp_path.iterdir()), "a dry run also looks at results that are read-only"


@pytest.mark.parametrize(
    ("isolate", "corpus", "words"),
    [
        ("true", "no/such/corpus", "no/such/corpus"),
        ("false", "empty.txt", "empty"),
        pytest.param("false", "no/such/corpus", "no/such/corpus", marks=pytest.mark.slow),
    ],
)
def test_a_missing_corpus_is_one_line_and_exit_code_2(tmp_path: Path, isolate: str, corpus: str, words: str) -> None:
    (tmp_path / "empty.txt").write_text("")
    text = ["task=text", f"task.path={corpus}", "logger=none", "phases=[quality]", f"isolate={isolate}"]
    done = arch_bench(*text, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_an_impossible_cell_does_not_end_a_sweep(tmp_path: Path) -> None:
    done = arch_bench("-m", *TINY, "task.n_pairs=5,2", cwd=tmp_path)
    assert done.returncode == 2
    assert "needs seq_len >= 4 * n_pairs" in done.stderr
    assert len(results.load([tmp_path / "results"])) == 1


def hears() -> None:
    """As in a terminal, also where the tests run under nohup or in the background, which are deaf to some signals."""
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def interrupted(
    tmp_path: Path, is_due: Callable[[], bool], *overrides: str, signum: int = signal.SIGINT
) -> tuple[int, str]:
    """Exit code and stderr of a cell that trains for ever, after a signal to its whole group once that is due."""
    args = [*(a for a in TINY if not a.startswith(("isolate", "phases", "trainer.max_steps")))]
    errors = tmp_path / "stderr"  # no pipe, which waits for every process that holds it
    with errors.open("w") as file:
        command = [sys.executable, "-m", "arch_bench", *args, "trainer.max_steps=1000000", *overrides]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=hears,  # noqa: PLW1509 (a test has one thread)
        )
    try:
        end = time.monotonic() + 120
        while not is_due() and time.monotonic() < end:
            time.sleep(0.1)
        os.killpg(process.pid, signum)  # so does a terminal with Ctrl-C, and a batch system
        return process.wait(timeout=60), errors.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_an_interruption_is_one_line_and_keeps_rows_and_training(tmp_path: Path, signum: int, code: int) -> None:
    def has_trained() -> bool:
        return bool(list(tmp_path.rglob("*.ckpt")))

    phases = ["phases=[decode,quality]", "decode.lengths=[16]", "decode.n_tokens=4", "checkpoint_every_s=0.1"]
    found, stderr = interrupted(tmp_path, has_trained, *phases, signum=signum)
    assert found == code
    (saved,) = (tmp_path / "results" / "checkpoints").iterdir()
    assert torch.load(saved, weights_only=True)["global_step"] > 0
    assert "interrupted; finished rows are kept" in stderr
    assert "Traceback" not in stderr
    assert "leaked" not in stderr
    assert len(results.load([tmp_path / "results"])) == 1


def test_ctrl_c_among_the_imports_is_one_line_too(tmp_path: Path) -> None:
    def has_begun() -> bool:
        if " on mqar" not in (tmp_path / "stderr").read_text():
            return False
        time.sleep(1.5)  # the server of its processes is among its imports
        return True

    code, stderr = interrupted(tmp_path, has_begun, "phases=[quality]")
    time.sleep(1)  # what a process left behind would say
    assert code == 130
    assert "Traceback" not in stderr + (tmp_path / "stderr").read_text()


def test_file_system_errors_name_the_file() -> None:
    assert one_line(PermissionError(13, "Permission denied", "/data/x")) == "/data/x: Permission denied"


WRITTEN = ["/d/a=b", "/d/x (1).txt", "/d/a[1].txt", "/d/a{1}", "a&b;c", "it's", 'a"b', "é"]


@pytest.mark.parametrize("value", [*WRITTEN, "~/x"])
@pytest.mark.parametrize("key", ["task.path", "results_dir"])
def test_what_is_advised_for_a_value_that_needs_quotes_is_read_as_it_was_meant(key: str, value: str) -> None:
    with pytest.raises(OverrideParseException) as refused:
        compose(["task=text", f"{key}={value}"])
    complaint = one_line(refused.value)
    assert "Exception" not in complaint
    (advice,) = shlex.split(complaint.partition(" inside quotes: ")[2])  # as a shell takes it
    cell = cell_of(compose(["task=text", advice]))
    found = {"task.path": cell.task["path"], "results_dir": cell.results_dir}
    assert found[key] == str(Path(value).expanduser())
    changed = recomposed(cell, {"seed": 3})
    assert {"task.path": changed.task["path"], "results_dir": changed.results_dir} == found


@pytest.mark.parametrize("argument", ["3", "seed", "a b=3"])
def test_what_is_no_key_and_value_is_told_so(argument: str) -> None:
    with pytest.raises(OverrideParseException) as refused:
        compose([argument])
    assert one_line(refused.value) == f"{argument}: cannot be read; write KEY=VALUE, as seed=1"


@pytest.mark.parametrize("override", ["backbone.mixer.rg_lru.expand=2", "backbone.mixer.mamba.d_state=4"])
def test_a_mixer_of_a_pattern_is_told_how_to_be_changed(override: str) -> None:
    overrides = ["backbone=hybrid", "backbone.pattern=[mamba,rg_lru]", override]
    with pytest.raises(ConfigCompositionException) as refused:
        compose(overrides)
    advice = one_line(refused.value, overrides).rpartition(": ")[2]
    mixer, key, value = override.removeprefix("backbone.mixer.").replace("=", ".").split(".")
    assert str(cell_of(compose([*overrides[:2], advice])).backbone["mixer"][mixer][key]) == value
