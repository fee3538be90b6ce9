"""N-gram lookup: write the letters that follow a given n-gram in a string."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.base import Batch
from tasks.draws import sort_rows
from tasks.guesses import bigram, score_of_answers
from tasks.strings import StringTask


class SuffixLookup(StringTask):
    """N-gram lookup, the key behind the string [Jelassi et al. 2024, "Repeat After Me"]: `$ s | g continuation .`.

    g is an n-gram of s, the continuation the `length_answer` letters that follow it there; the frame is that of
    `StringTask`. One example with s = `badc`, g = `ad`, n_gram=2 and length_answer=1 in seq_len=10 (`-` is not scored):

        position   0  1  2  3  4  5  6  7  8  9
        token      *  $  b  a  d  c  |  a  d  c
        target     -  -  -  -  -  -  -  -  c  .

    The question comes only after s: a state that cannot hold s cannot answer. (With the key in front, in
    `PrefixLookup`, it need hold the key only.)

    The place of g is uniform over all that leave room for the continuation, and g occurs once in s: where i.i.d.
    letters happen to repeat it, one letter of the repeat is replaced (`only_at`). The published generator asks for
    repeated n-grams as well and counts one of the continuations as right: 34 % of the questions at 300 letters and
    n_gram=2.

    Baselines (token accuracy): `chance` and `length` as in `StringTask`; `bigram`, what a model scores that looks for
    the last letter only: any letter that follows it somewhere in s, and the end where it is. The letters of the answer
    are shown as they are written, so it needs the last letter of g alone (all of g, with n_gram=1). Measured on a fixed
    sample: 0.55 at seq_len=64 in a test, whose strings are the longest, 0.30 at 300; more in training. Two written
    letters stand together in few other places: a model that matches both needs no g. Only `sequence_accuracy` separates
    a look-up from these.

    Raises:
        ValueError: as `StringTask` (min_length >= n_gram + length_answer); n_gram or length_answer < 1; or n_letters <=
            n_gram, so that no letter is left to replace one with.
    """

    def __init__(self, *, seq_len: int, min_length: int, n_letters: int, n_gram: int, length_answer: int) -> None:
        self.n_gram = n_gram
        self.length_answer: int = length_answer
        self.n_asked = n_gram + length_answer
        self._place_key()
        super().__init__(seq_len=seq_len, min_length=min_length, n_letters=n_letters)

    def _place_key(self) -> None:
        self.n_tail = 1 + self.n_gram

    def check(self) -> None:
        for knob in ("n_gram", "length_answer"):
            if getattr(self, knob) < 1:
                raise ValueError(f"task.{knob}={getattr(self, knob)} is too small: needs {knob} >= 1")
        if self.n_letters <= self.n_gram:
            raise ValueError(
                f"task.n_letters={self.n_letters} is too small for task.n_gram={self.n_gram}: needs n_letters > n_gram"
            )
        super().check()

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        letters, n_blank = self._string(batch_size, rng, device)
        n_places = self.longest - n_blank - self.n_asked + 1
        place = n_blank + torch.randint(1 << 40, n_blank.shape, generator=rng, device=device) % n_places
        letters = only_at(letters, place, self.n_gram, self.n_letters, rng)
        asked = letters.gather(1, place + torch.arange(self.n_asked, device=device))
        head, tail = self._question(asked[:, : self.n_gram])
        return self._write(head, letters, n_blank, tail, asked[:, self.n_gram :])

    def _question(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens before s and after it."""
        return self._mark(self.start, gram), torch.cat((self._mark(self.bar, gram), gram), dim=1)

    def baselines(self) -> dict[str, float]:
        if self.length_answer == 1 and self.n_tail == 1:  # no letter of the answer follows a letter
            return super().baselines()
        return super().baselines() | {"bigram": score_of_answers(self, self._bigram)}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline != "bigram":
            return super().guess(baseline, inputs)
        before = super().guess("chance", inputs).expand(len(inputs), self.n_prompt - 1, -1)
        return torch.cat((before, self._bigram(inputs)), dim=1)

    def _bigram(self, inputs: Tensor) -> Tensor:
        """Return probabilities for the answer and its end: (batch, length_answer + 1, vocab_size)."""
        letters = inputs[:, self.n_head : self.n_head + self.longest]
        column = torch.arange(self.longest, device=inputs.device)
        letters = letters.masked_fill(column < self._n_blank(inputs), self.pad)
        found = bigram(letters, inputs[:, self.n_prompt - 1 :], self.n_letters, self.vocab_size)
        found[:, -1] = F.one_hot(torch.tensor(self.end, device=inputs.device), self.vocab_size).float()
        return found

    def _solve(self, inputs: Tensor, n_blank: Tensor) -> Tensor:
        letters = inputs[:, self.n_head : self.n_head + self.longest]
        starts = occurrences(letters, self._key(inputs, n_blank))
        starts &= torch.arange(starts.shape[1], device=inputs.device) >= n_blank
        behind = starts.int().argmax(dim=1, keepdim=True) + self.n_gram
        return letters.gather(1, behind + torch.arange(self.length_answer, device=inputs.device))

    def _key(self, inputs: Tensor, n_blank: Tensor) -> Tensor:
        return inputs[:, self.n_prompt - self.n_gram : self.n_prompt]


