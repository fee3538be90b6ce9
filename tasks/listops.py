"""ListOps: evaluate a nested list of operations on digits."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.base import IGNORE, Batch, Task

MIN, MAX, MED, SM, CLOSE, PAD = range(10, 16)
"""Token ids; a digit is its own id. MIN ... SM open a list, CLOSE ends it."""
SHORTEST = 4
"""Number of tokens of the shortest list: an operator, two digits, CLOSE."""
PLACE = 2
"""Bits to drop from the start of a list: lists of one depth do not overlap, so start // SHORTEST is unique to each."""
P_LIST = 0.25
"""Probability that an argument is a list, if its list has room for a list or a digit."""
FIELD, ONES = 5, sum(1 << 5 * digit for digit in range(10))
"""Width of a field: one number counts every digit in FIELD bits each, up to 15 arguments; + 15 does not carry."""


class ListOps(Task):
    """ListOps [Nangia & Bowman 2018; lengths and operators of Long Range Arena, Tay et al. 2021].

    Operators take the minimum, maximum, median or sum modulo 10 (SM) of 2 to `max_args` arguments: digits, or lists in
    turn, `max_depth` deep at most. The median of an even number is the mean of the middle two, rounded down. One
    example with seq_len=12 (`_` is the pad; `[X` and `]` are one token each):

        position   0    1   2   3    4   5   6   7   8   9  10  11
        token      _ [MAX   4   3 [MED   1   9   8   2   ]   3   ]
        target     .    .   .   .    .   .   .   .   .   .   .   5

    Scored: the last position, where the outer list closes. Tokens: 0 ... 9, then [MIN, [MAX, [MED, [SM, ], pad.

    Lengths are uniform from `min_fill` times seq_len to seq_len, padded on the left (Long Range Arena: 500 to 2000, so
    0.25). Long Range Arena grows random trees and throws away those of another length; here each list is given its
    length and shares it out at random among its arguments, a quarter of which are lists in turn where there is a
    choice: lengths are exact and no example is thrown away, while trees are not distributed as theirs.

    `with_length` keeps all knobs: the shortest expressions grow too.

    Baselines (token accuracy): `chance` = 1/10; `majority` = the most frequent answer; `first_operator` = the most
    frequent answer to each outer operator, what a model scores that reads one token (a minimum is often 0, a maximum
    often 9). The last two are measured on a fixed sample of 2^19 tokens, or of 2,048 expressions
    (standard errors below 0.01).

    Raises:
        ValueError: max_args not in 4 ... 15, min_fill not in (0, 1], max_depth < 1, seq_len < 4, or too long for
            max_depth lists of max_args arguments.
    """

    vocab_size = 16

    def __init__(self, *, seq_len: int, max_depth: int, max_args: int, min_fill: float) -> None:
        super().__init__(seq_len=seq_len)
        self.max_depth = max_depth
        self.max_args = max_args
        self.min_fill = min_fill
        self.check()

    def check(self) -> None:
        super().check()
        if not 4 <= self.max_args <= 15:
            raise ValueError(f"task.max_args={self.max_args} does not fit: needs 4 <= max_args <= 15")
        if self.max_depth < 1:
            raise ValueError(f"task.max_depth={self.max_depth} is too small: needs max_depth >= 1")
        if not 0 < self.min_fill <= 1:
            raise ValueError(f"task.min_fill={self.min_fill} is no share of seq_len: needs 0 < min_fill <= 1")
        longest = self._longest(1)
        if not SHORTEST <= self.seq_len <= longest:
            raise ValueError(
                f"seq_len={self.seq_len} does not fit task.max_depth={self.max_depth}, task.max_args={self.max_args}: "
                f"needs {SHORTEST} <= seq_len <= {longest}"
            )

    def _longest(self, depth: int) -> int:
        """Return the length of the longest list at a depth (1 for the outer list); below the deepest, of a digit."""
        longest = 1
        for _ in range(depth, self.max_depth + 1):
            longest = 2 + self.max_args * longest
        return min(longest, 1 << 40)

    @property
    def max_scored(self) -> int:
        return 1

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        shape = (batch_size, self.seq_len)
        shortest = max(SHORTEST, math.ceil(self.min_fill * self.seq_len))
        length = torch.randint(shortest, self.seq_len + 1, (batch_size, 1), generator=rng, device=device)
        opens, closes = self._lists(length, rng)
        operators = torch.randint(MIN, SM + 1, shape, generator=rng, device=device)
        digits = torch.randint(10, shape, generator=rng, device=device)
        inputs = torch.where(opens, operators, torch.where(closes, CLOSE, digits))
        is_pad = torch.arange(self.seq_len, device=device) < self.seq_len - length
        inputs = torch.where(is_pad, PAD, inputs)
        targets = torch.full_like(inputs, IGNORE)
        targets[:, -1] = evaluate(inputs, self.max_depth)
        return Batch(inputs, targets)

    def _lists(self, length: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return where lists open and close, (batch, seq_len) each, in a random tree of the given length (batch, 1).

        Grows from the outside in, all lists of a depth at once.
        """
        places = (self.seq_len >> PLACE) + 1
        opens = torch.zeros(len(length), self.seq_len + 1, dtype=torch.bool, device=length.device)
        closes = opens.clone()  # the last column takes writes for lists that do not exist
        starts, lengths = F.pad(self.seq_len - length, (0, places)), F.pad(length, (0, places))
        for depth in range(1, self.max_depth + 1):
            is_there = lengths > 0
            opens.scatter_(1, torch.where(is_there, starts, self.seq_len), True)
            closes.scatter_(1, torch.where(is_there, starts + lengths - 1, self.seq_len), True)
            if depth < self.max_depth:
                starts, lengths = self._arguments(starts, lengths, self._longest(depth + 1), rng)
        return opens[:, :-1], closes[:, :-1]

    def _arguments(self, starts: Tensor, lengths: Tensor, longest: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return starts and lengths of the lists among the arguments of lists; a length of 0 marks no list."""
        n_args, n_lists = self._shares(lengths - 2, longest, rng)
        spare = lengths - 2 - n_args - (SHORTEST - 1) * n_lists  # spare tokens beyond shortest possible lists
        most = longest - SHORTEST  # the most that one of them takes
        position, places = starts + 1, starts.shape[1] - 1
        next_starts, next_lengths = torch.zeros_like(starts), torch.zeros_like(starts)
        dice = torch.rand(2, self.max_args, *starts.shape, generator=rng, device=starts.device)
        for i, (which, share) in enumerate(zip(*dice.unbind(), strict=True)):
            is_list = which * (n_args - i).clamp(min=0) < n_lists  # the remaining arguments are in random order
            others = n_lists - 1
            low, high = (spare - others * most).clamp(min=0), spare.clamp(max=most)
            # The first part of a uniformly random division of the spare tokens; the last list takes all that is left.
            part = (low + ((high - low + 1) * (1 - share ** (1 / others))).long()).minimum(high)
            size = torch.where(is_list, part + SHORTEST, 1)
            place = torch.where(is_list, position >> PLACE, places)
            next_starts.scatter_(1, place, position)
            next_lengths.scatter_(1, place, size)
            position, spare = position + size, torch.where(is_list, spare - part, spare)
            n_lists = torch.where(is_list, others, n_lists)
        next_lengths[:, places] = 0
        return next_starts, next_lengths

    def _shares(self, inside: Tensor, longest: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw how many arguments a list of `inside` tokens has, and how many of them are lists; 0 and 0 for no list.

        `inside` tokens need n_args + 3 * n_lists <= inside <= n_args + (longest - 1) * n_lists.
        """
        fewest = (-(-inside // longest)).clamp(min=2)
        most = (inside - SHORTEST + 1).clamp(max=self.max_args)
        bits = torch.randint(1 << 62, (2, *inside.shape), generator=rng, device=inside.device)
        n_args = fewest + bits[0] % (most - fewest + 1).clamp(min=1)
        slot = torch.arange(self.max_args, device=inside.device)
        is_list = (bits[1].unsqueeze(2) >> 4 * slot & 15) < 16 * P_LIST
        n_lists = (is_list & (slot < n_args.unsqueeze(2))).sum(2)
        at_least = (-(-(inside - n_args) // (longest - 1))).clamp(min=1)
        n_lists = n_lists.maximum(at_least).minimum(n_args).minimum((inside - n_args) // (SHORTEST - 1))
        n_lists = n_lists.clamp(min=0)
        # Digits only: if no list fits and, if there is a choice, as often as an argument is a digit.
        dice = torch.rand(inside.shape, generator=rng, device=inside.device)
        is_flat = (inside <= SHORTEST) | ((inside <= self.max_args) & (dice >= P_LIST))
        return torch.where(is_flat, inside, n_args).clamp(min=0), torch.where(is_flat, 0, n_lists)

    def oracle(self, inputs: Tensor) -> Tensor:
        answers = torch.zeros_like(inputs)
        answers[:, -1] = evaluate(inputs, self.max_depth)
        return answers

    def baselines(self) -> dict[str, float]:
        table = self._frequencies()
        return {
            "chance": 1 / 10,
            "majority": table.sum(0).max().item(),
            "first_operator": table.amax(1).sum().item(),
        }

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline == "chance":
            probabilities = torch.zeros(self.vocab_size, device=inputs.device)
            probabilities[:10] = 1 / 10
            return probabilities
        table = self._frequencies().to(inputs.device)
        if baseline == "majority":
            return F.one_hot(table.sum(0).argmax(), self.vocab_size).float()
        if baseline == "first_operator":
            first = inputs.gather(1, (inputs == PAD).sum(1, keepdim=True)) - MIN
            return F.one_hot(table.argmax(1)[first], self.vocab_size).float()
        raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")

    def _frequencies(self) -> Tensor:
        return frequencies(self.seq_len, self.max_depth, self.max_args, self.min_fill)


@cache
def frequencies(seq_len: int, max_depth: int, max_args: int, min_fill: float) -> Tensor:
    """Return how often each outer operator and answer occur together, in a fixed sample: (4, 10)."""
    task = ListOps(seq_len=seq_len, max_depth=max_depth, max_args=max_args, min_fill=min_fill)
    n_examples = max(2**19 // seq_len, 2**11)
    inputs, targets = task.sample(n_examples, torch.Generator().manual_seed(0), torch.device("cpu"))
    first = inputs.gather(1, (inputs == PAD).sum(1, keepdim=True)).squeeze(1) - MIN
    return torch.bincount(first * 10 + targets[:, -1], minlength=40).view(4, 10).double() / n_examples


def evaluate(inputs: Tensor, max_depth: int) -> Tensor:
    """Evaluate every expression: (batch, seq_len) -> (batch,). All lists of a depth at once, from the inside."""
    is_open, is_digit = (inputs >= MIN) & (inputs <= SM), inputs < 10
    depth = (is_open.long() - (inputs == CLOSE).long()).cumsum(1)
    values = torch.where(is_digit, inputs, 0)
    position = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    n_places = (inputs.shape[1] >> PLACE) + 1
    nothing = inputs.new_zeros(len(inputs), n_places + 1)
    for level in range(max_depth, 0, -1):
        is_list = is_open & (depth == level)
        is_item = is_digit & (depth == level) | is_open & (depth == level + 1)
        item = torch.where(is_item, (1 << FIELD * values) + (values << 10 * FIELD), 0)
        list_of = torch.where(is_list, position, 0).cummax(1).values >> PLACE
        items = nothing.scatter_add(1, list_of, item)
        operator = nothing.scatter(1, torch.where(is_list, position >> PLACE, n_places), inputs)
        values = torch.where(is_list, _apply(operator, items).gather(1, position >> PLACE), values)
    return values.gather(1, (inputs == PAD).sum(1, keepdim=True)).squeeze(1)


def _apply(operator: Tensor, items: Tensor) -> Tensor:
    """Apply operators to their arguments, given as counts: a field for each digit and, above these, the sum."""
    up_to = (items * ONES) & ((1 << 10 * FIELD) - 1)  # field v: the number of arguments that are at most v
    last = (up_to >> 9 * FIELD) - 1
    low = torch.where(operator == MED, last >> 1, torch.where(operator == MAX, last, 0))
    high = torch.where(operator == MED, (last + 1) >> 1, low)
    middle = (_ranked(up_to, low) + _ranked(up_to, high)) >> 1
    return torch.where(operator == SM, (items >> 10 * FIELD) % 10, middle)


def _ranked(up_to: Tensor, rank: Tensor) -> Tensor:
    """Return the argument of this rank, counted from 0: the number of digits that at most `rank` arguments reach."""
    above = (up_to + (15 - rank) * ONES) >> 4 & ONES  # field v: 1 if more than `rank` arguments are at most v
    return 10 - (above * ONES >> 9 * FIELD & 31)
