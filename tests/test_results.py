"""Rows on disk: whole or not there, found again, and never confused with another measurement's."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from arch_bench import results
from arch_bench.config.schema import cell_of, compose
from arch_bench.results import Row, files


def row(**changes: Any) -> Row:
    fields: dict[str, Any] = {
        "experiment": "adhoc",
        "backbone": "lstm",
        "task": "mqar",
        "seq_len": 64,
        "train_seq_len": 64,
        "seed": 0,
        "kernel": "aten",
        "precision": "fp32",
        "key": "k",
        "kind": "quality",
        "status": "ok",
        "metrics": {"token_accuracy": 0.5},
    }
    return Row(**fields | changes)


def config(*overrides: str) -> dict[str, Any]:
    return cell_of(compose(list(overrides))).model_dump()


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "a.json"
    results.save(row(), path)
    assert results.read(path) == results.load([tmp_path])[0] == row(created_at=results.read(path).created_at)
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError), files.whole(tmp_path / "a") as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows" / "a.json"
    results.save(row(), path)
    before = path.read_bytes()

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        results.save(row(seed=1), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


class Scalar:
    def item(self) -> float:
        return 2.5


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("metric", "kept", "why"),
    [
        (math.nan, None, "nan"),
        (-math.inf, None, "-inf"),
        (10**30, None, "1000000000000000000000000000000"),
        (Odd(), None, "(a Odd)"),
        (b"x", None, "b'x'"),
        (Scalar(), 2.5, ""),
        ("\udc80", "\\udc80", ""),
        (None, None, ""),
        (True, True, ""),
    ],
)
def test_a_row_is_saved_whatever_is_in_it(tmp_path: Path, metric: Any, kept: object, why: str) -> None:
    odd = row(
        metrics={"a": metric, "b": 1},
        config={"time_limit_s": math.inf, "task": {"path": "\udc80", "odd": [Odd(), {1}], "deep": deep(100)}},
        curve={"step": [1], "val_mse": [metric if isinstance(metric, float) else 0.5]},
        reason="\udc80",
    )
    results.save(odd, tmp_path / "rows" / "a.json")
    found = results.read(tmp_path / "rows" / "a.json")
    assert found.metrics["a"] == kept
    assert found.metrics["b"] == 1
    assert found.metrics.get("a_why", "") == (why and f"not a finite number: {why}")
    assert found.config["time_limit_s"] == "inf"
    assert found.config["task"]["odd"] == ["(a Odd)", [1]]
    assert found.curve["val_mse"] == [None if isinstance(metric, float) else 0.5]


def deep(n: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(n):
        found = {"a": found}
    return found


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ("ok", "timeout", "ok"),
        ("ok", "diverged", "ok"),
        ("ok", "ok", "ok"),
        ("oom", "crashed", "oom"),
        ("oom", "diverged", "diverged"),
        ("timeout", "crashed", "crashed"),
        ("timeout", "ok", "ok"),
    ],
)
def test_a_row_gives_way_to_no_worse_one(tmp_path: Path, before: Any, after: Any, kept: str) -> None:
    path = tmp_path / "rows" / "a.json"
    results.save(row(status=before, seed=1), path)
    better = results.save(row(status=after, seed=2), path)
    found = results.read(path)
    assert (found.status, found.seed) == (kept, 1 if better else 2)
    assert (better is not None) == (kept != after)


def test_a_torn_row_gives_way_to_any(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "a.json"
    path.parent.mkdir()
    path.write_text('{"status": "ok"')
    assert results.save(row(status="crashed"), path) is None
    assert results.read(path).status == "crashed"


@pytest.mark.parametrize("text", ['{"experiment": "adh', "{}", "[]", "null", '{"foreign": 1}', "\xff"])
def test_torn_and_foreign_files_are_named_and_skipped(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results.save(row(), tmp_path / "rows" / "good.json")
    bad = tmp_path / "rows" / "bad.json"
    bad.write_bytes(text.encode("latin-1"))
    assert len(results.load([tmp_path])) == 1
    assert str(bad) in capsys.readouterr().err


ODD = {
    "seq_len": ["0", "-64", "null", '"64"', "64.5", "NaN", "Infinity", "1" + 30 * "0", "true", "[64]"],
    "train_seq_len": ["0", "null", "1" + 30 * "0"],
    "created_at": ["null", "5", '"yesterday"', '""'],
    "config": [
        "null",
        "[]",
        '"x"',
        '{"optim": null}',
        '{"trainer": 3}',
        *('{"a":' * n + "1" + "}" * n for n in (50, 9999)),
    ],
    "metrics": ["null", "[]", '{"a": NaN}', '{"a": []}', '{"a": {}}'],
    "experiment": ['"../../x"', '"a/b"', '""', '"."', '".."', '"a\\nb"', '"a\\u0000"', "5", "null"],
    "seed": ["null", '"0"', "1" + 30 * "0", "0.5"],
    "status": ['"fine"', "null"],
    "kind": ['"other"'],
    "versions": ["null", '{"a": 1}'],
    "wall_s": ['"x"', "NaN"],
    "curve": ["null", '{"step": 5}', '{"step": ["x"]}'],
    **{name: ["null"] for name in ("device", "data", "reason", "backbone")},
    "process_bytes": ["1.5"],
    "foreign": ["1"],
}


@pytest.mark.parametrize("name", ODD)
def test_a_row_with_something_odd_is_named_and_skipped(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results.save(row(), tmp_path / "rows" / "good.json")
    fields = json.loads((tmp_path / "rows" / "good.json").read_text())
    for number, odd in enumerate(ODD[name]):
        path = tmp_path / "rows" / f"bad{number}.json"
        texts = {key: json.dumps(value) for key, value in fields.items()} | {name: odd}
        path.write_text("{" + ",".join(f'"{key}":{text}' for key, text in texts.items()) + "}")
        assert len(results.load([tmp_path])) == 1, odd
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"skipped {path}: not a row of arch-bench ("), odd
        path.unlink()


def test_what_is_no_file_does_not_hang(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows"
    results.save(row(), rows / "good.json")
    os.mkfifo(rows / "pipe.json")
    (rows / "folder.json").mkdir()
    (rows / "dangling.json").symlink_to(rows / "none")
    (rows / "loop.json").symlink_to(rows / "loop.json")
    (rows / "endless.json").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener, (rows / "huge.json").open("wb") as huge:
        listener.bind(os.path.relpath(rows / "socket.json"))
        huge.truncate(2**40)
        assert len(results.load([tmp_path])) == 1
    told = capsys.readouterr().err
    assert all(f"{name}.json" in told for name in ("pipe", "folder", "loop", "endless", "socket", "huge"))


def test_a_row_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "a.json"
    results.save(row(seed=1), path)
    assert results.load([tmp_path])[0] is results.load([tmp_path])[0]
    results.save(row(seed=2), path)
    assert results.load([tmp_path])[0].seed == 2


def test_rows_share_what_they_have_in_common(tmp_path: Path) -> None:
    for i in range(2):
        results.save(row(config={"task": {"a": [1]}, "seed": i}, versions={"torch": "2"}), tmp_path / f"rows/{i}.json")
    one, other = results.load([tmp_path])
    assert one.config["task"] is other.config["task"]
    assert one.versions is other.versions
    assert {one.config["seed"], other.config["seed"]} == {0, 1}


def test_a_folder_gives_its_own_rows_once(tmp_path: Path) -> None:
    published = tmp_path / "published" / "h200"
    results.save(row(), published / "rows" / "a.json")
    results.save(row(), tmp_path / "rows" / "b.json")
    (tmp_path / "notes.json").write_text("{}")
    assert len(results.load([tmp_path, tmp_path / "rows" / "..", tmp_path / "rows"])) == 1
    assert len(results.load([tmp_path, published])) == 2


@pytest.mark.parametrize(
    "overrides",
    [["seed=1"], ["d_model=32"], ["task.n_pairs=2"], ["optim.lr=0.5"], ["trainer.max_steps=3"], ["name=other"]],
)
def test_the_key_follows_what_defines_a_cell(overrides: list[str]) -> None:
    assert results.cell_key(config()) != results.cell_key(config(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        *(["results_dir=x"], ["logger=none"], ["phases=[speed]"], ["eval_scales=[1]"], ["speed.n_steps=5"]),
        ["checkpoint_every_s=null"],
    ],
)
def test_the_key_ignores_bookkeeping(overrides: list[str]) -> None:
    assert results.cell_key(config()) == results.cell_key(config(*overrides))


def test_the_key_ignores_where_a_corpus_is_kept() -> None:
    here, elsewhere = (config("task=text", "task.path=a.txt", f"task.cache_dir={folder}") for folder in ("null", "b"))
    assert results.cell_key(here) == results.cell_key(elsewhere)
    assert elsewhere["task"]["cache_dir"] == "b", "what is hashed is not changed"
    assert results.cell_key(here) != results.cell_key(here | {"task": here["task"] | {"path": "b.txt"}})
    without = {name: value for name, value in here["task"].items() if name != "cache_dir"}
    assert results.cell_key(here) != results.cell_key(here | {"task": without}), "rows with null keep their keys"


def test_the_key_sees_which_data_set_is_read_and_not_that_it_is_checked() -> None:
    here = config("task=text", "task.path=owner/name")
    assert results.cell_key(here) == results.cell_key(here | {"task": here["task"] | {"sha256": "0" * 64}})
    assert results.cell_key(here) != results.cell_key(here | {"task": here["task"] | {"revision": "v1"}})
    before = {name: value for name, value in here["task"].items() if name not in {"revision", "sha256"}}
    assert results.cell_key(here) == results.cell_key(here | {"task": before}), "rows of before keep their keys"


def test_published_rows_are_where_the_keys_of_their_configurations_say() -> None:
    paths = sorted((Path(__file__).parents[1] / "results" / "published").glob("*/rows/*.json"))
    assert paths
    for path in paths:
        found = results.read(path)
        contender = found.kernel if found.kind == "kernels" else ""
        assert found.key == results.cell_key(found.config), path
        assert path.name == results.file_name(found.config, found.kind, found.seq_len, contender)


def test_other_settings_of_a_phase_are_another_file() -> None:
    names = {results.file_name(config(f"speed.n_steps={n}"), "speed", 64) for n in (5, 6)}
    assert len(names) == 2
    assert len({results.file_name(config(f"speed.lengths=[{n}]"), "speed", 64) for n in (5, 6)}) == 1
    assert len({results.file_name(config(f"speed.n_steps={n}"), "quality", 64) for n in (5, 6)}) == 1


def _write(folder: Path, writer: int) -> None:
    for i in range(20):
        results.save(row(seed=writer), folder / "rows" / f"{writer}-{i}.json")
        results.save(row(seed=writer), folder / "rows" / "shared.json")


def test_eight_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(tmp_path, n)) for n in range(8)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [p.exitcode for p in writers] == [0] * 8
    assert len(results.load([tmp_path])) == 8 * 20 + 1
    assert all(json.loads(p.read_text()) for p in (tmp_path / "rows").glob("*.json"))


def test_the_key_of_a_run_on_one_device_is_that_of_before_there_were_others() -> None:
    old = config()
    assert (old["trainer"].pop("strategy"), old["trainer"].pop("devices")) == ("single", 1)
    assert results.cell_key(old) == results.cell_key(config())
    several = config("trainer.strategy=ddp", "trainer.devices=2")
    assert results.cell_key(several) != results.cell_key(config())
    assert several["trainer"]["devices"] == 2, "what is hashed is not changed"
