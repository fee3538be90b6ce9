"""Copying: keep a few tokens over a long gap and give them back."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.base import IGNORE, Batch, Task
from tasks.draws import distinct, sort_rows
from tasks.guesses import uniform


class _Copying(Task):
    """`n_data` of `n_symbols` symbols, i.i.d. uniform, repeated in order over the last `n_data` positions.

    Tokens: 0 ... n_symbols-1 are the symbols; then the token that carries nothing, and the marker.
    """

    def __init__(self, *, seq_len: int, n_data: int, n_symbols: int) -> None:
        super().__init__(seq_len=seq_len)
        self.n_data = n_data
        self.n_symbols = n_symbols
        self.blank = n_symbols
        self.marker = n_symbols + 1
        self.vocab_size = n_symbols + 2

    def check(self) -> None:
        super().check()
        if self.n_data < 1:
            raise ValueError(f"task.n_data={self.n_data} is too small: needs n_data >= 1")
        shortest = 2 * self.n_data + 1
        if self.seq_len < shortest:
            raise ValueError(
                f"seq_len={self.seq_len} is too short for task.n_data={self.n_data}: "
                f"needs seq_len >= 2 * n_data + 1 = {shortest}"
            )

    def n_source(self, seq_len: int) -> int:
        """Return the number of positions before the symbols are given back."""
        return seq_len - self.n_data

    @property
    def max_scored(self) -> int:
        return self.n_data

    def word(self, token: int) -> str:
        return {self.blank: "_", self.marker: "#"}.get(token, str(token))

    def _data(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Tensor:
        """Draw the symbols to keep, (batch, n_data)."""
        return torch.randint(self.n_symbols, (batch_size, self.n_data), generator=rng, device=device)

    def _asking(self, inputs: Tensor, data: Tensor) -> Batch:
        """Build the batch whose answers to these inputs are `data`."""
        targets = torch.full_like(inputs, IGNORE)
        targets[:, -self.n_data :] = data
        return Batch(inputs, targets)

    def baselines(self) -> dict[str, float]:
        return {"chance": 1 / self.n_symbols}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline != "chance":
            raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")
        return uniform(0, self.n_symbols, self.vocab_size, inputs.device)


class CopyMemory(_Copying):
    """Copy memory [Hochreiter & Schmidhuber 1997; layout of Arjovsky, Shah & Bengio 2016].

    `n_data` symbols, then T positions of which the last holds the marker and the others blanks, then `n_data` blanks
    over which the symbols are given back in order: seq_len = T + 2 * n_data, the T + 20 of the papers at n_data=10.
    (Bai, Kolter & Koltun 2018 repeat the marker where Arjovsky et al. have the closing blanks.)

    One example with n_data=3, n_symbols=8 and T=4, so seq_len=10 (`.` is not scored):

        position   0  1  2  3  4  5  6  7  8  9
        token      5  0  7  8  8  8  9  8  8  8
        target     .  .  .  .  .  .  .  5  0  7

    Scored: the last n_data positions. Tokens: 0 ... n_symbols-1 are the symbols, i.i.d. uniform; then blank and marker.

    Baselines (token accuracy): `chance` = 1 / n_symbols. A model without memory is at a cross-entropy of
    ln(n_symbols) = 2.079 nats at 8 symbols; the papers average over all T + 20 positions and state
    10 ln(8) / (T + 20).

    Raises:
        ValueError: there is no room for the marker (seq_len < 2 * n_data + 1), or nothing to remember.
    """

    def __init__(self, *, seq_len: int, n_data: int, n_symbols: int) -> None:
        super().__init__(seq_len=seq_len, n_data=n_data, n_symbols=n_symbols)
        self.check()

    def check(self) -> None:
        super().check()
        if self.n_symbols < 2:
            raise ValueError(f"task.n_symbols={self.n_symbols} is too small: needs n_symbols >= 2")

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        data = self._data(batch_size, rng, device)
        inputs = torch.full((batch_size, self.seq_len), self.blank, device=device)
        inputs[:, : self.n_data] = data
        inputs[:, -self.n_data - 1] = self.marker
        return self._asking(inputs, data)

    def oracle(self, inputs: Tensor) -> Tensor:
        tokens = torch.zeros_like(inputs)
        tokens[:, -self.n_data :] = inputs[:, : self.n_data]
        return tokens


class SelectiveCopying(_Copying):
    """Selective copying [Gu & Dao 2023, section 4.1.1; the denoising task of Jing et al. 2019].

    `n_data` symbols anywhere among noise, then `n_data` markers, at which the symbols are given back in order:
    seq_len = L + 2 * n_data with L noise tokens (L=4096, n_data=16, vocab_size=16 in the paper). Noise is one token.
    The positions of the symbols are a uniform choice among all: only the token shows that it is to be kept, and its
    distance differs from symbol to symbol and from example to example, so that no fixed filter finds it.
    (A generator that divides the noise evenly between the symbols asks for hardly any selection.)

    One example with n_data=3, vocab_size=10 and L=4, so seq_len=10 (`.` is not scored):

        position   0  1  2  3  4  5  6  7  8  9
        token      8  5  8  8  0  7  8  9  9  9
        target     .  .  .  .  .  .  .  5  0  7

    Scored: the last n_data positions. Tokens: 0 ... vocab_size-3 are the symbols, i.i.d. uniform; then noise and
    marker.

    `with_length` keeps n_data: more noise between the same number of symbols.

    Baselines (token accuracy): `chance` = 1 / (vocab_size - 2), 1/14 at the paper's 16 tokens.

    Raises:
        ValueError: there is no room for noise (seq_len < 2 * n_data + 1), or nothing to remember.
    """

    def __init__(self, *, seq_len: int, n_data: int, vocab_size: int) -> None:
        super().__init__(seq_len=seq_len, n_data=n_data, n_symbols=vocab_size - 2)
        self.check()

    def check(self) -> None:
        super().check()
        if self.vocab_size < 4:
            raise ValueError(
                f"task.vocab_size={self.vocab_size} is too small: "
                f"needs vocab_size >= 4, two symbols besides noise and marker"
            )

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        data = self._data(batch_size, rng, device)
        n_open = self.seq_len - self.n_data  # positions that hold symbols or noise
        places = sort_rows(distinct(n_open, self.n_data, batch_size, rng, device))
        inputs = torch.full((batch_size, self.seq_len), self.blank, device=device)
        inputs[:, n_open:] = self.marker
        return self._asking(inputs.scatter_(1, places, data), data)

    def oracle(self, inputs: Tensor) -> Tensor:
        tokens = torch.zeros_like(inputs)
        tokens[:, -self.n_data :] = inputs[inputs < self.n_symbols].view(-1, self.n_data)
        return tokens
