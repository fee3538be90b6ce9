"""Fuzzy recall: keys and values of several tokens."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import pad

from tasks.base import IGNORE, Batch, Task
from tasks.draws import distinct, order
from tasks.guesses import most_common, most_common_share, uniform


class FuzzyRecall(Task):
    """Fuzzy in-context recall [Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures", MAD].

    Keys are motifs of 1 ... k_motif_size tokens, values of 1 ... v_motif_size. Key tokens are 0 ... V/2 - 1 and value
    tokens V/2 ... V - 1 (V = vocab_size), so a sequence has one parse: a run of key tokens is a key, the run of value
    tokens after it is its value. First `n_pairs` = D pairs are shown, then pairs drawn from them, each equally likely,
    until the sequence is full (the last one may be cut off). Within an example the D keys differ as motifs and may
    share tokens: `1`, `1 0` and `0 1` are three keys. The D sizes are as evenly distributed as possible and
    shuffled, separately for keys and values; keys of one size are equally likely; the tokens of values are independent.

    One example with n_pairs=2, k_motif_size=2, v_motif_size=2, vocab_size=6, seq_len=12 (`.` is not scored):

        position   0  1  2  3  4  5  6  7  8  9 10 11
        token      1  4  3  1  0  5  1  0  5  1  4  3
        target     .  .  .  .  .  .  .  .  .  4  3  .

    Scored: tokens of repeated values, where they come next: at the key's last token and at all tokens of the value but
    its last. That a key has ended cannot be seen (`1` at position 6 is not asked, at 9 it is), nor need it be: the
    target is the value of the key that has been read so far, and where that is no question nothing is scored. Only the
    last of these positions are scored, three quarters of their expected number, so that practically every example
    has as many (one that has fewer scores them all).

    MAD draws sizes and motifs of every pair anew, the tokens of a motif without repetition, pads on the left, trains
    on every next token, and tests with keys of k_motif_size tokens only; here D is fixed, as is what the D pairs take
    together, and keys are asked at every size.

    `with_length` keeps n_pairs: there are more questions.

    Baselines (token accuracy): `chance` = 1 / number of value tokens; `most_common_token`, the most frequent in the D
    values: its expected share of their tokens (0.27 for the 15 tokens of 8 values, on 8 tokens).

    Raises:
        ValueError: there is no room for the pairs and a whole question of the longest kind, fewer key motifs of a size
            than the pairs need, fewer than 2 value tokens, or more key motifs than 2^40.
    """

    shows_answers = True

    def __init__(self, *, seq_len: int, n_pairs: int, vocab_size: int, k_motif_size: int, v_motif_size: int) -> None:
        super().__init__(seq_len=seq_len)
        self.n_pairs = n_pairs
        self.vocab_size = vocab_size
        self.k_motif_size = k_motif_size
        self.v_motif_size = v_motif_size
        self.n_keys = vocab_size // 2
        self.n_values = vocab_size - self.n_keys
        self.check()

    def check(self) -> None:
        super().check()
        for knob in ("n_pairs", "k_motif_size", "v_motif_size"):
            if getattr(self, knob) < 1:
                raise ValueError(f"task.{knob}={getattr(self, knob)} is too small: needs {knob} >= 1")
        if self.vocab_size < 3:
            raise ValueError(f"task.vocab_size={self.vocab_size} is too small: needs vocab_size >= 3")
        if self.n_keys**self.k_motif_size > 1 << 40:
            raise ValueError(
                f"task.k_motif_size={self.k_motif_size} is too large for task.vocab_size={self.vocab_size}: "
                f"needs (vocab_size // 2)^k_motif_size <= 2^40"
            )
        for size, n in enumerate(self._n_of_size(self.k_motif_size), start=1):
            if self.n_keys**size < n:
                raise ValueError(
                    f"task.vocab_size={self.vocab_size} is too small for task.n_pairs={self.n_pairs}: {n} keys have "
                    f"{size} tokens, needs (vocab_size // 2)^{size} >= {n}"
                )
        self._check_room()

    def _check_room(self) -> None:
        shortest = self._n_context() + self.k_motif_size + self.v_motif_size
        if self.seq_len < shortest:
            raise ValueError(
                f"seq_len={self.seq_len} is too short for task.n_pairs={self.n_pairs}: the pairs take "
                f"{self._n_context()} tokens and a question up to {self.k_motif_size + self.v_motif_size}, "
                f"needs seq_len >= {shortest}"
            )

    def _n_of_size(self, motif_size: int) -> list[int]:
        """Return how many of the pairs' keys or values have 1, 2, ... motif_size tokens."""
        ends = [-(-size * self.n_pairs // motif_size) for size in range(motif_size + 1)]  # rounded up
        return [end - start for start, end in itertools.pairwise(ends)]

    def _n_tokens(self, motif_size: int) -> int:
        return sum(size * n for size, n in enumerate(self._n_of_size(motif_size), start=1))

    def _n_context(self) -> int:
        """Return the number of tokens of the pairs that are shown first."""
        return self._n_tokens(self.k_motif_size) + self._n_tokens(self.v_motif_size)

    @property
    def max_scored(self) -> int:
        n_context = self._n_context()
        return max(1, 3 * (self.seq_len - n_context) * self._n_tokens(self.v_motif_size) // (4 * n_context))

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        motifs, key_size, value_size = self._pairs(batch_size, rng, device)
        n_asked = (self.seq_len - self._n_context()) // 2 + 1  # enough even if all pairs had two tokens
        asked = torch.randint(self.n_pairs, (batch_size, n_asked), generator=rng, device=device)
        first = torch.arange(self.n_pairs, device=device).expand(batch_size, -1)
        tokens = self._write(torch.cat((first, asked), dim=1), motifs, key_size, value_size)
        is_answer = tokens[:, 1:] >= self.n_keys
        is_answer[:, : self._n_context() - 1] = False
        n_left = is_answer.sum(1, keepdim=True) - is_answer.cumsum(1)
        targets = torch.where(is_answer & (n_left < self.max_scored), tokens[:, 1:], IGNORE)
        return Batch(tokens[:, :-1], targets)

    def _pairs(self, batch_size: int, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Draw motifs (batch, n_pairs, k_motif_size + v_motif_size), key then value; and sizes (batch, n_pairs)."""
        n_of_size = self._n_of_size(self.k_motif_size)
        codes = [distinct(self.n_keys**size, n, batch_size, rng, device) for size, n in enumerate(n_of_size, 1) if n]
        key_order = self._shuffle(batch_size, rng, device)
        code = torch.cat(codes, dim=1).gather(1, key_order).unsqueeze(2)
        keys = code // self.n_keys ** torch.arange(self.k_motif_size, device=device) % self.n_keys
        shape = (batch_size, self.n_pairs, self.v_motif_size)
        values = self.n_keys + torch.randint(self.n_values, shape, generator=rng, device=device)
        value_order = self._shuffle(batch_size, rng, device)
        sizes = self._sizes(key_order, self.k_motif_size), self._sizes(value_order, self.v_motif_size)
        return torch.cat((keys, values), dim=2), *sizes

    def _shuffle(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Tensor:
        return order(torch.randint(1 << 40, (batch_size, self.n_pairs), generator=rng, device=device))

    def _sizes(self, shuffled: Tensor, motif_size: int) -> Tensor:
        """Return the sizes of motifs numbered from the shortest, as many of each size as `_n_of_size` gives."""
        ends = (torch.arange(1, motif_size + 1, device=shuffled.device) * self.n_pairs + motif_size - 1) // motif_size
        return 1 + torch.searchsorted(ends, shuffled, right=True)

    def _write(self, pair: Tensor, motifs: Tensor, key_size: Tensor, value_size: Tensor) -> Tensor:
        """Write these pairs (batch, n) one after the other, up to seq_len + 1 tokens."""
        size = (key_size + value_size).gather(1, pair)
        ends = size.cumsum(1)
        place = torch.arange(self.seq_len + 1, device=pair.device).repeat(len(pair), 1)
        nth = torch.searchsorted(ends, place, right=True)  # the pair at each place, (batch, seq_len + 1)
        offset = place - (ends - size).gather(1, nth)
        pair = pair.gather(1, nth)
        n_key = key_size.gather(1, pair)
        column = torch.where(offset < n_key, offset, offset - n_key + self.k_motif_size)
        return motifs.flatten(1).gather(1, pair * motifs.shape[2] + column)

    def baselines(self) -> dict[str, float]:
        n_shown = self._n_tokens(self.v_motif_size)
        return {"chance": 1 / self.n_values, "most_common_token": most_common_share(n_shown, self.n_values)}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline == "chance":
            return uniform(self.n_keys, self.n_values, self.vocab_size, inputs.device)
        if baseline == "most_common_token":
            return most_common(inputs[:, : self._n_context()], self.n_keys, self.n_values, self.vocab_size)
        raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")

    def oracle(self, inputs: Tensor) -> Tensor:
        pair, code, n_value = self._parse(inputs)
        context = slice(0, self._n_context())
        shape = (len(inputs), self.n_pairs)
        codes = code.new_zeros(shape).scatter_reduce_(1, pair[:, context], code[:, context], "amax")  # of whole keys
        values = inputs.new_zeros(len(inputs), self.n_pairs * (self.v_motif_size + 1))
        values.scatter_(1, (pair * (self.v_motif_size + 1) + n_value)[:, context], inputs[:, context])
        looked_up = (code.unsqueeze(2) == codes.unsqueeze(1)).int().argmax(2)
        upcoming = (n_value + 1).clamp(max=self.v_motif_size)  # column 0 holds the tokens of the key
        return values.gather(1, looked_up * (self.v_motif_size + 1) + upcoming)

    def _parse(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each token's pair, a code of that pair's key so far, and its value tokens so far: (batch, seq_len)."""
        is_key = inputs < self.n_keys
        is_start = is_key & pad(~is_key[:, :-1], (1, 0), value=True)
        place = torch.arange(self.seq_len, device=inputs.device)
        start = (is_start * place).cummax(1).values
        power = (self.n_keys + 1) ** (place - start).clamp(max=self.k_motif_size)
        digit = torch.where(is_key, (inputs + 1) * power, 0)
        return is_start.cumsum(1) - 1, _sum_since(start, digit), _sum_since(start, (~is_key).long())


def _sum_since(start: Tensor, x: Tensor) -> Tensor:
    """Sum x from place `start` up to each place: all (batch, seq_len)."""
    total = x.cumsum(1)
    return total - (total - x).gather(1, start)
