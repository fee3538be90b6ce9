"""Tokens of a corpus other than its bytes (characters, byte pairs): built once, on disk beside the bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor

from tasks.base import Split
from tasks.cache import kept
from tasks.corpus import Corpus
from tasks.vocabulary import BytePairs, Characters, NotUtf8, Vocabulary, decoded
from tasks.windows import Windowed

Tokenizer = Literal["bytes", "characters", "bpe"]

LAYOUT = 2
"""Part of the folder's name: raise it when the meaning of its files or the output of a tokenizer changes."""


def tokens_of(corpus: Corpus, tokenizer: Tokenizer, bpe_vocab_size: int) -> Windowed:
    """Return the corpus as tokens of a tokenizer; nothing is read yet."""
    if tokenizer == "bytes":
        return corpus
    if tokenizer == "characters":
        return Tokens(corpus, "characters", Characters, None)
    return Tokens(corpus, f"bpe-{bpe_vocab_size}", BytePairs, bpe_vocab_size)


class TokenFacts(TypedDict):
    """Facts that are available without reading the tokens, in `facts.json` beside them."""

    vocab_size: int
    sha256: str
    """Hash of the vocabulary file."""
    ranges: dict[Split, list[int]]
    counts: dict[Split, list[int]]
    n_bytes: dict[Split, int]
    """Bytes that the tokens of each split stand for: a model predicts these, and bits per byte divides by them."""


