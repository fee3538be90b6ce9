"""Text: language modelling over bytes, characters or byte pairs."""

from __future__ import annotations

import copy
import math
from typing import Self, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.base import Batch, Split, Task
from tasks.corpus import Corpus, Knobs
from tasks.tokens import Tokenizer, tokens_of


class Text(Task):
    """Predict the next token of any text [as Graves 2013, "Generating Sequences With Recurrent Neural Networks"].

    One example is a window of seq_len + 1 tokens at a uniformly random offset of the split: the inputs are all but
    its last token, the targets all but its first. The example `to be ` in bytes with seq_len=5:

        position     0    1    2    3    4
        token      116  111   32   98  101      t o _ b e
        target     111   32   98  101   32      o _ b e _

    Scored: every position. A window may span several documents, which follow each other with a newline between: that
    is the packing. Nothing is padded, and no token marks where a document ends.

    `path` names the corpus: `stdlib` (the source of the Python standard library that runs this, no download), a file,
    a folder (every file below it that matches `glob`), an address, or a data set of the Hugging Face hub
    (`config_name`, `revision`, `max_bytes`). Files are text, tables of it (`text_column`: Parquet, Arrow, JSON lines,
    CSV), or either packed. Splits share no document, nor any byte: `tasks.documents` says how they are made. `sha256`
    is what all the text must hash to. A setting that the path has no use for is refused.

    `tokenizer`: `bytes` (256 tokens); `characters` (the code points of the train split, and one token for any other,
    which a model need not tell apart); `bpe` (byte-level byte pairs, `bpe_vocab_size` of them, learned from the train
    split, Radford et al. 2019). The last two refuse other encodings than UTF-8. bytes_per_token counts
    the bytes that a model has to predict, without characters that share a token, so that bits per byte compare
    between tokenizers. It is that of the test split; of the validation split after `for_split`.

    Baselines (bits per byte, on the test split): `uniform` = log2(vocab_size) / bytes_per_token, 8 for bytes; `unigram`
    = the cross-entropy of how often each token occurs in the train split (one is added to every count, so that a new
    token does not cost infinitely many bits).

    `with_length` takes longer windows of the same text.

    Raises:
        ValueError: the tokenizer is unknown, bpe_vocab_size < 256; and at first use (`sample`, `baselines`, `guess`,
            `provenance`, of some tokenizers `vocab_size` and `bytes_per_token`), in one line, when the corpus cannot
            be had, is not UTF-8, has fewer tokens than bpe_vocab_size, or a split is shorter than seq_len + 1 tokens.
    """

    shows_answers = True

    def __init__(self, *, seq_len: int, tokenizer: Tokenizer, bpe_vocab_size: int, **corpus: Unpack[Knobs]) -> None:
        super().__init__(seq_len=seq_len)
        self.tokenizer = tokenizer
        self.bpe_vocab_size = bpe_vocab_size
        self.split: Split = "train"
        self.corpus = Corpus(**corpus)  # copies made by with_length and for_split share the corpus, and also its tokens
        self.check()
        self.tokens = tokens_of(self.corpus, tokenizer, bpe_vocab_size)

    def check(self) -> None:
        super().check()
        if self.tokenizer not in get_args(Tokenizer):
            raise ValueError(
                f"task.tokenizer={self.tokenizer} is unknown; choose from: {', '.join(get_args(Tokenizer))}"
            )
        if self.tokenizer == "bpe" and self.bpe_vocab_size < 256:
            raise ValueError(
                f"task.bpe_vocab_size={self.bpe_vocab_size} is too small: needs bpe_vocab_size >= 256, all bytes"
            )

    @property
    def vocab_size(self) -> int:  # type: ignore[override]  # characters are known when the corpus is
        return self.tokens.vocab_size

    @property
    def bytes_per_token(self) -> float:  # type: ignore[override]
        return self.tokens.bytes_per_token_of("validation" if self.split == "validation" else "test")

    def for_split(self, split: Split) -> Self:
        ranged = copy.copy(super().for_split(split))
        ranged.split = split
        return ranged

    def slices(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return masks by recall and by position, i.e. length of context (Arora et al. 2023, "Zoology", section 3).

        `recall`: the token to predict completes a pair that occurred in the context; `other`: it does not. The
        last position, whose target is not among the inputs, is in neither. `position_16`: 16 to 31, and so on.
        """
        pairs = inputs[:, :-1] * self.tokens.vocab_size + inputs[:, 1:]
        is_recall = F.pad(is_repeat(pairs), (0, 1))
        is_known = torch.arange(inputs.shape[1], device=inputs.device) < inputs.shape[1] - 1
        return {"recall": is_recall, "other": ~is_recall & is_known, **octaves(inputs)}

    def bytes_of(self, targets: Tensor) -> Tensor:
        return self.tokens.n_bytes(targets.device)[targets]

    def word(self, token: int) -> str:
        return self.tokens.word(token)

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        window = self.tokens.windows(self.split, batch_size, self.seq_len + 1, rng, device)
        return Batch(window[:, :-1].long(), window[:, 1:].long())

    def source(self, device: torch.device) -> torch.device:
        return device if self.tokens.is_resident(self.split) else torch.device("cpu")

    def provenance(self) -> dict[str, str | int]:
        return self.tokens.provenance()

    def baselines(self) -> dict[str, float]:
        test = torch.tensor(self.tokens.counts["test"], dtype=torch.float64)
        unigram = -(test * self._unigram().log2()).sum() / test.sum()
        bits = {"uniform": math.log2(self.tokens.vocab_size), "unigram": unigram.item()}
        return {name: per_token / self.tokens.bytes_per_token_of("test") for name, per_token in bits.items()}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        n_tokens = self.tokens.vocab_size
        if baseline == "uniform":
            return torch.full((n_tokens,), 1 / n_tokens, device=inputs.device)
        if baseline == "unigram":
            return self._unigram().float().to(inputs.device)
        raise ValueError(f"baseline={baseline} is unknown; choose from: uniform, unigram")

    def _unigram(self) -> Tensor:
        """Return the probability of each token by its count in the train split: (vocab_size,)."""
        counts = 1 + torch.tensor(self.tokens.counts["train"], dtype=torch.float64)
        return counts / counts.sum()


def is_repeat(numbers: Tensor) -> Tensor:
    """Mark entries that equal an earlier one of their row: (batch, n) -> (batch, n)."""
    ordered, place = numbers.sort(dim=1, stable=True)
    is_same = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return torch.zeros_like(is_same).scatter_(1, place, is_same)


def octaves(inputs: Tensor) -> dict[str, Tensor]:
    """Return masks, shaped as `inputs`, of positions from one power of two to the next, named by the first."""
    position = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    starts = [0, *(2**i for i in range((inputs.shape[1] - 1).bit_length()))]
    return {f"position_{start}": (position >= start) & (position < max(1, 2 * start)) for start in starts}
