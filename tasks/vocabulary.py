"""What a token is: learned from a text, in the order of the text's pieces, and written into one file."""

from __future__ import annotations

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Self

import numpy as np

TEXT_BYTES = 1 << 12
"""Bytes that are decoded, and tokenised, at a time (`tokenizers` is a third slower on 64 KiB)."""
TEXTS_AT_ONCE = 256
"""Texts that the cores share."""
SAMPLE_BYTES = 1 << 16
"""What an encoding is guessed from."""
BPE_LEARNS_FROM = 1 << 30
"""Bytes of the train split, from its start, that byte pairs are counted in: the counts of words lie in memory."""
LONGEST_WORD = 1 << 16
"""A text without spaces is cut after so many characters."""


class Vocabulary(ABC):
    """What the tokens are, learned from a text and kept in one file."""

    file: str
    vocab_size: int
    n_bytes: np.ndarray
    """Bytes of the text that each token stands for: those of a token that stands for any of several are not told."""

    @classmethod
    @abstractmethod
    def learn(cls, texts: Iterator[str], vocab_size: int | None) -> Self:
        """From the train split. `vocab_size` is asked for, not promised; None: as many as there are."""

    @classmethod
    @abstractmethod
    def load(cls, text: str) -> Self:
        """From the content of its file."""

    @abstractmethod
    def dump(self) -> str:
        """The content of its file."""

    @abstractmethod
    def encode(self, texts: Iterator[str]) -> Iterator[np.ndarray]:
        """The tokens of one text that comes in pieces, in pieces."""

    @abstractmethod
    def word(self, token: int) -> str: ...


class Characters(Vocabulary):
    """The code points of the train split, the smallest first, then one token for any other."""

    file = "characters.json"

    def __init__(self, points: list[int]) -> None:
        self.points = points
        self.vocab_size = len(points) + 1
        self.n_bytes = np.array([*(len(chr(point).encode()) for point in points), 0])

    @classmethod
    def learn(cls, texts: Iterator[str], vocab_size: int | None) -> Self:
        is_known = np.zeros(0x110000, dtype=bool)
        for text in texts:
            is_known[_points(text)] = True
        return cls(np.flatnonzero(is_known).tolist())

    @classmethod
    def load(cls, text: str) -> Self:
        return cls(json.loads(text))

    def dump(self) -> str:
        return json.dumps(self.points)

    def encode(self, texts: Iterator[str]) -> Iterator[np.ndarray]:
        token_of = np.full(0x110000, len(self.points))
        token_of[self.points] = np.arange(len(self.points))
        return (token_of[_points(text)] for text in texts)

    def word(self, token: int) -> str:
        if token == len(self.points):
            return "other"
        point = self.points[token]
        shown = {"\n": "\\n", " ": "␣"}.get(chr(point), chr(point))
        return shown if shown.isprintable() and chr(point) != "␣" else f"{point:02x}"


class BytePairs(Vocabulary):
    """Byte-level byte-pair encoding (Radford et al. 2019), by the library `tokenizers`."""

    file = "tokenizer.json"

    def __init__(self, text: str) -> None:
        self._text = text
        byte_of = {letter: byte for byte, letter in enumerate(_letters())}
        vocabulary = json.loads(text)["model"]["vocab"]
        self.vocab_size = len(vocabulary)
        self.tokens = [
            bytes(byte_of[letter] for letter in letters) for letters in sorted(vocabulary, key=vocabulary.get)
        ]
        """The bytes of each."""
        self.n_bytes = np.array([len(token) for token in self.tokens])

    @classmethod
    def learn(cls, texts: Iterator[str], vocab_size: int | None) -> Self:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        assert vocab_size is not None
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=_letters(), show_progress=False)
        tokenizer.train_from_iterator(between_words(islice(texts, BPE_LEARNS_FROM // TEXT_BYTES)), trainer)
        return cls(tokenizer.to_str())

    @classmethod
    def load(cls, text: str) -> Self:
        return cls(text)

    def dump(self) -> str:
        return self._text

    def encode(self, texts: Iterator[str]) -> Iterator[np.ndarray]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self._text)
        whole = between_words(texts)
        while batch := list(islice(whole, TEXTS_AT_ONCE)):
            yield np.concatenate([np.array(text.ids, dtype=np.int64) for text in tokenizer.encode_batch_fast(batch)])

    def word(self, token: int) -> str:
        content = self.tokens[token].decode(errors="replace")
        shown = content.replace(" ", "␣").replace("\n", "↵")
        if shown.isprintable() and len(shown) <= 8 and not re.search("[␣↵…\ufffd]", content):
            return shown
        start = "".join(letter if letter.isprintable() else "?" for letter in shown)
        return f"{start[: 7 - len(str(token))]}…{token}"


def decoded(pieces: Iterable[np.ndarray]) -> Iterator[str]:
    """Bytes in pieces of any length as UTF-8, of which no piece cuts a character.

    Those of a character that the first or the last of them cut, as the borders of a split may, are left out. Raises
    NotUtf8 for any other byte that is none.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_read = 0
    for piece in pieces:
        for start in range(0, len(piece), TEXT_BYTES):
            part = piece[start : start + TEXT_BYTES].tobytes()
            try:
                text = decoder.decode(part if n_read else _CUT.sub(b"", part))
            except UnicodeDecodeError as error:
                sample = piece[start : start + SAMPLE_BYTES].tobytes()
                raise NotUtf8(error.object[error.start], n_read, sample) from None
            yield text
            n_read += len(part)


_CUT = re.compile(rb"\A[\x80-\xbf]{1,3}")
"""What is left of a character whose start is in the split before."""


class NotUtf8(ValueError):
    """Raised for bytes that are no text: decoded all the same, many would become one letter, and bits be lost."""

    def __init__(self, byte: int, position: int, sample: bytes) -> None:
        """position: about where it is. sample: what stands there."""
        super().__init__(f"is not UTF-8 (a byte {byte:#04x} near {position:,})")
        self.encoding = _guessed(sample)


def _guessed(sample: bytes) -> str | None:
    """The encoding that a text is most likely in; None where there is none that fits."""
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return None if best is None else best.encoding.replace("_", "-").upper()


_BEFORE_A_SPACE = re.compile(r".*[!-~](?=[ \n])", re.DOTALL)


def between_words(texts: Iterator[str]) -> Iterator[str]:
    """The same text, cut where a space follows a letter, a digit or a mark, as BPE cuts it before it merges anything.

    So the tokens do not depend on the pieces; unless LONGEST_WORD characters have no such place.
    """
    rest = ""
    for text in texts:
        rest += text
        found = _BEFORE_A_SPACE.match(rest)
        end = found.end() if found else len(rest) * (len(rest) >= LONGEST_WORD)
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _letters() -> list[str]:
    """The letter that stands for each byte in the files of byte-level BPE (GPT-2's table)."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]
