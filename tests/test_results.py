"""Rows on disk: whole or not there, found again, and never confused with another measurement's."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from arch_bench import results
from arch_bench.config import cell_of, compose
from arch_bench.results import Row


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
    with pytest.raises(TypeError), results.whole(tmp_path / "a") as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_row(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "a.json"
    results.save(row(), path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        results.save(row(metrics={"bad": object()}), path)
    assert path.read_bytes() == before
    assert len(results.load([tmp_path])) == 1


@pytest.mark.parametrize("text", ['{"experiment": "adh', "{}", "[]", "null", '{"foreign": 1}', "\xff"])
def test_torn_and_foreign_files_are_named_and_skipped(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results.save(row(), tmp_path / "rows" / "good.json")
    bad = tmp_path / "rows" / "bad.json"
    bad.write_bytes(text.encode("latin-1"))
    assert len(results.load([tmp_path])) == 1
    assert str(bad) in capsys.readouterr().err


@pytest.mark.parametrize("length", [0, -64, None, "64"])
@pytest.mark.parametrize("which", ["seq_len", "train_seq_len"])
def test_a_file_with_a_length_that_is_none_is_named_and_skipped(
    tmp_path: Path, which: str, length: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows" / "bad.json"
    results.save(row(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {which: length}))
    assert not results.load([tmp_path])
    assert f"skipped {path}: not a row of arch-bench" in capsys.readouterr().err


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
