"""arch_bench/examples.py: what `arch-bench-task` prints."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from arch_bench import examples
from arch_bench.config.instantiate import build
from arch_bench.config.schema import CONF, cell_of, compose
from arch_bench.config.usage import options

CORPORA = {"enwik8", "fineweb_edu", "masked_text", "pg19", "text", "text8", "tiny_shakespeare", "wikitext103"}
"""Whose first use reads or downloads one."""


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["arch-bench-task", *arguments])
    monkeypatch.setenv("COLUMNS", "60")
    examples.main()


def test_examples_show_tokens_and_what_is_scored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "copy_memory", "n=2", "seq_len=10", "task.n_data=3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "copy_memory: 10 positions, at most 3 scored, 10 tokens"
    assert lines[1] == "guessing scores: chance 0.125"
    assert [line for line in lines if line.startswith("example")] == ["example 1", "example 2"]
    position, token, target = (line.split() for line in lines[4:7])
    assert position == ["position", *map(str, range(10))]
    assert token[4:] == ["_", "_", "_", "#", "_", "_", "_"]
    assert target == ["target", *".......", *token[1:4]]


@pytest.mark.parametrize("task", [name for name in options(CONF, "task") if name not in CORPORA])
def test_every_task_is_shown(task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, task, "n=1", "seq_len=256")
    assert "example 1" in capsys.readouterr().out


def test_the_target_of_a_regression_is_a_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "adding", "n=1", "seq_len=4", "task.n_levels=11")
    *_, token, target = capsys.readouterr().out.splitlines()
    marked = [float(word.removesuffix("*")) for word in token.split()[1:] if word.endswith("*")]
    assert float(target.split()[-1]) == pytest.approx(sum(marked), abs=0.01)


def test_a_long_example_is_folded_to_the_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "copy_memory", "n=1", "seq_len=100")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[3:])) <= 60
    shown = [word for line in lines if line.startswith("position") for word in line.split()[1:]]
    assert shown == [str(i) for i in range(100)], "every position once"


def test_scored_positions_are_coloured() -> None:
    task = build(cell_of(compose(["task=copy_memory", "seq_len=30"])), "task")
    out = io.StringIO()
    examples.print_examples("copy_memory", task, 1, 0, Console(file=out, force_terminal=True, width=200))
    assert out.getvalue().count("\x1b[1;32m") == 10, "bold green"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["mqr"], "task=mqr does not exist; choose from: "),
        (["mqar", "n=0"], "n=0 is not a number of examples; give 1 or more"),
        (["mqar", "n=99999999999"], "n=99999999999 is not a number of examples; give 1 or more, at most 100,000"),
        (["mqar", "3"], "3: a task comes first, then KEY=VALUE, as in: mqar n=3 seq_len=32"),
        (["task=mqar"], "task=mqar: a task comes first"),
        (["mqar", "task.n_pais=3"], "task.n_pais is not a key"),
        (["mqar", "seq_len=3"], "seq_len=3 is odd"),
        (["text", "task.path=/no/such/file"], "/no/such/file"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert complaint in error
    assert error.count("\n") == 1


def test_what_does_not_fit_into_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(examples, "print_examples", lambda *_: torch.empty(1 << 55))
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "mqar", "n=100000", "seq_len=16")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "arch-bench-task: n=100000, seq_len=16: does not fit into memory. Give less\n"


def test_an_output_that_is_not_utf8_has_question_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("naïve 世界\n" * 200, encoding="utf-8")
    where = [f"task.path={tmp_path / 'a.txt'}", f"task.cache_dir={tmp_path}", "task.tokenizer=characters"]
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    run(monkeypatch, "text", "n=1", "seq_len=16", *where)
    shown = written.getvalue().decode("ascii")
    assert "target" in shown
    assert "?" in shown


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(errno.EPIPE, 0, ""), (errno.ENOSPC, 1, "arch-bench-task: standard output: No space left on device\n")],
)
def test_an_output_that_takes_nothing_more_ends_it_quietly(
    error: int, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(sys, "stdout", Broken())
    try:
        run(monkeypatch, "mqar", "n=2", "seq_len=16")
        stopped = 0
    except SystemExit as end:
        stopped = end.code
    assert (stopped, capsys.readouterr().err) == (code, said)


def test_without_a_task_it_says_how(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch)
    assert "Tasks: " in capsys.readouterr().out


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "arch_bench.examples", "parity", "n=1", "seq_len=8"]
    assert "example 1" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
