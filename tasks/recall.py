"""Recall: look up the token that followed a key earlier in the sequence."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tasks.base import IGNORE, Batch, Task
from tasks.draws import distinct, order, sort_rows
from tasks.guesses import most_common, most_common_share, uniform

Filler = Literal["zero", "random"]


class MQAR(Task):
    """Multi-query associative recall [Arora et al. 2023, "Zoology"].

    `n_pairs` = D keys, each followed by its value; then (seq_len - 2D) / 2 two-token slots, in which each key is asked
    once. Keys are drawn from 1 ... V/2 - 1 and values from V/2 ... V - 1 (V = vocab_size), both without replacement
    within an example. The slots asked are drawn without replacement, slot i = 1, 2, ... with weight i^(power_a - 1);
    which key takes which of them is a fresh uniform permutation, so that the order of the pairs says nothing about
    the order of the questions (in the published generator early pairs tend to be asked early).

    One example with n_pairs=2, vocab_size=16, filler=zero, seq_len=12 (`.` is not scored):

        position   0  1  2  3  4  5  6  7  8  9 10 11
        token      3 12  6  9  6  0  0  0  3  0  0  0
        target     .  .  .  .  9  .  .  .  12 .  .  .

    Scored: the n_pairs positions at which a key is asked; the target is its value.

    `filler` holds the other positions of the slots: `zero` is token 0, which is never a key (Zoology, figure 2);
    `random` is uniform over all tokens except the keys of that example, so that nothing unasked looks like a question
    (Arora et al. 2024, "Based", where a filler could repeat a key).

    `with_length` keeps n_pairs and `power_a`: there are no more questions, and most stay where they were (with 0.01, 16
    pairs and four times 256 tokens, 28 % are asked beyond the 256; with 1, where distances are uniform, 78 %).

    Baselines (token accuracy): `chance` = 1 / number of values; `value_set` = 1 / n_pairs, what a model scores that
    learns which values are in the context but not which key each belongs to.

    Raises:
        ValueError: seq_len is odd, 4 * n_pairs > seq_len, or vocab_size < 2 * n_pairs + 2. (Zoology asks for
            vocab_size > seq_len, which its generator needs; this one needs enough keys and values only, so that the
            published vocabulary serves sequences longer than itself.)
    """

    def __init__(self, *, seq_len: int, n_pairs: int, vocab_size: int, power_a: float, filler: Filler) -> None:
        super().__init__(seq_len=seq_len)
        self.n_pairs = n_pairs
        self.vocab_size = vocab_size
        self.power_a = power_a
        self.filler = filler
        self.first_value = vocab_size // 2
        self.n_values = vocab_size - self.first_value
        self.check()

    def check(self) -> None:
        super().check()
        if self.n_pairs < 1:
            raise ValueError(f"task.n_pairs={self.n_pairs} is too small: needs n_pairs >= 1")
        if not self.power_a > 0:
            raise ValueError(f"task.power_a={self.power_a} is too small: needs power_a > 0")
        if self.filler not in get_args(Filler):
            raise ValueError(f"task.filler={self.filler} is unknown; choose from: {', '.join(get_args(Filler))}")
        self._check_room()

    def _check_room(self) -> None:
        if self.seq_len % 2:
            raise ValueError(f"seq_len={self.seq_len} is odd: pairs and slots take two tokens each, needs seq_len even")
        if self.seq_len < 4 * self.n_pairs:
            raise ValueError(
                f"seq_len={self.seq_len} is too short for task.n_pairs={self.n_pairs}: "
                f"needs seq_len >= 4 * n_pairs = {4 * self.n_pairs}"
            )
        if self.vocab_size < 2 * self.n_pairs + 2:  # token 0 is the filler; keys are half of the rest
            raise ValueError(
                f"task.vocab_size={self.vocab_size} is too small for task.n_pairs={self.n_pairs}: "
                f"needs vocab_size >= 2 * n_pairs + 2 = {2 * self.n_pairs + 2}"
            )

    def n_source(self, seq_len: int) -> int:
        """Return the length of the pairs; the questions follow."""
        return 2 * self.n_pairs

    @property
    def max_scored(self) -> int:
        return self.n_pairs

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        keys = 1 + distinct(self.first_value - 1, self.n_pairs, batch_size, rng, device)
        values = self.first_value + distinct(self.n_values, self.n_pairs, batch_size, rng, device)
        context = torch.stack((keys, values), dim=2).flatten(1)  # (batch, 2 * n_pairs)
        asked = 2 * self.n_pairs + 2 * self._slots(batch_size, rng, device)  # positions, (batch, n_pairs)
        inputs = torch.cat((context, self._filler(keys, rng)), dim=1).scatter_(1, asked, keys)
        targets = torch.full_like(inputs, IGNORE).scatter_(1, asked, values)
        return Batch(inputs, targets)

    def _slots(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Tensor:
        """Draw the slot in which each pair is asked, counted from 0: (batch, n_pairs)."""
        n_slots = self.seq_len // 2 - self.n_pairs
        # The first to arrive in a race of exponential clocks with rates w are a weighted draw without replacement
        # (the Gumbel top-k trick after exp); float32 bits of positive numbers are ordered as the numbers are.
        rates = torch.arange(1, n_slots + 1, device=device, dtype=torch.float32) ** (self.power_a - 1)
        arrivals = torch.empty(batch_size, n_slots, device=device).exponential_(generator=rng) / rates
        slots = order(arrivals.view(torch.int32).long())[:, : self.n_pairs]
        shuffle = order(torch.randint(1 << 40, slots.shape, generator=rng, device=device))
        return slots.gather(1, shuffle)

    def _filler(self, keys: Tensor, rng: torch.Generator) -> Tensor:
        """Draw tokens for the slots before the questions are written over them: (batch, seq_len - 2 * n_pairs)."""
        shape = (len(keys), self.seq_len - 2 * self.n_pairs)
        if self.filler == "zero":
            return keys.new_zeros(shape)
        # Rank r among the tokens that are no key is the token r + (number of keys below it).
        ranks = torch.randint(self.vocab_size - self.n_pairs, shape, generator=rng, device=keys.device)
        rank_of_key = sort_rows(keys) - torch.arange(self.n_pairs, device=keys.device)
        return ranks + torch.searchsorted(rank_of_key, ranks, right=True)

    def baselines(self) -> dict[str, float]:
        return {"chance": 1 / self.n_values, "value_set": 1 / self.n_pairs}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline == "chance":
            probabilities = torch.zeros(self.vocab_size, device=inputs.device)
            probabilities[self.first_value :] = 1 / self.n_values
            return probabilities
        if baseline == "value_set":
            probabilities = torch.zeros(len(inputs), self.vocab_size, device=inputs.device)
            return probabilities.scatter_(1, inputs[:, 1 : 2 * self.n_pairs : 2], 1 / self.n_pairs).unsqueeze(1)
        raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")

    def oracle(self, inputs: Tensor) -> Tensor:
        context = inputs[:, : 2 * self.n_pairs]
        value_of = torch.zeros(len(inputs), self.vocab_size, dtype=torch.long, device=inputs.device)
        return value_of.scatter_(1, context[:, 0::2], context[:, 1::2]).gather(1, inputs)


class AssociativeRecall(Task):
    """Associative recall with one question [Ba et al. 2016, "Using Fast Weights"; Fu et al. 2023, "H3"].

    `n_pairs` = D keys, each followed by its value; blanks; then one of the keys again. Keys are 0 ... n_keys - 1,
    drawn without replacement within an example; values are the next n_values tokens, drawn independently, so that two
    keys may share one; the blank is the last token. Every pair is asked equally often. (Ba et al. have 26 letters, 10
    digits and two blanks, `c9k8j3f1??c`. H3 draws the keys with replacement, so that the key asked may stand there
    more than once.)

    One example with n_pairs=3, n_keys=4, n_values=3, seq_len=9 (`.` is not scored):

        position   0  1  2  3  4  5  6  7  8
        token      2  6  0  4  3  6  7  7  0
        target     .  .  .  .  .  .  .  .  4

    Scored: the last position only.

    `with_length` keeps n_pairs: more blanks, so the question is further away.

    Baselines (token accuracy): `chance` = 1 / n_values; `most_common_value`, the value that most keys of the example
    have: the expected size of the largest group when D values fall on n_values, divided by D (0.32 for 8 on 8, where
    chance is 0.125; 0.30 for 8 on 10).

    Raises:
        ValueError: there is no room for the pairs and the question (seq_len < 2 * n_pairs + 1), more pairs than keys,
            or fewer than 2 values.
    """

    def __init__(self, *, seq_len: int, n_pairs: int, n_keys: int, n_values: int) -> None:
        super().__init__(seq_len=seq_len)
        self.n_pairs = n_pairs
        self.n_keys = n_keys
        self.n_values = n_values
        self.blank = n_keys + n_values
        self.vocab_size = n_keys + n_values + 1
        self.check()

    def check(self) -> None:
        super().check()
        if self.n_pairs < 1:
            raise ValueError(f"task.n_pairs={self.n_pairs} is too small: needs n_pairs >= 1")
        if self.n_keys < self.n_pairs:
            raise ValueError(f"task.n_keys={self.n_keys} is too small: needs n_keys >= n_pairs = {self.n_pairs}")
        if self.n_values < 2:
            raise ValueError(f"task.n_values={self.n_values} is too small: needs n_values >= 2")
        shortest = 2 * self.n_pairs + 1
        if self.seq_len < shortest:
            raise ValueError(
                f"seq_len={self.seq_len} is too short for task.n_pairs={self.n_pairs}: "
                f"needs seq_len >= 2 * n_pairs + 1 = {shortest}"
            )

    def n_source(self, seq_len: int) -> int:
        """Return all positions but the question."""
        return seq_len - 1

    @property
    def max_scored(self) -> int:
        return 1

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        keys = distinct(self.n_keys, self.n_pairs, batch_size, rng, device)
        values = self.n_keys + torch.randint(self.n_values, keys.shape, generator=rng, device=device)
        asked = torch.randint(self.n_pairs, (batch_size, 1), generator=rng, device=device)
        inputs = torch.full((batch_size, self.seq_len), self.blank, device=device)
        inputs[:, : 2 * self.n_pairs] = torch.stack((keys, values), dim=2).flatten(1)
        inputs[:, -1:] = keys.gather(1, asked)
        targets = torch.full_like(inputs, IGNORE)
        targets[:, -1:] = values.gather(1, asked)
        return Batch(inputs, targets)

    def baselines(self) -> dict[str, float]:
        return {"chance": 1 / self.n_values, "most_common_value": most_common_share(self.n_pairs, self.n_values)}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline == "chance":
            return uniform(self.n_keys, self.n_values, self.vocab_size, inputs.device)
        if baseline == "most_common_value":
            return most_common(inputs, self.n_keys, self.n_values, self.vocab_size)
        raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")

    def oracle(self, inputs: Tensor) -> Tensor:
        context = inputs[:, : 2 * self.n_pairs]
        value_of = torch.zeros(len(inputs), self.vocab_size, dtype=torch.long, device=inputs.device)
        return value_of.scatter_(1, context[:, 0::2], context[:, 1::2]).gather(1, inputs)
