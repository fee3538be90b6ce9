"""Vocabularies: learned from a text, applied piece by piece in order, and stored in one file."""

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
"""Bytes that are decoded and tokenised at a time (`tokenizers` is a third slower with 64 KiB)."""
TEXTS_AT_ONCE = 256
"""Number of texts that the CPU cores share."""
SAMPLE_BYTES = 1 << 16
"""Bytes from which an encoding is guessed."""
BPE_LEARNS_FROM = 1 << 30
"""Leading bytes of the train split from which byte pairs are learned: the counts of words are held in memory."""
LONGEST_WORD = 1 << 16
"""Number of characters after which a text without spaces is cut."""


class Vocabulary(ABC):
    """Meaning of the tokens, learned from a text and stored in one file."""

    file: str
    vocab_size: int
    n_bytes: np.ndarray
    """Bytes of text that each token stands for; 0 for a token that stands for any of several characters."""

    @classmethod
    @abstractmethod
    def learn(cls, texts: Iterator[str], vocab_size: int | None) -> Self:
        """Learn from the train split. `vocab_size` is a target, not a guarantee; None: as many as there are."""

    @classmethod
    @abstractmethod
    def load(cls, text: str) -> Self:
        """Build the vocabulary from the content of its file."""

    @abstractmethod
    def dump(self) -> str:
        """Return the content of its file."""

    @abstractmethod
    def encode(self, texts: Iterator[str]) -> Iterator[np.ndarray]:
        """Yield the tokens of one text, which comes in pieces."""

    @abstractmethod
    def word(self, token: int) -> str: ...


class Characters(Vocabulary):
    """Code points of the train split in ascending order, then one token for any other."""

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
    """Byte-level byte-pair encoding (Radford et al. 2019), using the library `tokenizers`."""

    file = "tokenizer.json"

    def __init__(self, text: str) -> None:
        self._text = text
        byte_of = {letter: byte for byte, letter in enumerate(_letters())}
        vocabulary = json.loads(text)["model"]["vocab"]
        self.vocab_size = len(vocabulary)
        self.tokens = [
            bytes(byte_of[letter] for letter in letters) for letters in sorted(vocabulary, key=vocabulary.get)
        ]
        """Bytes of each token."""
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
    """Decode UTF-8 bytes that come in pieces of any length, without cutting a character.

    A character that is cut at the start or the end of the text, as a split border may do, is left out. Raises NotUtf8
    for any other invalid byte.
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
"""Rest of a character that starts in the previous split."""


class NotUtf8(ValueError):
    """Raised when bytes are not UTF-8: decoded anyway, many would become one character and the loss would miss bits."""

    def __init__(self, byte: int, position: int, sample: bytes) -> None:
        """Compose the message. position: approximate place of the byte. sample: the bytes around it."""
        super().__init__(f"is not UTF-8 (a byte {byte:#04x} near {position:,})")
        self.encoding = _guessed(sample)


def _guessed(sample: bytes) -> str | None:
    """Return the most likely encoding of a text; None if none fits."""
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return None if best is None else best.encoding.replace("_", "-").upper()


_BEFORE_A_SPACE = re.compile(r".*[!-~](?=[ \n])", re.DOTALL)


def between_words(texts: Iterator[str]) -> Iterator[str]:
    """Yield the same text, cut where a space follows a letter, digit or punctuation mark, as BPE does before merging.

    So the tokens do not depend on the pieces, unless LONGEST_WORD characters contain no such place.
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
    """Return the letter that stands for each byte in the files of byte-level BPE (GPT-2's table)."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]