class PrefixLookup(SuffixLookup):
    """N-gram lookup, the key before the string [Jelassi et al. 2024, "Repeat After Me"]: `$ g | s | continuation .`.

    As `SuffixLookup`, but the question comes before s begins. One example with s = `badc`, g = `ad`, n_gram=2 and
    length_answer=1 in seq_len=10 (`-` is not scored):

        position   0  1  2  3  4  5  6  7  8  9
        token      $  a  d  |  b  a  d  c  |  c
        target     -  -  -  -  -  -  -  -  c  .

    Before the first letter of the answer stands the bar: there `bigram` is any letter (0.47 at seq_len=64 in a test,
    0.28 at 300).
    """

    def _place_key(self) -> None:
        self.n_head = 2 + self.n_gram

    def _question(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        bar = self._mark(self.bar, gram)
        return torch.cat((self._mark(self.start, gram), gram, bar), dim=1), bar

    def _key(self, inputs: Tensor, n_blank: Tensor) -> Tensor:
        return inputs.gather(1, n_blank + torch.arange(1, 1 + self.n_gram, device=inputs.device))


def only_at(tokens: Tensor, place: Tensor, n_gram: int, n_tokens: int, rng: torch.Generator) -> Tensor:
    """Change the rows of `tokens` (batch, n) so that the n-gram at `place` (batch, 1) occurs nowhere else.

    In every other occurrence one token outside the n-gram at `place` becomes another of 0 ... n_tokens-1 that the
    n-gram does not contain: this breaks the occurrence and cannot make a new one.
    """
    gram = tokens.gather(1, place + torch.arange(n_gram, device=tokens.device))
    again = occurrences(tokens, gram)
    start = torch.arange(again.shape[1], device=tokens.device)
    overlaps = (start > place) & (start < place + n_gram)  # their first token is part of the n-gram, their last is not
    elsewhere = again & (start != place) & ~overlaps
    wrong = F.pad(elsewhere, (0, n_gram - 1)) | F.pad(again & overlaps, (n_gram - 1, 0))
    return torch.where(wrong, draw_others(gram, tokens.shape[1], n_tokens, rng), tokens)


def occurrences(tokens: Tensor, gram: Tensor) -> Tensor:
    """Return where the n-gram of each row (batch, n_gram) starts in its tokens: (batch, n - n_gram + 1) booleans."""
    n_starts = tokens.shape[1] - gram.shape[1] + 1
    found = tokens[:, :n_starts] == gram[:, :1]
    for i in range(1, gram.shape[1]):
        found &= tokens[:, i : i + n_starts] == gram[:, i : i + 1]
    return found


def draw_others(excluded: Tensor, n: int, n_tokens: int, rng: torch.Generator) -> Tensor:
    """Draw (batch, n) independent tokens, uniform over 0 ... n_tokens-1 except those in the row of `excluded`."""
    ordered = sort_rows(excluded)
    is_new = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True)
    index = is_new.cumsum(dim=1)
    draws = torch.randint(1 << 40, (len(excluded), n), generator=rng, device=excluded.device)
    ranks = draws % (n_tokens - index[:, -1:])
    # Rank r among the remaining tokens is the token r + (number of excluded ones below it).
    rank_of_excluded = sort_rows(torch.where(is_new, ordered - index + 1, n_tokens))
    return ranks + torch.searchsorted(rank_of_excluded, ranks, right=True)
