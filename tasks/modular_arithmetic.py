"""Modular arithmetic: the value of an expression of digits, as a running value or with brackets."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.base import IGNORE, Batch
from tasks.state_tracking import ScoreOn, StateTracking

OPERATORS = "+-*"
"""Operators in the order of their tokens, which follow the digits; then `(`, `)` and the pad."""
SHORTEST = 5
"""Number of tokens of the shortest expression in brackets: ( d o d )."""


class ModularArithmetic(StateTracking):
    """The value modulo m of an expression over + - * [Delétang et al. 2023; Grazzi et al. 2025].

    Digits are i.i.d. uniform in 0 ... m-1 (m = modulus), operators i.i.d. uniform among `operators`. Without brackets
    digits and operators alternate, and the target at every digit is the value so far. One example with modulus=5,
    precedence=true, score_on=every and seq_len=8 (`_` is the pad, `.` is not scored):

        position   0  1  2  3  4  5  6  7
        token      _  2  -  3  *  3  +  1
        target     .  2  .  4  .  3  .  4

    `precedence: true` lets * go before + and -, as both papers do. `false` goes strictly from left to right (the value
    at position 5 would be 2): then every `* 0` forgets the past, one digit in 15 at m = 5, so that a window of some
    tens of tokens goes far. With `brackets: true` every operation has its own pair, to a nesting of `max_depth`: a
    random operation is the outer one, as in the published generator (which also has unary minus and redundant
    brackets, to reach every length), and the value is asked at the end only:

        token      (  (  2  -  3  )  *  3  )
        target     .  .  .  .  .  .  .  .  2

    Scored: every digit, or the last position (`score_on: end`). The expression fills the sequence, up to a pad on the
    left; with score_on=end its length is uniform from `min_fill` times seq_len on (the papers train on lengths 3 to
    40). `with_length` keeps all knobs: the shortest expressions grow too.

    Baselines (token accuracy): `chance` = 1/m; `majority` = the most frequent value, which is 0 as soon as there are
    products: exact, from the chain of values, position by position; with brackets from a fixed sample of expressions.

    Raises:
        ValueError: modulus < 2, operators are not some of + - *, brackets or min_fill < 1 with score_on=every,
            min_fill not in (0, 1], seq_len < 5 with brackets, or deeper than max_depth.
    """

    def __init__(
        self,
        *,
        seq_len: int,
        modulus: int,
        operators: str,
        precedence: bool,
        brackets: bool,
        max_depth: int,
        score_on: ScoreOn,
        min_fill: float,
    ) -> None:
        super().__init__(seq_len=seq_len, score_on=score_on)
        self.modulus = modulus
        self.operators = operators
        self.precedence = precedence
        self.brackets = brackets
        self.max_depth = max_depth
        self.min_fill = min_fill
        self.plus, self.minus, self.times, self.open, self.close, self.pad = range(modulus, modulus + 6)
        self.vocab_size = modulus + 6
        self.check()

    def check(self) -> None:
        super().check()
        if self.modulus < 2:
            raise ValueError(f"task.modulus={self.modulus} is too small: needs modulus >= 2")
        if not self.operators or not set(self.operators) <= set(OPERATORS):
            raise ValueError(f"task.operators={self.operators} is unknown; choose some of: {OPERATORS}")
        if not 0 < self.min_fill <= 1:
            raise ValueError(f"task.min_fill={self.min_fill} is no share of seq_len: needs 0 < min_fill <= 1")
        if self.score_on == "every" and (self.brackets or self.min_fill < 1):
            raise ValueError(
                f"task.score_on=every does not fit task.brackets={self.brackets}, task.min_fill={self.min_fill}: "
                f"needs brackets=false and min_fill=1, or score_on=end"
            )
        if self.brackets:
            self._check_depth()

    def _check_depth(self) -> None:
        if self.seq_len < SHORTEST:
            raise ValueError(f"seq_len={self.seq_len} is too short: brackets need seq_len >= {SHORTEST}")
        needed = self._n_operations()[1].bit_length()
        if self.max_depth < needed:
            raise ValueError(
                f"task.max_depth={self.max_depth} is too small for seq_len={self.seq_len}: needs max_depth >= {needed}"
            )

    @property
    def max_scored(self) -> int:
        return (self.seq_len + 1) // 2 if self.score_on == "every" else 1

    def _n_operations(self) -> tuple[int, int]:
        """Return the operations of the shortest and the longest expression; each adds 2 tokens, 4 with brackets."""
        tokens = 4 if self.brackets else 2
        longest = (self.seq_len - 1) // tokens
        shortest = math.ceil((self.min_fill * self.seq_len - 1) / tokens)
        return min(max(shortest, int(self.brackets)), longest), longest

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        shape = (batch_size, self.seq_len)
        digits = torch.randint(self.modulus, shape, generator=rng, device=device)
        choice = torch.randint(len(self.operators), shape, generator=rng, device=device)
        operators = torch.zeros_like(choice)
        for i, name in enumerate(self.operators):
            operators = torch.where(choice == i, self.modulus + OPERATORS.index(name), operators)
        shortest, longest = self._n_operations()
        n = torch.randint(shortest, longest + 1, (batch_size, 1), generator=rng, device=device)
        if self.brackets:
            inputs = self._bracketed(n, digits, operators, rng)
        else:
            from_end = self.seq_len - 1 - torch.arange(self.seq_len, device=device)
            tokens = torch.where(from_end % 2 == 0, digits, operators)
            inputs = torch.where(from_end <= 2 * n, tokens, self.pad)
        targets = self.scored(self.oracle(inputs))
        if self.score_on == "every":
            targets[:, self.seq_len % 2 :: 2] = IGNORE  # operators, and the pad before the first digit
        return Batch(inputs, targets)

    def _bracketed(self, n: Tensor, digits: Tensor, operators: Tensor, rng: torch.Generator) -> Tensor:
        """Build expressions with n operations (batch, 1) that end at the last position: (batch, seq_len).

        Grows from the outside in, all expressions of a depth at once. They share no token and have at least five each,
        so the start divided by five is unique to each.
        """
        end = self.seq_len  # also the column for writes of expressions that do not exist
        tokens = F.pad(digits, (0, 1))
        places = end // SHORTEST + 1
        starts = F.pad(end - 1 - 4 * n, (0, places))
        tokens = torch.where(torch.arange(end + 1, device=n.device) < starts[:, :1], self.pad, tokens)
        n = F.pad(n, (0, places))
        operators = F.pad(operators, (0, 1))
        for depth in range(1, self.max_depth + 1):
            deepest = 2 ** (self.max_depth - depth) - 1  # operations that fit on one side
            low = (n - 1 - deepest).clamp(min=0)
            span = (n - 1).clamp(max=deepest) - low + 1
            dice = torch.randint(1 << 40, n.shape, generator=rng, device=n.device)
            left = low + dice % span.clamp(min=1)
            right = n - 1 - left
            middle = starts + 4 * left + 2
            is_there = n > 0
            opens, middles, closes = (torch.where(is_there, at, end) for at in (starts, middle, middle + 4 * right + 2))
            tokens.scatter_(1, opens, self.open).scatter_(1, closes, self.close)
            tokens.scatter_(1, middles, operators.gather(1, middles))
            both = torch.cat((torch.where(is_there, left, 0), torch.where(is_there, right, 0)), dim=1)
            begin = torch.cat((starts + 1, middle + 1), dim=1)
            place = torch.where(both > 0, begin // SHORTEST, places)
            n = torch.zeros_like(n).scatter_(1, place, both)
            n[:, places] = 0
            starts = torch.zeros_like(n).scatter_(1, place, begin)
        return tokens[:, :end]

    def oracle(self, inputs: Tensor) -> Tensor:
        if self.brackets:
            return self._value_in_brackets(inputs)
        answers = torch.zeros_like(inputs)
        answers[:, (self.seq_len + 1) % 2 :: 2] = self._running_value(inputs)
        return answers

    def _running_value(self, inputs: Tensor) -> Tensor:
        """Compute the value at every digit: (batch, digits).

        Every digit, with the operator before it, changes a number x into gain * x + offset: from left to right x is
        the value; with precedence it is the last term, which + and - begin anew. Such steps chain like matrices do.
        """
        m = self.modulus
        pairs = F.pad(inputs, (self.seq_len % 2, 0), value=self.pad)
        operator, digit = pairs[:, 0::2], pairs[:, 1::2] % self.pad  # before the first digit: + 0
        is_product = operator == self.times
        gain = torch.where(is_product, digit, int(not self.precedence))
        offset = torch.where(is_product, 0, torch.where(operator == self.minus, m - digit, digit))
        reach = 1
        while reach < digit.shape[1]:
            later = (gain[:, reach:] * offset[:, :-reach] + offset[:, reach:]) % m
            offset = torch.cat((offset[:, :reach], later), dim=1)
            gain = torch.cat((gain[:, :reach], gain[:, reach:] * gain[:, :-reach] % m), dim=1)
            reach *= 2
        if not self.precedence:
            return offset % m
        return (offset - torch.where(is_product, F.pad(offset, (1, -1)), 0)).cumsum(1) % m

    def _value_in_brackets(self, inputs: Tensor) -> Tensor:
        """Compute the value of every bracket, where it closes, and of every digit: (batch, seq_len)."""
        is_operator = (inputs >= self.plus) & (inputs <= self.times)
        closes = (inputs == self.close).long()
        depth = ((inputs == self.open).long() - closes).cumsum(1) + closes
        position = torch.arange(self.seq_len, device=inputs.device).expand_as(inputs)
        values = torch.where(inputs < self.modulus, inputs, 0)
        for level in range(self.max_depth, 0, -1):
            middle = torch.where(is_operator & (depth == level), position, 1).cummax(1).values
            operator, left, right = inputs.gather(1, middle), values.gather(1, middle - 1), values.roll(1, dims=1)
            result = torch.where(operator == self.minus, left - right, left + right)
            result = torch.where(operator == self.times, left * right, result) % self.modulus
            values = torch.where((closes == 1) & (depth == level), result, values)
        return values

    def baselines(self) -> dict[str, float]:
        return {"chance": 1 / self.modulus, "majority": self._frequencies().amax(1).mean().item()}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        probabilities = torch.zeros(self.seq_len, self.vocab_size, device=inputs.device)
        if baseline == "chance":
            probabilities[:, : self.modulus] = 1 / self.modulus
            return probabilities
        if baseline != "majority":
            raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")
        most_frequent = self._frequencies().argmax(1).to(inputs.device)
        probabilities[:, 0] = 1
        at = slice((self.seq_len + 1) % 2, None, 2) if self.score_on == "every" else slice(self.seq_len - 1, None)
        probabilities[at] = F.one_hot(most_frequent, self.vocab_size).float()
        return probabilities

    def _frequencies(self) -> Tensor:
        """Return how often each value is the target at each scored position: (max_scored, modulus)."""
        if self.brackets:
            rng = torch.Generator().manual_seed(0)
            n_examples = min(max(2**20 // self.seq_len, 2**11), 2**14)
            values = self.sample(n_examples, rng, torch.device("cpu")).targets[:, -1]
            return torch.bincount(values, minlength=self.modulus).double().unsqueeze(0) / n_examples
        shortest, longest = self._n_operations()
        by_digit = self._chain(longest + 1)
        return by_digit if self.score_on == "every" else by_digit[shortest:].mean(0, keepdim=True)

    def _chain(self, n_digits: int) -> Tensor:
        """Compute the distribution of the running value at every digit: (n_digits, modulus).

        The state is (sum before the last term, last term); from left to right there is only one term.
        """
        m, share = self.modulus, self.operators.count("*") / len(self.operators)
        number = torch.arange(m)
        product = torch.zeros(m, m, dtype=torch.float64)  # from x to x * digit
        product.index_put_((number.repeat_interleave(m), torch.outer(number, number).flatten() % m), _ONE / m, True)
        shifted = (number - number.unsqueeze(1)) % m  # [before, value] -> the last term
        state = torch.zeros(m, m, dtype=torch.float64)
        state[0] = 1 / m
        found = [state.gather(1, shifted).sum(0)]
        while len(found) < n_digits and (len(found) < 2 or (found[-1] - found[-2]).abs().max() > 1e-12):
            anew = torch.zeros_like(state)
            if self.precedence:
                anew += found[-1].unsqueeze(1) / m
            else:
                anew[0] = 1 / m
            state = (1 - share) * anew + share * state @ product
            found.append(state.gather(1, shifted).sum(0))
        return torch.stack(found + found[-1:] * (n_digits - len(found)))


_ONE = torch.ones((), dtype=torch.float64)
