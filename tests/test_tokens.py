"""tasks/tokens.py and tasks/vocabulary.py: characters and byte pairs of a text, learned from its train split."""

from __future__ import annotations

import hashlib
import pickle
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks import packs, pages, tokens, vocabulary, windows
from tasks.base import Split, stream
from tasks.text import Text
from tasks.tokens import Tokenizer
from tasks.vocabulary import BytePairs, Characters, between_words

CPU = torch.device("cpu")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LEARNED: tuple[Tokenizer, ...] = ("characters", "bpe")
TRICKY = "\t\r\n\n  a\\n b…␣ ↵ 世界 naïve \u00a0\u200b 🙂e\u0301 \ufffd [mask] …mask\n"

Make = Callable[..., Text]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make_text(path: Path, **knobs: Any) -> Text:
        defaults = {"seq_len": 8, "glob": "*.txt", "config_name": None, "text_column": "text", "max_bytes": None}
        defaults |= {"cache_dir": str(tmp_path / "cache"), "tokenizer": "bpe", "bpe_vocab_size": 300}
        return Text(path=str(path), **defaults | knobs)

    return make_text


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    return written(tmp_path / "prose.txt", said(0, 4000))


def said(seed: int, n_words: int) -> str:
    """Words of a small language, with what is awkward in between."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 6))) for _ in range(200)]
    return "".join(
        rng.choice(words) + rng.choice([" ", " ", " ", "  ", ", ", "\n", "\n\n", "'s ", TRICKY]) for _ in range(n_words)
    )


def written(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, newline="", encoding="utf-8")
    return file


def bytes_of(task: Text, split: Split) -> bytes:
    start, end = task.corpus.facts["ranges"][split]
    return task.corpus.windows(split, 1, end - start, stream(0, split, 0, CPU), CPU).numpy().tobytes()


def tokens_of(task: Text, split: Split) -> list[int]:
    """All tokens of a split: its one window that has them all."""
    start, end = task.tokens.ranges[split]
    return task.tokens.windows(split, 1, end - start, stream(0, split, 0, CPU), CPU)[0].tolist()


def learned(task: Text) -> Any:
    assert isinstance(task.tokens, tokens.Tokens)
    return task.tokens.vocabulary


def test_characters_are_the_code_points_of_the_train_split_in_order(prose: Path, make: Make) -> None:
    task = make(prose, tokenizer="characters")
    letters = sorted(set(bytes_of(task, "train").decode(errors="ignore")))
    assert learned(task).points == [ord(letter) for letter in letters]
    assert task.vocab_size == len(letters) + 1


def test_a_character_that_training_never_saw_is_the_last_token(tmp_path: Path, make: Make) -> None:
    file = written(tmp_path / "a.txt", "ab " * 300 + "axb xb" * 15)
    task = make(file, tokenizer="characters")
    assert learned(task).points == [ord(letter) for letter in " ab"]
    assert [task.word(token) for token in range(task.vocab_size)] == ["␣", "a", "b", "other"]
    assert tokens_of(task, "train")[:4] == [1, 2, 0, 1]
    assert set(tokens_of(task, "test")) == {0, 1, 2, 3}
    assert task.tokens.counts["train"][3] == 0
    assert task.baselines()["unigram"] < 20, "not infinitely many bits"


@pytest.mark.parametrize("tokenizer", LEARNED)
def test_the_tokens_are_the_text(tokenizer: Tokenizer, prose: Path, make: Make) -> None:
    task = make(prose, tokenizer=tokenizer)
    for split in SPLITS:
        found, text = tokens_of(task, split), bytes_of(task, split).decode(errors="ignore")
        if tokenizer == "bpe":
            assert b"".join(learned(task).tokens[token] for token in found).decode() == text
        else:
            points = [*learned(task).points, None]
            assert [points[token] for token in found] == [ord(c) if ord(c) in points else None for c in text]
        assert np.bincount(found, minlength=task.vocab_size).tolist() == task.tokens.counts[split]


def test_byte_pairs_are_learned_from_the_train_split_only(tmp_path: Path, make: Make) -> None:
    common, rare = "the cat sat on the mat. " * 400, "zyxwvu " * 70
    one = make(written(tmp_path / "one.txt", common + rare), bpe_vocab_size=265)
    other = make(written(tmp_path / "other.txt", common + "THE DOG " * 61 + "!!"), bpe_vocab_size=265)
    assert bytes_of(one, "train") == bytes_of(other, "train")
    assert one.provenance()["vocabulary_sha256"] == other.provenance()["vocabulary_sha256"]
    assert b" the" in learned(one).tokens
    assert len(learned(one).tokens) == one.vocab_size == 265
    assert sorted(learned(one).tokens[:256]) == [bytes([byte]) for byte in range(256)]
    assert not any(b"zy" in token for token in learned(one).tokens)


def test_splits_share_no_document_when_files_are_many(tmp_path: Path, make: Make) -> None:
    for i in range(100):
        written(tmp_path / "text" / f"{i:03}.txt", said(i, 60) + f"\n#{i:03}#")
    task = make(tmp_path / "text")
    texts = {s: b"".join(learned(task).tokens[token] for token in tokens_of(task, s)).decode() for s in SPLITS}
    marks = [{i for i in range(100) if f"#{i:03}#" in text} for text in texts.values()]
    assert set.union(*marks) == set(range(100))
    assert sum(map(len, marks)) == 100


@pytest.mark.parametrize("tokenizer", LEARNED)
def test_bits_per_byte_compare_between_tokenizers(tokenizer: Tokenizer, prose: Path, make: Make) -> None:
    task = make(prose, tokenizer=tokenizer)
    found, n_bytes = tokens_of(task, "test"), len(bytes_of(task, "test"))
    assert task.bytes_per_token == pytest.approx(n_bytes / len(found))
    assert task.bytes_per_token > 1
    assert task.baselines()["uniform"] == pytest.approx(len(found) * np.log2(task.vocab_size) / n_bytes)
    probability = task.guess("unigram", torch.zeros(1, 8)).double()
    assert task.baselines()["unigram"] == pytest.approx(-probability[found].log2().sum().item() / n_bytes, rel=1e-5)


@pytest.mark.parametrize("tokenizer", LEARNED)
def test_pieces_change_nothing(tokenizer: Tokenizer, prose: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(prose, tokenizer=tokenizer, cache_dir=str(prose.parent / "whole"))
    expected = whole.provenance(), [tokens_of(whole, split) for split in SPLITS]
    monkeypatch.setattr(packs, "PIECE_BYTES", 100)
    monkeypatch.setattr(pages, "PAGE_BYTES", 64)
    monkeypatch.setattr(pages, "CHUNK_BYTES", 256)
    monkeypatch.setattr(vocabulary, "TEXT_BYTES", 7)  # cuts characters, words and runs of spaces
    monkeypatch.setattr(vocabulary, "TEXTS_AT_ONCE", 3)
    pieces = make(prose, tokenizer=tokenizer, cache_dir=str(prose.parent / "pieces"))
    assert (pieces.provenance(), [tokens_of(pieces, split) for split in SPLITS]) == expected


def test_a_text_without_spaces_is_cut_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "LONGEST_WORD", 50)
    pieces = list(between_words(iter(["世界" * 4] * 100)))
    assert "".join(pieces) == "世界" * 400
    assert max(map(len, pieces)) < 50 + 8


@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])  # Rust's memory is not traced
def test_no_text_is_in_memory_whole(
    tokenizer: Tokenizer, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(written(tmp_path / "small.txt", "some words " * 100), tokenizer=tokenizer).baselines()  # imports
    size = 24 << 20
    file = written(tmp_path / "large.txt", "0123456789abcde\n" * (size // 16))
    monkeypatch.setattr(pages, "CHUNK_BYTES", 2 * pages.PAGE_BYTES)
    tracemalloc.start()
    try:
        make(file, tokenizer=tokenizer).baselines()
        assert tracemalloc.get_traced_memory()[1] < size / 2
    finally:
        tracemalloc.stop()


def test_byte_pairs_are_counted_in_no_more_than_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "TEXT_BYTES", 10)
    monkeypatch.setattr(vocabulary, "BPE_LEARNS_FROM", 30)
    texts = iter(["the cat a "] * 3 + ["zyx zyx zy"] * 3)
    assert not any(b"zy" in token for token in BytePairs.learn(texts, 300).tokens)
    assert len(list(texts)) == 3


def test_the_second_start_learns_nothing(prose: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(prose).provenance()
    monkeypatch.setattr(BytePairs, "learn", lambda *_: pytest.fail("again"))
    assert make(prose).provenance() == first
    assert make(prose).word(300 - 1) == make(prose).word(300 - 1)


def test_tokens_lie_beside_the_bytes_that_all_tokenizers_share(prose: Path, make: Make) -> None:
    folders = {make(prose, tokenizer=tokenizer).corpus.folder for tokenizer in ("bytes", *LEARNED)}
    (folder,) = folders
    for tokenizer in LEARNED:
        make(prose, tokenizer=tokenizer).provenance()
    make(prose, bpe_vocab_size=280).provenance()
    assert sorted(path.name for path in folder.iterdir()) == [
        *("bpe-280-2", "bpe-300-2", "bytes.arrow", "characters-2", "checksums.json", "facts.json"),
    ]


def test_construction_reads_nothing_and_the_size_of_bpe_is_known(tmp_path: Path, make: Make) -> None:
    task = make(tmp_path / "missing.txt")
    assert task.vocab_size == 300
    assert make(tmp_path / "missing.txt", tokenizer="bytes").bytes_per_token == 1.0
    for ask in (
        lambda: task.bytes_per_token,
        lambda: make(tmp_path / "missing.txt", tokenizer="characters").vocab_size,
    ):
        with pytest.raises(ValueError, match=r"task\.path=.*missing\.txt: no such file"):
            ask()


@pytest.mark.parametrize("n_points", [200, 300, 40_000, 70_000])
def test_tokens_of_one_two_and_four_bytes(
    n_points: int, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = [chr(0x10000 + i) for i in range(n_points)]
    random.Random(0).shuffle(letters)
    task = make(written(tmp_path / "a.txt", "".join(letters) * 2), tokenizer="characters", seq_len=300)
    assert task.tokens.token_bytes == (1 if n_points < 256 else 2 if n_points < 65_536 else 4)
    copied = task.sample(8, stream(0, "train", 0, CPU), CPU)
    assert copied.inputs.dtype == torch.int64
    known = learned(task).points
    row = "".join(chr(known[token]) for token in copied.inputs[0].tolist())
    assert row in "".join(letters) * 2
    monkeypatch.setattr(windows, "RESIDENT_MAX_BYTES", 10)
    mapped = pickle.loads(pickle.dumps(task)).sample(8, stream(0, "train", 0, CPU), CPU)
    assert torch.equal(copied.inputs, mapped.inputs)
    assert torch.equal(copied.targets, mapped.targets)


UKRAINIAN = "Кіт сидить на вікні та дивиться на дощ. Завтра буде сонячно, йдемо гуляти. " * 50


@pytest.mark.parametrize("tokenizer", LEARNED)
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            UKRAINIAN.encode("koi8-u"),
            r"a byte 0xeb near 0\), perhaps KOI8-U\. Convert it: iconv -f KOI8-U -t UTF-8; or",
        ),
        (UKRAINIAN.encode("cp1251"), r"perhaps CP1251\. Convert it"),
        (("plain text " * 900).encode() + b"one \xff", r"a byte 0xff near \d+\)"),
        (random.Random(0).randbytes(5000), r"Convert it: iconv -f ENCODING -t UTF-8; or set task\.tokenizer=bytes"),
    ],
    ids=["koi8-u", "cp1251", "one byte", "random"],
)
def test_what_is_not_utf8_is_refused_with_its_encoding(
    tokenizer: Tokenizer, content: bytes, complaint: str, tmp_path: Path, make: Make
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as error:
        make(tmp_path / "a.txt", tokenizer=tokenizer, bpe_vocab_size=260).baselines()
    assert f"task.tokenizer={tokenizer} reads UTF-8, and task.path=" in str(error.value)
    assert "\n" not in str(error.value)
    plain = make(tmp_path / "a.txt", tokenizer="bytes")
    assert plain.baselines()["uniform"] == 8.0, "bytes are what they are"


@pytest.mark.parametrize("tokenizer", LEARNED)
def test_a_character_that_a_border_cuts_is_left_out_and_not_counted(
    tokenizer: Tokenizer, tmp_path: Path, make: Make
) -> None:
    task = make(written(tmp_path / "a.txt", "世界" * 166 + "世"), tokenizer=tokenizer, bpe_vocab_size=256)
    n_kept = 0
    for split in SPLITS:
        whole, found = bytes_of(task, split), tokens_of(task, split)
        text = whole.decode(errors="ignore")
        assert learned(task).n_bytes[found].sum() == len(text.encode()) <= len(whole)
        assert tokenizer == "bpe" or len(found) == len(text)
        n_kept += len(text)
        if split != "train":
            assert task.for_split(split).bytes_per_token == len(text.encode()) / len(found)
    assert n_kept == 331, "of 333 characters in 999 bytes, both borders are within one"


def test_bits_are_shared_by_the_bytes_that_were_predicted(tmp_path: Path, make: Make) -> None:
    """One letter for many is easily told: the bytes that it stands for are no part of what a model predicts."""
    text = "ab " * 1000 + "ab ab ab世" * 20
    task = make(written(tmp_path / "a.txt", text), tokenizer="characters")
    found, test = tokens_of(task, "test"), bytes_of(task, "test").decode(errors="ignore")
    n_known = sum(letter in "ab " for letter in test)
    assert 0 < n_known < len(test) == len(found)
    assert task.bytes_per_token == n_known / len(found)
    with pytest.raises(
        ValueError, match=r"characters: \d+% of the test split of .* train split has not\. Set"
    ) as error:
        make(written(tmp_path / "b.txt", "ab " * 1000 + "世" * 50), tokenizer="characters").baselines()
    assert "task.tokenizer=bytes or bpe" in str(error.value)
    make(tmp_path / "b.txt", tokenizer="bpe", bpe_vocab_size=258).baselines()


def test_validation_has_its_own_bytes_per_token(tmp_path: Path, make: Make) -> None:
    task = make(written(tmp_path / "a.txt", "é" + "a" * 1798 + "é" * 50 + "a" * 100), tokenizer="characters")
    assert task.for_split("validation").bytes_per_token == 2.0
    assert task.for_split("test").bytes_per_token == task.bytes_per_token == 1.0


@pytest.mark.parametrize("tokenizer", LEARNED)
def test_every_token_has_a_word_of_its_own(tokenizer: Tokenizer, prose: Path, make: Make) -> None:
    task = make(prose, tokenizer=tokenizer, bpe_vocab_size=600)
    words = [task.word(token) for token in range(task.vocab_size)]
    assert all(0 < len(word) <= 8 and word.isprintable() for word in words)
    assert len(set(words)) == len(words)


def test_words_of_byte_pairs() -> None:
    texts = ["function function \n\n the 世界 "] * 50
    found = BytePairs.learn(iter(texts), 1000)  # as many as there are
    words = {content: found.word(token) for token, content in enumerate(found.tokens)}
    assert (words[b" the"], words[b"\n"], words[b"a"]) == ("␣the", "↵", "a")
    assert words[b" function"].startswith("␣fun…")
    assert words["世".encode()] == "世"
    assert words[b"\xe4"].startswith("\ufffd…")


def test_words_of_characters() -> None:
    found = Characters([9, 10, 32, 0x41, 0xA0, ord("␣")])
    assert list(map(found.word, range(7))) == ["09", "\\n", "␣", "A", "a0", "2423", "other"]


def test_a_token_is_recalled_if_its_pair_was_seen(tmp_path: Path, make: Make) -> None:
    task = make(written(tmp_path / "a.txt", "abcx" * 100), tokenizer="characters")
    assert task.vocab_size == 5
    found = task.slices(torch.tensor([[0, 1, 2, 0, 1, 3, 0, 1]]))
    assert found["recall"].tolist() == [[False, False, False, True, False, False, True, False]], "ab, twice"


def test_provenance_names_the_vocabulary(prose: Path, make: Make) -> None:
    plain = make(prose, tokenizer="bytes").provenance()
    for tokenizer in LEARNED:
        task = make(prose, tokenizer=tokenizer)
        facts = task.provenance()
        file = Path(task.tokens.folder, learned(task).file)
        assert facts == plain | {
            "tokenizer": tokenizer,
            "vocab_size": task.vocab_size,
            "vocabulary_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "n_tokens": sum(len(tokens_of(task, split)) for split in SPLITS),
        }


def test_what_cannot_be_is_refused_in_one_line(prose: Path, make: Make) -> None:
    with pytest.raises(ValueError, match=r"task\.tokenizer=words is unknown; choose from: bytes, characters, bpe"):
        make(prose, tokenizer="words")
    with pytest.raises(ValueError, match=r"task\.bpe_vocab_size=255 is too small: needs bpe_vocab_size >= 256"):
        make(prose, bpe_vocab_size=255)
    make(prose, tokenizer="characters", bpe_vocab_size=0)
    with pytest.raises(
        ValueError, match=r"bpe_vocab_size=50000 is too large for .*prose\.txt: .* no more than \d+ tok"
    ):
        make(prose, bpe_vocab_size=50_000).sample(1, stream(0, "train", 0, CPU), CPU)
    assert not list(make(prose).corpus.folder.glob("bpe-50000*"))
    with pytest.raises(ValueError, match=r"seq_len=5000 is too long for the test split .* = 5001 <= \d+ tokens"):
        make(prose, seq_len=5000).for_split("test").sample(1, stream(0, "test", 0, CPU), CPU)
