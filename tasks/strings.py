"""Strings: write a string again, unchanged, reversed or sorted."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.base import IGNORE, Batch, Task
from tasks.draws import sort_rows

Length = TypeVar("Length", int, Tensor)


class StringTask(Task):
    """The frame of all string tasks: `$` prompt `|` answer `.`, where the prompt holds a string s of random letters.

    The length of s is uniform over min_length ... `longest`, which is as long as fits into seq_len; its letters are
    i.i.d. uniform. Prompts shorter than the longest are padded on the left, so that all answers begin at the same
    position; the rest after an answer is padded too. Tokens: 0 ... n_letters-1 are the letters; then `$` `|` `.`
    and the pad `*` (the vocabulary of Jelassi et al. 2024).

    Scored: the answer and its end token `.`, each at the position before the one where it is written. The paper packs
    several examples into a training sequence and tests one at a time; here it is one, in training too.

    `with_length` draws strings that are exactly as long as fit, as the published tests do: training sees every length
    up to its longest, a test the longest only.

    Baselines (token accuracy): `chance` = 1 / (n_letters + 1), any letter or the end; `length` = (n / n_letters + 1) /
    (n + 1) for an answer of n letters (on average, where its length varies): predicts the end of the answer, not its
    letters.

    Raises:
        ValueError: n_letters < 2, min_length is too small for the question, or seq_len is too short for min_length.
    """

    shows_answers = True
    n_head: int = 1
    """Number of prompt tokens before s: `$`."""
    n_tail: int = 1
    """Number of prompt tokens after s: `|`."""
    n_asked: int = 1
    """Number of letters that the question covers: no string is shorter."""
    length_answer: int | None = None
    """Number of letters in the answer; None: as many as s has."""

    def __init__(self, *, seq_len: int, min_length: int, n_letters: int) -> None:
        super().__init__(seq_len=seq_len)
        self.min_length = min_length
        self.n_letters = n_letters
        self.start, self.bar, self.end, self.pad = range(n_letters, n_letters + 4)
        self.vocab_size = n_letters + 4
        self.check()

    def check(self) -> None:
        super().check()
        if self.n_letters < 2:
            raise ValueError(f"task.n_letters={self.n_letters} is too small: needs n_letters >= 2")
        if self.min_length < self.n_asked:
            raise ValueError(f"task.min_length={self.min_length} is too small: needs min_length >= {self.n_asked}")
        needed = self.n_head + self.min_length + self.n_tail + self.n_answer(self.min_length)
        if self.seq_len < needed:
            raise ValueError(
                f"seq_len={self.seq_len} is too short for task.min_length={self.min_length} and its answer: "
                f"needs seq_len >= {needed}"
            )

    @property
    def longest(self) -> int:
        """Number of letters in the longest string that fits: its answer is shown without the end token."""
        room = self.seq_len - self.n_head - self.n_tail
        return room // 2 if self.length_answer is None else room - self.length_answer

    def n_answer(self, length: Length) -> Length | int:
        """Return the number of letters in the answer for a string of that length."""
        return length if self.length_answer is None else self.length_answer

    @property
    def n_prompt(self) -> int:
        return self.n_head + self.longest + self.n_tail

    @property
    def max_scored(self) -> int:
        return self.n_answer(self.longest) + 1

    @property
    def mean_scored(self) -> float:
        return (self.n_answer(self.min_length) + self.n_answer(self.longest)) / 2 + 1

    def with_length(self, seq_len: int) -> Self:
        longer = copy.copy(self)
        longer.seq_len = seq_len
        longer.min_length = max(longer.longest, self.n_asked)
        longer.check()
        return longer

    def _string(self, batch_size: int, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw (batch, longest) letters, and how many columns before each string are not part of it: (batch, 1)."""
        n_lengths = self.longest - self.min_length + 1
        n_blank = torch.randint(n_lengths, (batch_size, 1), generator=rng, device=device)
        return torch.randint(self.n_letters, (batch_size, self.longest), generator=rng, device=device), n_blank

    def _write(self, head: Tensor, letters: Tensor, n_blank: Tensor, tail: Tensor, answer: Tensor) -> Batch:
        column = torch.arange(self.n_head + self.longest, device=letters.device)
        prompt = F.pad(letters, (self.n_head, 0)).masked_fill(column < n_blank + self.n_head, self.pad)
        prompt = prompt.scatter(1, n_blank + column[: self.n_head], head)
        written = torch.cat((prompt, tail, self._ended(answer, n_blank)), dim=1)
        written = F.pad(written, (0, self.seq_len + 1 - written.shape[1]), value=self.pad)
        targets = written[:, 1:].masked_fill(written[:, 1:] == self.pad, IGNORE)
        targets[:, : self.n_prompt - 1] = IGNORE
        return Batch(written[:, :-1].contiguous(), targets)

    def _ended(self, answer: Tensor, n_blank: Tensor) -> Tensor:
        """Return the answer with the end token after its last letter, then pads: one column more."""
        column = torch.arange(answer.shape[1] + 1, device=answer.device)
        end = self.n_answer(self.longest - n_blank)
        return F.pad(answer, (0, 1)).masked_fill(column == end, self.end).masked_fill(column > end, self.pad)

    def _mark(self, token: int, like: Tensor) -> Tensor:
        return like.new_full((len(like), 1), token)

    def baselines(self) -> dict[str, float]:
        n = self.mean_scored - 1
        return {"chance": 1 / (self.n_letters + 1), "length": (n / self.n_letters + 1) / (n + 1)}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        probabilities = torch.zeros(self.vocab_size, device=inputs.device)
        if baseline == "chance":
            probabilities[[*range(self.n_letters), self.end]] = 1 / (self.n_letters + 1)
            return probabilities
        if baseline == "length":
            probabilities[: self.n_letters] = 1 / self.n_letters
            end = F.one_hot(torch.tensor(self.end, device=inputs.device), self.vocab_size).float()
            return torch.where(self._is_end(inputs).unsqueeze(-1), end, probabilities)
        raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")

    def _n_blank(self, inputs: Tensor) -> Tensor:
        """Count the pads before each prompt: (batch, 1)."""
        return (inputs == self.start).int().argmax(dim=1, keepdim=True)

    def _is_end(self, inputs: Tensor) -> Tensor:
        """Return where the end token is the target: (batch, seq_len), or (seq_len,) if that is the same for all."""
        position = torch.arange(self.seq_len, device=inputs.device)
        return position == self.n_prompt - 1 + self.n_answer(self.longest - self._n_blank(inputs))

    def oracle(self, inputs: Tensor) -> Tensor:
        n_blank = self._n_blank(inputs)
        answer = self._ended(self._solve(inputs, n_blank), n_blank)
        tokens = torch.zeros_like(inputs)
        tokens[:, self.n_prompt - 1 : self.n_prompt - 1 + answer.shape[1]] = answer
        return tokens

    def word(self, token: int) -> str:
        if token >= self.n_letters:
            return "$|.*"[token - self.n_letters]
        return chr(ord("a") + token) if self.n_letters <= 26 else str(token)

    @abstractmethod
    def _solve(self, inputs: Tensor, n_blank: Tensor) -> Tensor:
        """Solve for the answers, from column 0: (batch, n_answer(longest)), with anything after their ends."""