class Tokens(Windowed):
    """Text of a corpus in a vocabulary learned from its train split.

    The first use builds it in the folder of the corpus; later uses map it. Each split is tokenised separately, so no
    token holds bytes of two splits. A character cut by a split border is left out of both.

    Raises (at first use):
        ValueError: the corpus raises it or is not UTF-8, its train split has fewer tokens than requested, or most of
            another split is in characters that the train split lacks.
    """

    def __init__(self, corpus: Corpus, name: str, kind: type[Vocabulary], vocab_size: int | None) -> None:
        super().__init__()
        self.path = corpus.path
        self.name = name
        self._corpus = corpus
        self._kind = kind
        self._vocab_size = vocab_size

    @cached_property
    def folder(self) -> Path:
        """Folder of the tokens; built if it is missing or damaged."""
        folder = self._corpus.folder / f"{self.name}-{LAYOUT}"
        with self._corpus.complaints():
            return kept(folder, self._build)

    def _build(self, folder: Path) -> None:
        try:
            vocabulary = self._kind.learn(self._texts("train"), self._vocab_size)
            self._check_size(vocabulary)
            Path(folder, vocabulary.file).write_text(vocabulary.dump(), encoding="utf-8")
            counts = self._write(vocabulary, folder / "tokens.bin")
        except NotUtf8 as error:
            raise ValueError(self._not_utf8(error)) from None
        ends = np.cumsum([0, *(found.sum() for found in counts.values())]).tolist()
        facts = TokenFacts(
            vocab_size=vocabulary.vocab_size,
            sha256=hashlib.sha256(vocabulary.dump().encode()).hexdigest(),
            ranges={split: list(found) for split, found in zip(get_args(Split), pairwise(ends), strict=True)},
            counts={split: found.tolist() for split, found in counts.items()},
            n_bytes={split: int(found @ vocabulary.n_bytes) for split, found in counts.items()},
        )
        for split, n_bytes in facts["n_bytes"].items():
            self._check_told(split, n_bytes)
        Path(folder, "facts.json").write_text(json.dumps(facts))

    def _write(self, vocabulary: Vocabulary, path: Path) -> dict[Split, np.ndarray]:
        """Write the tokens of all splits, one after the other. Returns the number of occurrences of each token."""
        counts: dict[Split, np.ndarray] = {}
        with path.open("wb") as file:
            for split in get_args(Split):
                counts[split] = np.zeros(vocabulary.vocab_size, dtype=np.int64)
                for tokens in vocabulary.encode(self._texts(split)):
                    file.write(tokens.astype(_dtype(vocabulary.vocab_size)).tobytes())
                    counts[split] += np.bincount(tokens, minlength=vocabulary.vocab_size)
        return counts

    def _check_size(self, vocabulary: Vocabulary) -> None:
        if self._vocab_size not in (None, vocabulary.vocab_size):
            raise ValueError(
                f"task.bpe_vocab_size={self._vocab_size} is too large for task.path={self.path}: "
                f"its train split has no more than {vocabulary.vocab_size} tokens"
            )

    def _check_told(self, split: Split, n_bytes: int) -> None:
        """Raise ValueError if most of a split is in characters that the vocabulary lacks."""
        start, end = self._corpus.ranges[split]
        if 2 * n_bytes < end - start:
            raise ValueError(
                f"task.tokenizer={self._tokenizer}: {1 - n_bytes / (end - start):.0%} of the {split} split of "
                f"task.path={self.path} is in characters that its train split has not. Set task.tokenizer=bytes or bpe"
            )

    def _not_utf8(self, error: NotUtf8) -> str:
        guess = "" if error.encoding is None else f", perhaps {error.encoding}"
        source = error.encoding or "ENCODING"
        return (
            f"task.tokenizer={self._tokenizer} reads UTF-8, and task.path={self.path} {error}{guess}. "
            f"Convert it: iconv -f {source} -t UTF-8; or set task.tokenizer=bytes"
        )

    @property
    def _tokenizer(self) -> str:
        return self.name.partition("-")[0]

    def _texts(self, split: Split) -> Iterator[str]:
        return decoded(self._corpus.pieces(split))

    @cached_property
    def facts(self) -> TokenFacts:
        folder = self.folder
        with self._corpus.complaints():
            facts: TokenFacts = json.loads((folder / "facts.json").read_text())
        return facts

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return self._kind.load((self.folder / self._kind.file).read_text(encoding="utf-8"))

    @property
    def vocab_size(self) -> int:
        return self._vocab_size or self.facts["vocab_size"]

    @property
    def ranges(self) -> dict[Split, list[int]]:
        return self.facts["ranges"]

    @property
    def counts(self) -> dict[Split, list[int]]:
        return self.facts["counts"]

    def bytes_per_token_of(self, split: Split) -> float:
        start, end = self.ranges[split]
        return self.facts["n_bytes"][split] / (end - start)

    def n_bytes(self, device: torch.device) -> Tensor:
        return torch.from_numpy(self.vocabulary.n_bytes).to(device)

    @property
    def token_bytes(self) -> int:
        return _dtype(self.vocab_size).itemsize

    @cached_property
    def _numbers(self) -> MappedTokens:
        return MappedTokens(self.folder / "tokens.bin", _dtype(self.vocab_size))

    def windows(self, split: Split, n: int, length: int, rng: torch.Generator, device: torch.device) -> Tensor:
        window = super().windows(split, n, length, rng, device).long()
        return window & 0xFFFF if self.token_bytes == 2 else window  # two-byte tokens are stored as signed numbers

    def word(self, token: int) -> str:
        return self.vocabulary.word(token)

    def provenance(self) -> dict[str, str | int]:
        return self._corpus.provenance() | {
            "tokenizer": self._tokenizer,
            "vocab_size": self.vocab_size,
            "vocabulary_sha256": self.facts["sha256"],
            "n_tokens": self.ranges["test"][1],
        }


class MappedTokens:
    """Memory-mapped file of tokens only. Two or four bytes are read as signed: PyTorch can index with those."""

    def __init__(self, file: Path, dtype: np.dtype[Any]) -> None:
        signed = {1: np.uint8, 2: np.int16, 4: np.int32}[dtype.itemsize]
        self._map = np.memmap(file, dtype=signed, mode="r")

    def pieces(self, start: int, end: int) -> Iterable[np.ndarray]:
        return (self._map[start:end],)

    def gather(self, positions: np.ndarray) -> np.ndarray:
        return np.asarray(self._map[positions])


def _dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32)
