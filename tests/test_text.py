"""tasks/text.py, tasks/corpus.py and tasks/documents.py: what is read, how it is split, cached and refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
from omegaconf import OmegaConf

from tasks import cache, corpus, documents, packs, pages, source, windows
from tasks.base import Split, stream
from tasks.text import Text

CPU = torch.device("cpu")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def make_text(path: str | Path, **knobs: Any) -> Text:
        defaults = {"seq_len": 8, "glob": "*.txt", "config_name": None, "text_column": "text", "max_bytes": None}
        defaults |= {"tokenizer": "bytes", "bpe_vocab_size": 300}
        return Text(path=str(path), **{"cache_dir": str(tmp_path / "cache")} | defaults | knobs)

    return make_text


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def words(seed: int, n_bytes: int) -> bytes:
    return bytes(random.Random(seed).choices(b"abcdefgh \n", k=n_bytes))


def text_of(task: Text, split: Split) -> bytes:
    """All bytes of a split: its one window that has them all."""
    start, end = task.corpus.facts["ranges"][split]
    return task.corpus.windows(split, 1, end - start, stream(0, split, 0, CPU), CPU).numpy().tobytes()


def test_targets_are_the_inputs_one_byte_later(tmp_path: Path, make: Any) -> None:
    content = words(0, 2000)
    inputs, targets = make(write(tmp_path / "a.txt", content)).sample(50, stream(0, "train", 0, CPU), CPU)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert bytes([*row, target[-1]]) in content[:1800]


def test_every_offset_is_drawn_and_none_outside(tmp_path: Path, make: Any) -> None:
    task = make(write(tmp_path / "a.txt", bytes(range(200))))
    inputs, _ = task.for_split("test").sample(200, stream(0, "test", 0, CPU), CPU)
    assert set(inputs[:, 0].tolist()) == {190, 191}  # 10 bytes have two windows of 9
    assert inputs.max() == 198


def test_one_file_is_cut_by_position(tmp_path: Path, make: Any) -> None:
    content = b"\xff\x00" + words(0, 998)  # any bytes do: nothing is decoded
    task = make(write(tmp_path / "a.bin", content))
    assert [text_of(task, split) for split in SPLITS] == [content[:900], content[900:950], content[950:]]
    assert task.provenance() == {
        "corpus": str(tmp_path / "a.bin"),
        "n_documents": 1,
        "n_bytes": 1000,
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def test_files_go_to_splits_whole_and_copies_to_the_same(tmp_path: Path, make: Any) -> None:
    contents = [words(i, 400 + i) for i in range(100)]
    for i, content in enumerate(contents):
        write(tmp_path / "text" / f"part{i // 50}" / f"{i:03}.txt", content)
        write(tmp_path / "text" / f"copy{i:03}.txt", content)
    write(tmp_path / "text" / "empty.txt", b"")
    write(tmp_path / "text" / "other.md", b"not text by this glob")
    task = make(tmp_path / "text")
    split_of = [[split for split in SPLITS if content in text_of(task, split)] for content in contents]
    assert all(len(splits) == 1 for splits in split_of)
    in_test = [i for i in range(100) if split_of[i] == ["test"]]
    assert 3 <= len(in_test) <= 7
    assert in_test[-1] - in_test[0] > len(in_test)  # not the last by name
    assert task.provenance()["n_documents"] == 100
    assert "not text" not in text_of(task, "train").decode()


@pytest.mark.parametrize("sizes", [[500, 500, 500], [100_000, *[100] * 50]])
def test_files_that_cannot_fill_the_splits_are_cut_by_position(tmp_path: Path, make: Any, sizes: list[int]) -> None:
    contents = [words(i, size - 1) + b"\n" for i, size in enumerate(sizes)]
    for i, content in enumerate(contents):
        write(tmp_path / "text" / f"{i:02}.txt", content)
    task = make(tmp_path / "text")
    assert b"".join(text_of(task, split) for split in SPLITS) == b"".join(contents)
    assert len(text_of(task, "test")) == pytest.approx(sum(sizes) * 0.05, abs=1)


def test_copies_count_once_where_files_are_cut_by_position_too(tmp_path: Path, make: Any) -> None:
    book, notes = words(0, 2000), words(1, 100)
    for name, content in (("a book", book), ("a book (1)", book), ("notes", notes)):
        write(tmp_path / "text" / f"{name}.txt", content)
    task = make(tmp_path / "text")
    assert b"".join(text_of(task, split) for split in SPLITS) == book + b"\n" + notes
    assert task.provenance()["n_documents"] == 2


def test_a_name_may_be_long_or_in_any_encoding(tmp_path: Path, make: Any) -> None:
    (tmp_path / "text").mkdir()
    for name in (b"caf\xe9.txt", b"x" * 240 + b".txt"):
        Path(os.fsdecode(os.fsencode(tmp_path / "text") + b"/" + name)).write_bytes(words(len(name), 1000))
    assert make(tmp_path / "text").provenance()["n_documents"] == 2
    assert make(tmp_path / "text" / ("x" * 240 + ".txt")).provenance()["n_documents"] == 1


def test_documents_are_kept_apart_by_a_newline(tmp_path: Path, make: Any) -> None:
    for name, content in {"a": b"aaaaaaaaaa", "b": b"bbbbbbbbb\n", "c": b"cccccccccc"}.items():
        write(tmp_path / "text" / f"{name}.txt", content)
    task = make(tmp_path / "text")
    assert b"".join(text_of(task, split) for split in SPLITS) == b"aaaaaaaaaa\nbbbbbbbbb\ncccccccccc"


def test_baselines(tmp_path: Path, make: Any) -> None:
    task = make(write(tmp_path / "a.txt", b"ab" * 500))
    p = 451 / (900 + 256)  # 450 of 900, and one more of each of 256
    assert task.baselines()["uniform"] == 8.0
    assert task.baselines()["unigram"] == pytest.approx(-torch.tensor(p).log2().item())
    assert task.guess("unigram", torch.zeros(1, 8))[ord("a")] == pytest.approx(p)


def test_a_split_too_large_to_copy_is_read_from_the_map(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", 16)
    monkeypatch.setattr(pages, "CHUNK_BYTES", 64)
    task = make(write(tmp_path / "a.txt", words(0, 1000)), seq_len=100)  # windows longer than a chunk
    copied = task.sample(64, stream(0, "train", 0, CPU), CPU)
    monkeypatch.setattr(windows, "RESIDENT_MAX_BYTES", 100)
    mapped = task.sample(64, stream(0, "train", 0, CPU), CPU)
    assert torch.equal(copied.inputs, mapped.inputs)
    assert torch.equal(copied.targets, mapped.targets)


def test_construction_reads_nothing_and_the_second_start_reads_no_document(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "missing.txt")
    file = write(tmp_path / "a.txt", words(0, 1000))
    first = make(file).provenance()
    monkeypatch.setattr(documents.Files, "groups", lambda *_: pytest.fail("read again"))
    assert make(file).provenance() == first


def test_an_edit_is_noticed(tmp_path: Path, make: Any) -> None:
    file = write(tmp_path / "a.txt", words(0, 1000))
    before = make(file).provenance()["sha256"]
    write(file, words(1, 1000))
    os.utime(file, ns=(1, 1))  # whatever the clock's resolution
    assert make(file).provenance()["sha256"] == hashlib.sha256(words(1, 1000)).hexdigest() != before


def test_a_replacement_of_the_same_size_and_time_is_noticed(tmp_path: Path, make: Any) -> None:
    for name in ("a.txt", "text/a.txt"):
        file = write(tmp_path / name, words(0, 1000))
        path = file if name == "a.txt" else file.parent
        before, times = make(path).corpus.folder, file.stat()
        write(file, words(1, 1000))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert make(path).provenance()["sha256"] == hashlib.sha256(words(1, 1000)).hexdigest()
        write(file, words(0, 1000))
        assert make(path).corpus.folder == before, "known by its content, whenever it was written"


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.txt", words(0, 1000))
    read = documents.Files.groups
    monkeypatch.setattr(documents.Files, "groups", lambda *asked: write(file, words(1, 1000)) and read(*asked))
    with pytest.raises(ValueError, match=r"a\.txt was changed while it was read\. Start again"):
        make(file).provenance()
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("name", ["bytes.arrow", "facts.json", "checksums.json", "characters-2/tokens.bin"])
def test_a_flipped_bit_of_a_cache_is_named_and_mended(
    name: str, tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "a.txt", words(0, 1000))

    def use() -> tuple[Any, ...]:
        task = make(file, tokenizer="characters")
        batches = [task.for_split(split).sample(8, stream(0, split, 0, CPU), CPU) for split in SPLITS]
        return task.provenance(), [batch.inputs.tolist() for batch in batches]

    first = use()
    damaged = make(file).corpus.folder / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert use() == first
    assert str(damaged) in caplog.text


def test_a_cache_within_the_corpus_is_no_part_of_it(tmp_path: Path, make: Any) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.txt", words(i, 1000))
    for cache_dir in (tmp_path / "cache", tmp_path):
        knobs = {"glob": "*", "cache_dir": str(cache_dir), "tokenizer": "bpe", "bpe_vocab_size": 256}
        first, again = make(tmp_path, **knobs), make(tmp_path, **knobs)
        assert first.provenance() == again.provenance()
        assert first.provenance()["n_documents"] == 3
        assert again.corpus.folder == first.corpus.folder


def test_files_of_all_kinds_are_one_corpus(tmp_path: Path, make: Any) -> None:
    rows = [f"row {i} of a table" for i in range(50)]
    write(tmp_path / "text" / "a.txt", b"plain text\n" * 20)
    write(tmp_path / "text" / "b.txt.gz", gzip.compress(b"packed text"))
    write(tmp_path / "text" / "d.jsonl", "".join(json.dumps({"body": row}) + "\n" for row in rows).encode())
    datasets.Dataset.from_dict({"body": rows}).to_parquet(tmp_path / "text" / "c.parquet")
    task = make(tmp_path / "text", glob="*", text_column="body")
    expected = [*["plain text"] * 20, "packed text", *rows, *rows]
    assert b"".join(text_of(task, split) for split in SPLITS).decode().split("\n") == expected
    assert task.provenance()["n_documents"] == 102
    with pytest.raises(ValueError, match=r"task\.text_column=text is no text column of task\.path=.*: c\.par") as error:
        make(tmp_path / "text", glob="*").provenance()
    assert one_line(error)


@pytest.mark.parametrize("form", ["{}.jsonl", "{}/0.jsonl", "data/{}-00000-of-00001.jsonl"])
def test_tables_have_the_splits_that_their_names_say(form: str, tmp_path: Path, make: Any) -> None:
    folder, words_of = tmp_path / "text", {"train": "train", "validation": "dev", "test": "test"}
    for word in words_of.values():
        write(folder / form.format(word), json.dumps({"text": word * 20}).encode())
    task = make(folder, glob="*.jsonl")
    assert {split: text_of(task, split) for split in SPLITS} == {s: word.encode() * 20 for s, word in words_of.items()}
    write(folder / "a.jsonl", json.dumps({"text": "more"}).encode())
    assert text_of(make(folder, glob="*.jsonl"), "train").startswith(b"more\ndev"), "it says none: all are cut"


def test_packed_files_are_dealt_as_the_text_in_them(tmp_path: Path, make: Any) -> None:
    for i in range(60):
        write(tmp_path / "plain" / f"{i:02}.txt", words(i, 400 + i))
        write(tmp_path / "packed" / f"{i:02}.txt.gz", gzip.compress(words(i, 400 + i)))
    plain, packed = make(tmp_path / "plain"), make(tmp_path / "packed", glob="*.gz")
    assert [text_of(packed, split) for split in SPLITS] == [text_of(plain, split) for split in SPLITS]


def test_copies_share_what_was_read(tmp_path: Path, make: Any) -> None:
    task = make(write(tmp_path / "a.txt", words(0, 1000)))
    assert task.with_length(16).for_split("test").corpus is task.corpus
    assert (task.split, task.for_split("test").split) == ("train", "test")


def test_two_processes_that_build_at_once_get_one_whole_corpus(tmp_path: Path) -> None:
    class Slow(source.Source):
        """While it is being read, another process builds the same corpus from start to end."""

        def __init__(self, rivals: int) -> None:
            self.rivals = rivals

        def fingerprint(self) -> str:
            return ""

        def groups(self, workplace: Path) -> list[Iterator[packs.Document]]:
            if self.rivals:
                keep(self.rivals - 1)
            return [iter([(words(0, 100),)])]

    def keep(rivals: int) -> None:
        cache.kept(tmp_path / "cache" / "slow", lambda built: corpus._build(Slow(rivals), built, "slow"))

    keep(2)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["slow"]
    names = sorted(path.name for path in (tmp_path / "cache" / "slow").iterdir())
    assert names == ["bytes.arrow", cache.CHECKSUMS, "facts.json"]


def test_the_cache_is_the_users(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.txt", words(0, 1000))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert make(file, cache_dir=None).corpus.folder.parent == tmp_path / "xdg" / "arch_bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert make(file, cache_dir=None).corpus.folder.parent == tmp_path / "home" / ".cache" / "arch_bench"


def test_the_standard_library_is_its_source_without_tests(make: Any) -> None:
    source = documents.standard_library()
    names = [file.relative_to(source.folder) for file in source.files]
    assert len(names) > 300
    assert Path("json/decoder.py") in names
    assert not {part for name in names for part in name.parts} & documents.NOT_LIBRARY
    assert isinstance(documents.find("stdlib", "*.txt", None, "text", None), documents.Files)


def one_line(error: pytest.ExceptionInfo[ValueError]) -> bool:
    return "\n" not in str(error.value)


def test_bad_paths_are_refused_in_one_line(tmp_path: Path, make: Any) -> None:
    (tmp_path / "bare").mkdir()
    refusals = {
        make(tmp_path / "missing.txt"): "no such file or folder",
        make(tmp_path / "bare"): r"matches task\.glob=\*\.txt",
        make(tmp_path / "bare", glob="/tmp/*.txt"): r"task\.glob=/tmp/\*\.txt: ",
        make(""): r"task\.path= is empty: needs stdlib, ",
        make("~nobody-of-this-name/a.txt"): "home directory",
        make(write(tmp_path / "empty.txt", b"")): r"empty\.txt: no text for the train split \(0 bytes in all\)",
        make(write(tmp_path / "tiny.txt", b"abc")): r"tiny\.txt: no text for the",
        make(write(tmp_path / "a.txt", words(0, 99)), cache_dir=str(tmp_path / "empty.txt")): r"task\.cache_dir=",
        make(tmp_path / "a.txt", cache_dir=""): r"task\.cache_dir= is empty",
    }
    for task, message in refusals.items():
        for use in (task.provenance, task.baselines, lambda task=task: task.sample(1, stream(0, "train", 0, CPU), CPU)):
            with pytest.raises(ValueError, match=message) as error:
                use()
            assert one_line(error)
            assert str(error.value).startswith("task.")


def test_a_split_shorter_than_a_window_is_refused(tmp_path: Path, make: Any) -> None:
    task = make(write(tmp_path / "a.txt", words(0, 1000)), seq_len=50)
    task.sample(1, stream(0, "train", 0, CPU), CPU)
    with pytest.raises(ValueError, match=r"seq_len=50 is too long for the test split .* seq_len \+ 1 = 51 <= 50 bytes"):
        task.for_split("test").sample(1, stream(0, "test", 0, CPU), CPU)
    task.with_length(49).for_split("test").sample(1, stream(0, "test", 0, CPU), CPU)


def test_the_hub_offline_is_refused_in_one_line(make: Any) -> None:
    with pytest.raises(ValueError, match=r"task\.path=wikitext is no file .* give a local path") as error:
        make("wikitext", config_name="wikitext-2-raw-v1").provenance()
    assert one_line(error)


def test_without_a_network_the_hub_is_asked_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("would retry for 23 s"))
    with pytest.raises(ValueError, match=r"OSError: Name or service not known.* HF_HUB_OFFLINE=1") as error:
        make("owner/name").provenance()
    assert one_line(error)


def test_the_commit_of_a_data_set_is_asked_for_and_recorded(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {None: "a" * 40, "v1": "b" * 40}
    asked: list[str] = []

    def load(name: str, config_name: str | None, revision: str) -> datasets.DatasetDict:
        asked.append(revision)
        return datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a" * 100 + revision]}))

    def told(_: Any, name: str, revision: str | None, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(sha=commits[revision])

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", told)
    monkeypatch.setattr(datasets, "load_dataset", load)
    for revision, commit in commits.items():
        task = make("owner/name", revision=revision)
        assert task.provenance()["revision"] == commit
        assert commit.encode() in b"".join(text_of(task, split) for split in SPLITS)
    assert asked == [*commits.values()]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("again"))
    assert make("owner/name", revision="v1").provenance()["revision"] == commits["v1"], "known without the hub"


def test_the_commit_of_a_data_set_that_was_downloaded_before_is_known(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = datasets.Dataset.from_dict({"text": ["some text"] * 30})
    rows.info.download_checksums = {f"hf://datasets/owner/name@{'c' * 40}/train.parquet": {"num_bytes": 9}}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, revision: datasets.DatasetDict(train=rows))
    assert make("owner/name").provenance()["revision"] == "c" * 40
    hub(monkeypatch, {"train": ["a" * 100]})
    assert "revision" not in make("another/name").provenance()


def hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[str | None]]) -> None:
    loaded = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": rows}) for name, rows in splits.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config_name, revision: loaded)


def test_a_hub_data_set_keeps_its_own_splits(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"test": ["three"], "train": ["öne\n", None, "two"], "validation": ["four", "five"]})
    task = make("owner/name")
    assert [text_of(task, split).decode() for split in SPLITS] == ["öne\ntwo", "four\nfive", "three"]
    assert task.provenance()["n_documents"] == 5


def test_a_hub_data_set_without_three_splits_is_cut_by_position(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"train": ["a" * 80, "", "b" * 17 + "\n"]})
    task = make("name")
    assert [text_of(task, split) for split in SPLITS] == [b"a" * 80 + b"\n\n" + b"b" * 8, b"b" * 5, b"b" * 4 + b"\n"]


@pytest.fixture
def streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[str]]], None]:
    """Makes `load_dataset` read Parquet files of the splits given, by its own code, however it is asked."""
    load = datasets.load_dataset

    def serve(splits: dict[str, list[str]]) -> None:
        files = {name: str(tmp_path / f"{name}.parquet") for name in splits}
        for name, rows in splits.items():
            datasets.Dataset.from_dict({"text": rows, "n": [*range(len(rows))]}).to_parquet(files[name])
        cache = str(tmp_path / "datasets")
        monkeypatch.setattr(
            datasets,
            "load_dataset",
            lambda name, config_name, revision, **how: load("parquet", data_files=files, cache_dir=cache, **how),
        )

    return serve


def test_a_stream_ends_after_its_first_bytes(make: Any, streamed: Any) -> None:
    streamed({"train": [f"{i:09}" for i in range(5000)]})
    whole = make("owner/name")
    assert whole.provenance()["n_documents"] == 5000
    first = make("owner/name", max_bytes=1000)
    assert first.provenance()["n_documents"] == 112, "9 bytes each, whole"
    expected = "\n".join(f"{i:09}" for i in range(112))
    assert b"".join(text_of(first, split) for split in SPLITS).decode() == expected
    assert first.corpus.folder != whole.corpus.folder


def test_a_stream_keeps_its_own_splits(make: Any, streamed: Any) -> None:
    streamed({"test": ["t" * 9] * 50, "train": ["r" * 9] * 5000, "validation": ["v" * 9] * 3})
    task = make("owner/name", max_bytes=1000)
    counts = {split: text_of(task, split).decode().split("\n") for split in SPLITS}
    assert counts == {"train": ["r" * 9] * 100, "validation": ["v" * 9] * 3, "test": ["t" * 9] * 6}


def test_a_stream_is_not_read_to_its_end(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def rows() -> Iterator[dict[str, str]]:
        for i in range(100_000):
            drawn.append(i)
            yield {"text": "word " * 100}

    stream_of = datasets.IterableDatasetDict({"train": datasets.IterableDataset.from_generator(rows)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, revision, streaming: stream_of)
    assert make("owner/name", max_bytes=10_000).provenance()["n_documents"] == 20
    assert len(drawn) <= 2 * packs.ROWS_AT_ONCE, "columns are looked at once, and a batch is drawn"
    with pytest.raises(ValueError, match=r"task\.text_column=body is no text column .* choose from: text"):
        make("owner/name", max_bytes=10_000, text_column="body").provenance()


def test_a_setting_without_an_effect_is_refused(tmp_path: Path, make: Any) -> None:
    file = write(tmp_path / "text" / "a.txt", words(0, 1000))
    refusals = {
        r"task\.config_name=raw is for data sets of the hub, and task\.path=.* is none": {"config_name": "raw"},
        r"task\.revision=main is for data sets of the hub, and": {"revision": "main"},
        r"config_name=raw, task\.max_bytes=9 are for data sets of the hub": {"config_name": "raw", "max_bytes": 9},
        r"task\.text_column=body is for tables and data sets of the hub, and": {"text_column": "body"},
    }
    for path in (file, file.parent, "stdlib"):
        for message, knobs in refusals.items():
            with pytest.raises(ValueError, match=message) as error:
                make(path, **knobs).provenance()
            assert one_line(error)
    for path in (file, "stdlib", "owner/name", "https://example.org/a.zip"):
        with pytest.raises(ValueError, match=r"task\.glob=\*\.md is for folders, and task\.path=.* is none"):
            make(path, glob="*.md").provenance()


def test_what_can_be_read_once_only_is_refused(tmp_path: Path, make: Any) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    reader, writer = os.pipe()
    for path in (
        tmp_path / "pipe.txt",
        f"/dev/fd/{reader}",
        "/dev/fd/63",
        "/proc/self/fd/0",
        "/dev/stdin",
        "/dev/zero",
    ):
        with pytest.raises(ValueError, match=r"task\.path=/.* is a pipe or a device, .* Write it to a file") as error:
            make(path).provenance()
        assert one_line(error)
    os.close(reader)
    os.close(writer)


def test_the_text_must_have_the_hash_that_is_asked_for(tmp_path: Path, make: Any) -> None:
    file = write(tmp_path / "a.txt", words(0, 1000))
    right = hashlib.sha256(words(0, 1000)).hexdigest()
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"its text has SHA-256 {right}, not task\.sha256=0+\. Get") as error:
            make(file, sha256="0" * 64).provenance()
        assert one_line(error)
        make(file).provenance()  # the second time of what is there already
    assert make(file, sha256=right.upper()).corpus.folder == make(file).corpus.folder
    with pytest.raises(ValueError, match=r"task\.sha256=abc is no SHA-256: needs 64 hexadecimal digits"):
        make(file, sha256="abc").provenance()


def test_plain_http_needs_a_hash(make: Any) -> None:
    with pytest.raises(ValueError, match=r"by plain http may be changed on its way\. Give .* task\.sha256") as error:
        make("http://example.org/a.txt").provenance()
    assert one_line(error)
    with pytest.raises(ValueError, match=r"cannot be downloaded \(OfflineModeIsEnabled"):
        make("http://example.org/a.txt", sha256="0" * 64).provenance()


def test_every_download_of_the_suite_is_pinned() -> None:
    folder = Path(__file__).parent.parent / "conf" / "task"
    addresses = [OmegaConf.load(file) for file in folder.glob("*.yaml")]
    pinned = [config.sha256 for config in addresses if str(config.get("path")).startswith("http")]
    assert len(pinned) >= 3
    assert all(len(each) == 64 for each in pinned)


def test_without_a_home_the_cache_must_be_named(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987_654)  # of no user of this machine
    file = write(tmp_path / "a.txt", words(0, 1000))
    for cache_dir in (None, "~/cache", "~nobody-of-this-name/cache"):
        with pytest.raises(ValueError, match=r"task\.cache_dir=.*home directory.*Give task\.cache_dir=FOL") as error:
            make(file, cache_dir=cache_dir).provenance()
        assert one_line(error)
    make(file).provenance()


def test_only_a_data_set_of_the_hub_is_streamed(tmp_path: Path, make: Any) -> None:
    for path in (write(tmp_path / "a.txt", words(0, 1000)), "stdlib", "https://example.org/a.txt"):
        with pytest.raises(
            ValueError, match=r"task\.max_bytes=10 is for data sets of the hub, and task\.path=.* is none"
        ):
            make(path, max_bytes=10).provenance()
    with pytest.raises(ValueError, match=r"task\.max_bytes=0 is too small: needs max_bytes >= 1"):
        make("owner/name", max_bytes=0).provenance()


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this machine, of what is in tmp_path / "served"."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "downloads"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["a.txt", "a.zip", "a.txt.gz", "a.jsonl"])
def test_a_file_at_an_address_is_cut_by_position(
    name: str, tmp_path: Path, make: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = words(0, 1000)
    write(tmp_path / "served" / "a.txt", content)
    with zipfile.ZipFile(tmp_path / "served" / "a.zip", "w") as archive:
        archive.writestr("a", content)
    write(tmp_path / "served" / "a.txt.gz", gzip.compress(content))
    write(tmp_path / "served" / "a.jsonl", json.dumps({"text": content.decode()}).encode())
    task = make(f"{address}/{name}")
    assert [text_of(task, split) for split in SPLITS] == [content[:900], content[900:950], content[950:]]
    assert task.provenance()["corpus"] == f"{address}/{name}"
    monkeypatch.setattr(datasets, "DownloadManager", lambda: pytest.fail("asked again"))
    assert make(f"{address}/{name}").provenance() == task.provenance()


def test_a_download_that_has_not_its_hash_is_forgotten(tmp_path: Path, make: Any, address: str) -> None:
    file = write(tmp_path / "served" / "a.txt", words(0, 1000))
    right = hashlib.sha256(words(1, 1000)).hexdigest()
    with pytest.raises(ValueError, match=rf"not task\.sha256={right}"):
        make(f"{address}/a.txt", sha256=right).provenance()
    assert not [each for each in (tmp_path / "downloads").rglob("*") if each.is_file() and each.stat().st_size == 1000]
    write(file, words(1, 1000))
    assert make(f"{address}/a.txt", sha256=right).provenance()["sha256"] == right


def test_an_address_that_has_nothing_is_refused_in_one_line(make: Any, address: str) -> None:
    with pytest.raises(
        ValueError, match=r"/missing\.txt cannot be downloaded \(FileNotFoundError: .*local path"
    ) as error:
        make(f"{address}/missing.txt").provenance()
    assert one_line(error)


def test_an_address_offline_is_refused_in_one_line(make: Any) -> None:
    with pytest.raises(ValueError, match=r"cannot be downloaded \(OfflineModeIsEnabled: .*task\.path=stdlib") as error:
        make("https://example.org/a.txt").provenance()
    assert one_line(error)


def test_a_missing_text_column_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"train": ["some text"]})
    with pytest.raises(ValueError, match=r"task\.text_column=body is no text column .* choose from: text"):
        make("name", text_column="body").provenance()


def test_a_byte_is_recalled_if_its_pair_was_seen(tmp_path: Path, make: Any) -> None:
    task = make(tmp_path / "a.txt")
    inputs = torch.tensor([[ord(c) for c in "abcabxab"]])
    found = task.slices(inputs)
    assert found["recall"].tolist() == [[False, False, False, True, False, False, True, False]], "ab, twice"
    assert found["other"].tolist() == [[True, True, True, False, True, True, False, False]], "the last is unknown"


def test_positions_fall_into_octaves(tmp_path: Path, make: Any) -> None:
    found = make(tmp_path / "a.txt").slices(torch.zeros(1, 10, dtype=torch.long))
    octaves = {name: mask[0].nonzero().flatten().tolist() for name, mask in found.items() if "position" in name}
    assert octaves == {
        "position_0": [0],
        "position_1": [1],
        "position_2": [2, 3],
        "position_4": [4, 5, 6, 7],
        "position_8": [8, 9],
    }
