"""The needle in a haystack: one fact at a chosen depth of a long filler, requested at the end."""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from torch import Tensor

from tasks.base import IGNORE, Batch, Task
from tasks.guesses import bigram, score_of_answers, uniform
from tasks.lookups import occurrences, only_at

Filler = Literal["uniform", "zipf"]


class Needle(Task):
    """Needle in a haystack [Kamradt 2023; "passkey" of Mohtashami & Jaggi 2023; RULER, Hsieh et al. 2024], no corpus.

    A haystack of random words hides one fact, a key of `length_key` words and its value of `length_value`; then `?` and
    the key. The value is to be written word by word. Key and value are uniform over the words. The key occurs once in
    the haystack: where filler, alone or with the end of the fact, happens to repeat it, a word of the repeat is
    replaced (`tasks.lookups.only_at`).

    One example with n_words=10, length_key=2, length_value=2, is_marked=true in seq_len=16 (`-` is not scored):

        position   0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15
        token      3  7  5  9  2  =  4  4  0  5  8  ?  9  2  =  4
        target     -  -  -  -  -  -  -  -  -  -  -  -  -  -  4  4

    Scored: the words of the value, `length_value` positions. Tokens: 0 ... n_words-1 are the words, then `=` and `?`.

    `is_marked`: with `=` between key and value, which occurs nowhere else in the haystack, as the needles of the papers
    stand out from their essays. A model can then recognise a fact on sight, and a small state can keep it at any
    length; as there is no other fact, it need not read the key either. Without, nothing but the question tells which
    words were the fact, and a state has to keep them all.

    `filler`: words i.i.d. `uniform`, or by Zipf's law (`zipf`, word i with weight 1 / (i + 1)), as in a text. There the
    fact consists of rarer words than its surroundings, which gives it away a little even without the mark.

    `depth`: how much of the filler stands before the fact, 0 (the fact comes first) to 1 (it comes last); null draws it
    anew for every example, all places alike. A test of that reports `n_depths` depths apart, evenly spaced: its parts
    are `depth_0.00` ... `depth_1.00`.

    `with_length` has more filler; the fact stays as long as it is, and its depth is the same share.

    Baselines (token accuracy): `chance` = 1 / n_words; `bigram`, what a model scores that looks for the last word only:
    any word that follows it somewhere in the haystack. The words of the value are shown as they are written, so it
    needs neither the fact nor the whole key; the first word, behind the mark, it does not know (without a mark, it
    follows the last word of the key). Measured on a fixed sample: 0.35 for 64 words at seq_len=128, 0.11 at 512; for
    256 words without a mark 0.90 at 64, 0.64 at 256. Two words written hardly stand together anywhere else: a
    model that matches both is right about nearly all but the first two. Only `sequence_accuracy` separates finding a
    fact from these.

    Raises:
        ValueError: length_key or length_value < 1; n_words <= length_key, so that no word is left to replace one with;
            seq_len has no room for the fact and the question; depth is not in 0 ... 1; n_depths is neither 0 nor in
            2 ... 101; or filler is unknown.
    """

    def __init__(
        self,
        *,
        seq_len: int,
        n_words: int,
        length_key: int,
        length_value: int,
        is_marked: bool,
        filler: Filler,
        depth: float | None,
        n_depths: int,
    ) -> None:
        super().__init__(seq_len=seq_len)
        self.n_words = n_words
        self.length_key = length_key
        self.length_value = length_value
        self.is_marked = is_marked
        self.filler = filler
        self.depth = depth
        self.n_depths = n_depths
        self.mark, self.question = n_words, n_words + 1
        self.vocab_size = n_words + 2
        self.shows_answers = length_value > 1
        self.check()

    def check(self) -> None:
        super().check()
        for knob in ("length_key", "length_value"):
            if getattr(self, knob) < 1:
                raise ValueError(f"task.{knob}={getattr(self, knob)} is too small: needs {knob} >= 1")
        if self.n_words <= self.length_key:
            raise ValueError(
                f"task.n_words={self.n_words} is too small for task.length_key={self.length_key}: "
                f"needs n_words > length_key"
            )
        needed = 2 * self._length_fact
        if self.seq_len < needed:
            raise ValueError(
                f"seq_len={self.seq_len} is too short for task.length_key={self.length_key} and "
                f"task.length_value={self.length_value}: needs seq_len >= {needed}"
            )
        self._check_choices()

    def _check_choices(self) -> None:
        if self.filler not in get_args(Filler):
            raise ValueError(f"task.filler={self.filler} is unknown; choose from: {', '.join(get_args(Filler))}")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"task.depth={self.depth} is no share of the filler: needs 0 <= depth <= 1")
        if self.n_depths != 0 and not 2 <= self.n_depths <= 101:  # parts are named by two decimals
            raise ValueError(f"task.n_depths={self.n_depths} is impossible: needs n_depths = 0 or 2 <= n_depths <= 101")

    @property
    def _length_fact(self) -> int:
        """Length of the fact, equal to that of the question with its shown answer: `?` replaces the last word."""
        return self.length_key + self.is_marked + self.length_value

    @property
    def _length_haystack(self) -> int:
        return self.seq_len - self._length_fact

    def word(self, token: int) -> str:
        return {self.mark: "=", self.question: "?"}.get(token, str(token))

    @property
    def n_prompt(self) -> int:
        return self.seq_len - self.length_value + 1

    @property
    def max_scored(self) -> int:
        return self.length_value

    def parts(self) -> dict[str, Task]:
        if self.depth is not None:
            return {}
        parts: dict[str, Task] = {}
        for i in range(self.n_depths):
            part = copy.copy(self)
            part.depth = i / (self.n_depths - 1)
            parts[f"depth_{part.depth:.2f}"] = part
        return parts

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        haystack = self._filler(batch_size, rng, device)
        words = torch.randint(self.n_words, (batch_size, self._length_fact), generator=rng, device=device)
        words[:, self.length_key : self._length_fact - self.length_value] = self.mark
        place = self._place(batch_size, rng, device)
        where = place + torch.arange(self._length_fact, device=device)
        haystack = only_at(haystack.scatter(1, where, words), place, self.length_key, self.n_words, rng)
        fact = haystack.gather(1, where)  # a value may have overlapped with a second occurrence of its key
        question = fact.new_full((batch_size, 1), self.question)
        targets = torch.full((batch_size, self.seq_len), IGNORE, device=device)
        targets[:, self.n_prompt - 1 :] = fact[:, -self.length_value :]
        return Batch(torch.cat((haystack, question, fact[:, :-1]), dim=1), targets)

    def _filler(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Tensor:
        shape = (batch_size, self._length_haystack)
        if self.filler == "uniform":
            return torch.randint(self.n_words, shape, generator=rng, device=device)
        weights = (1 / torch.arange(1, self.n_words + 1, device=device)).cumsum(0)
        return torch.searchsorted(weights, torch.rand(shape, generator=rng, device=device) * weights[-1])

    def _place(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Tensor:
        """Draw the number of words before the fact: (batch, 1)."""
        n_filler = self._length_haystack - self._length_fact
        if self.depth is not None:
            return torch.full((batch_size, 1), round(self.depth * n_filler), device=device)
        return torch.randint(n_filler + 1, (batch_size, 1), generator=rng, device=device)

    def baselines(self) -> dict[str, float]:
        chance = {"chance": 1 / self.n_words}
        if self.length_value == 1 and self.is_marked:  # no word of the answer follows another word
            return chance
        return chance | {"bigram": score_of_answers(self, self._bigram)}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        chance = uniform(0, self.n_words, self.vocab_size, inputs.device)
        if baseline == "chance":
            return chance
        if baseline == "bigram":
            return torch.cat((chance.expand(len(inputs), self.n_prompt - 1, -1), self._bigram(inputs)), dim=1)
        raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")

    def _bigram(self, inputs: Tensor) -> Tensor:
        """Return probabilities for the words of the value: (batch, length_value, vocab_size)."""
        haystack, shown = inputs[:, : self._length_haystack], inputs[:, self.n_prompt - 1 :]
        return bigram(haystack, shown, self.n_words, self.vocab_size)

    def oracle(self, inputs: Tensor) -> Tensor:
        haystack, asked = inputs[:, : self._length_haystack], inputs[:, self._length_haystack + 1 :]
        place = occurrences(haystack, asked[:, : self.length_key]).int().argmax(1, keepdim=True)
        value = place + torch.arange(self._length_fact - self.length_value, self._length_fact, device=inputs.device)
        tokens = torch.zeros_like(inputs)
        tokens[:, self.n_prompt - 1 :] = haystack.gather(1, value)
        return tokens
