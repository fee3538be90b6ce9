"""Compression: recall everything that was read from the state after the last token."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.base import IGNORE, Batch, Task
from tasks.guesses import most_common, most_common_share, uniform


class Compression(Task):
    """Compression [after Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures", MAD].

    n = seq_len / 2 symbols, i.i.d. uniform, then as many markers: the i-th marker asks for the i-th symbol. After the
    last symbol nothing is shown any more, so all answers come from the state that the model has then. Symbols are
    0 ... vocab_size - 2, the marker is vocab_size - 1.

    One example with vocab_size=16 and seq_len=8 (`.` is not scored):

        position   0  1  2  3  4  5  6  7
        token      3  0 14  3 15 15 15 15
        target     .  .  .  .  3  0 14  3

    Scored: the markers, the last seq_len / 2 positions.

    MAD has an autoencoder: the hidden vector at one marker after the sequence, plus the position asked for, goes
    through an MLP of its own that decodes the symbol at that position. There the bottleneck is one vector of d_model
    numbers, the same for every architecture, and a decoder is trained along that none of them uses elsewhere. Here
    every backbone answers with its own layers from its own state, whose size in bytes stands beside the score: a state
    of fixed size fails as n grows, and attention, which keeps everything, is not held to a bottleneck that it does not
    have. So scores are not comparable with those published. `copy_memory` keeps a fixed number of symbols over a
    growing gap; here there is no gap, and it is the number of symbols that grows.

    `with_length` asks for more symbols.

    Baselines (token accuracy): `chance` = 1 / (vocab_size - 1); `most_common_symbol`, for a model that counts symbols
    and forgets their order: the expected share of the most frequent one (0.156 for 32 of 15 symbols, 0.109 for 128).

    Raises:
        ValueError: seq_len is odd, or fewer than 2 symbols.
    """

    def __init__(self, *, seq_len: int, vocab_size: int) -> None:
        super().__init__(seq_len=seq_len)
        self.vocab_size = vocab_size
        self.n_symbols = vocab_size - 1
        self.marker = vocab_size - 1
        self.check()

    def check(self) -> None:
        super().check()
        if self.vocab_size < 3:
            raise ValueError(f"task.vocab_size={self.vocab_size} is too small: needs vocab_size >= 3")
        if self.seq_len % 2:
            raise ValueError(f"seq_len={self.seq_len} is odd: every symbol has a marker, needs seq_len even")

    def n_source(self, seq_len: int) -> int:
        """Return the number of symbols."""
        return seq_len // 2

    @property
    def max_scored(self) -> int:
        return self.seq_len // 2

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        shape = (batch_size, self.seq_len // 2)
        symbols = torch.randint(self.n_symbols, shape, generator=rng, device=device)
        inputs = torch.cat((symbols, torch.full_like(symbols, self.marker)), dim=1)
        targets = torch.cat((torch.full_like(symbols, IGNORE), symbols), dim=1)
        return Batch(inputs, targets)

    def baselines(self) -> dict[str, float]:
        share = most_common_share(self.seq_len // 2, self.n_symbols)
        return {"chance": 1 / self.n_symbols, "most_common_symbol": share}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline == "chance":
            return uniform(0, self.n_symbols, self.vocab_size, inputs.device)
        if baseline == "most_common_symbol":
            return most_common(inputs, 0, self.n_symbols, self.vocab_size)
        raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")

    def oracle(self, inputs: Tensor) -> Tensor:
        return inputs[:, : self.seq_len // 2].repeat(1, 2)
