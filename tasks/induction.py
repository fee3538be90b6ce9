"""Induction: predict the token that followed an earlier occurrence of the current one."""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from torch import Tensor

from tasks.base import IGNORE, Batch, Task
from tasks.guesses import most_common, most_common_share, uniform

LossOn = Literal["answers", "all"]


class InductionHeads(Task):
    """Induction heads [Olsson et al. 2022; the synthetic task of Fu et al. 2023, "H3", and Gu & Dao 2023, "Mamba"].

    Symbols 0 ... vocab_size - 2, i.i.d. uniform, and one trigger, the last token. It stands at a position drawn
    uniformly from 0 ... seq_len - 3 and again at the end, and nowhere else. The model must say what followed it.
    (A generator that puts the first trigger near the beginning only lets a model look at a fixed place.)

    One example with vocab_size=4, so that the trigger is 3, and seq_len=8 (`.` is not scored):

        position              0  1  2  3  4  5  6  7
        token                 1  0  3  2  0  2  1  3
        target (answers)      .  .  .  .  .  .  .  2
        target (all)          0  3  2  0  2  1  3  2

    Scored: with `loss_on: answers` the last position only; with `loss_on: all` the next token everywhere, and the
    answer at the end. Which of the two decides whether some models learn at all. Symbols cannot be predicted, so with
    `all` the best causal model is at 1 / (vocab_size - 1) but for the two ends; the part `answers`, tested apart,
    says whether it has learned the task. (`oracle` reads the next token off the input, as no causal model can.)

    `with_length` draws more symbols around the one trigger.

    Baselines (token accuracy), `answers`: `chance` = 1 / (vocab_size - 1); `most_common_symbol`, for a model that
    counts symbols and does not find the trigger: the expected share of the most frequent one among the seq_len - 2
    symbols (0.129 at seq_len=64, 0.096 at 256, with 15 symbols). `all`: `chance` is the mean over positions of a
    uniform guess of a symbol, except at seq_len - 2, where the trigger is certain to come next.

    Raises:
        ValueError: there is no room for two triggers and a symbol (seq_len < 3), or fewer than 2 symbols.
    """

    def __init__(self, *, seq_len: int, vocab_size: int, loss_on: LossOn) -> None:
        super().__init__(seq_len=seq_len)
        self.vocab_size = vocab_size
        self.loss_on = loss_on
        self.shows_answers = loss_on == "all"
        self.n_symbols = vocab_size - 1
        self.trigger = vocab_size - 1
        self.check()

    def check(self) -> None:
        super().check()
        if self.vocab_size < 3:
            raise ValueError(f"task.vocab_size={self.vocab_size} is too small: needs vocab_size >= 3")
        if self.loss_on not in get_args(LossOn):
            raise ValueError(f"task.loss_on={self.loss_on} is unknown; choose from: {', '.join(get_args(LossOn))}")
        if self.seq_len < 3:
            raise ValueError(f"seq_len={self.seq_len} is too short for two triggers and a symbol: needs seq_len >= 3")

    def n_source(self, seq_len: int) -> int:
        return seq_len - 1 if self.loss_on == "answers" else 0

    @property
    def max_scored(self) -> int:
        return 1 if self.loss_on == "answers" else self.seq_len

    def parts(self) -> dict[str, Task]:
        if self.loss_on == "answers":
            return {}
        answers = copy.copy(self)
        answers.loss_on, answers.shows_answers = "answers", False
        return {"answers": answers}

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        inputs = torch.randint(self.n_symbols, (batch_size, self.seq_len), generator=rng, device=device)
        place = torch.randint(self.seq_len - 2, (batch_size, 1), generator=rng, device=device)
        answer = inputs.gather(1, place + 1)
        inputs.scatter_(1, place, self.trigger)
        inputs[:, -1] = self.trigger
        if self.loss_on == "all":
            return Batch(inputs, torch.cat((inputs[:, 1:], answer), dim=1))
        targets = torch.full_like(inputs, IGNORE)
        targets[:, -1:] = answer
        return Batch(inputs, targets)

    def baselines(self) -> dict[str, float]:
        if self.loss_on == "answers":
            n = self.seq_len - 2
            return {"chance": 1 / self.n_symbols, "most_common_symbol": most_common_share(n, self.n_symbols)}
        n_triggers = (self.seq_len - 3) / (self.seq_len - 2)  # the first one is a target unless it stands at 0
        return {"chance": (1 + (self.seq_len - 1 - n_triggers) / self.n_symbols) / self.seq_len}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline not in self.baselines():
            raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")
        if baseline == "most_common_symbol":
            return most_common(inputs, 0, self.n_symbols, self.vocab_size)
        probabilities = uniform(0, self.n_symbols, self.vocab_size, inputs.device).repeat(self.seq_len, 1)
        if self.loss_on == "all":
            probabilities[-2] = uniform(self.trigger, 1, self.vocab_size, inputs.device)
        return probabilities

    def oracle(self, inputs: Tensor) -> Tensor:
        is_trigger = inputs[:, :-2] == self.trigger  # (batch, seq_len - 2), holds one trigger
        answer = (is_trigger * inputs[:, 1:-1]).sum(1, keepdim=True)
        return torch.cat((inputs[:, 1:], answer), dim=1)