class StringCopy(StringTask):
    """String copy [Jelassi et al. 2024, "Repeat After Me"]: `$ s | s .`, the frame of `StringTask`.

    One example with s = `ba` in seq_len=9, where 3 letters fit (`-` is not scored):

        position   0  1  2  3  4  5  6  7  8
        token      *  $  b  a  |  b  a  .  *
        target     -  -  -  -  b  a  .  -  -

    The paper trains on lengths up to 50 and tests up to 1,000: fixed states fail at once, attention decays gradually.
    """

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        letters, n_blank = self._string(batch_size, rng, device)
        start, bar = self._mark(self.start, letters), self._mark(self.bar, letters)
        return self._write(start, letters, n_blank, bar, self._answer(letters, n_blank))

    def _solve(self, inputs: Tensor, n_blank: Tensor) -> Tensor:
        return self._answer(inputs[:, 1 : 1 + self.longest], n_blank)

    def _answer(self, letters: Tensor, n_blank: Tensor) -> Tensor:
        column = torch.arange(self.longest, device=letters.device)
        return letters.gather(1, (n_blank + column).clamp(max=self.longest - 1))


class Reverse(StringCopy):
    """String reversal: `$ s | s backwards .`, as `StringCopy` but for the answer.

    One example with s = `ba` in seq_len=9 (`-` is not scored):

        position   0  1  2  3  4  5  6  7  8
        token      *  $  b  a  |  a  b  .  *
        target     -  -  -  -  a  b  .  -  -

    A stack solves it; the distance to the letter wanted grows by two with each that is written.
    """

    def _answer(self, letters: Tensor, n_blank: Tensor) -> Tensor:
        return letters.flip(1)


class Sort(StringCopy):
    """Sorting: `$ s | the letters of s in ascending order .`, as `StringCopy` but for the answer.

    One example with s = `bab` in seq_len=8 (`-` is not scored):

        position   0  1  2  3  4  5  6  7
        token      $  b  a  b  |  a  b  b
        target     -  -  -  -  a  b  b  .

    With fewer letters than places sorting is counting: `n_letters` says which of the two it is.

    Baselines (token accuracy): `chance` as in `StringTask`; `repeat`: the lowest letter first, then the letter before
    once more, and the end where it is. A string of n holds D(n) = V (1 - (1 - 1/V)^n) different letters of V, so that
    n - D(n) letters of the answer are repeats, the first is the lowest with probability D(n) / V, and the end is right:
    (n - D(n) + D(n) / V + 1) / (n + 1). It nears 1 as strings grow; read it before the score at a longer length.
    """

    def _answer(self, letters: Tensor, n_blank: Tensor) -> Tensor:
        column = torch.arange(self.longest, device=letters.device)
        return sort_rows(letters.masked_fill(column < n_blank, self.pad))

    def baselines(self) -> dict[str, float]:
        n = torch.arange(self.min_length, self.longest + 1, dtype=torch.float64)
        different = self.n_letters * (1 - (1 - 1 / self.n_letters) ** n)
        right = n - different + different / self.n_letters + 1
        return {"chance": 1 / (self.n_letters + 1), "repeat": (right.mean() / (n.mean() + 1)).item()}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline != "repeat":
            if baseline not in self.baselines():
                raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")
            return super().guess(baseline, inputs)
        again = inputs.clone()
        again[:, self.n_prompt - 1] = 0
        again = again.masked_fill(self._is_end(inputs), self.end)
        return torch.zeros(*inputs.shape, self.vocab_size, device=inputs.device).scatter_(2, again.unsqueeze(2), 1)
