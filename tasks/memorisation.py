"""Memorisation: facts that are the same in every example, so that they must be stored in the weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from tasks.base import IGNORE, Batch, Task
from tasks.draws import order
from tasks.guesses import uniform


class Memorisation(Task):
    """Memorisation [Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures", MAD].

    Each of K = (vocab_size - 1) // 2 keys has a value of its own, the same in every example, batch, split and seed of
    a run: the map is drawn once, from `map_seed` alone, and by a hash, so that it is the same on every machine. Keys
    are 0 ... K - 1, values K ... 2K - 1, and the insert token is vocab_size - 1. A sequence is keys, each followed by
    the insert token, where its value is asked. No input ever shows a value: there is nothing to look up.

    One example with vocab_size=9 and a map 0 -> 6, 1 -> 4, 2 -> 7, 3 -> 5, seq_len=8 (`.` is not scored):

        position   0  1  2  3  4  5  6  7
        token      3  8  0  8  1  8  2  8
        target     .  5  .  6  .  4  .  7

    Scored: every insert token, so seq_len / 2 positions.

    A batch deals the keys like cards: all K in random order, then all K again, and so on, cut into examples. So every
    key is uniform at every position, a batch of K questions or more asks every key, and none much more often than
    another. (MAD draws keys independently for a training set of fixed size, which leaves keys out: what can be
    reached there is about 0.915.) Splits ask the same facts in other orders: a test asks the trained facts.

    `with_length` asks more keys of the same map.

    Baselines (token accuracy): `chance` = 1 / K. There is no better guess without the map: values are all different and
    equally frequent.

    Raises:
        ValueError: seq_len is odd, or fewer than 2 keys.
    """

    def __init__(self, *, seq_len: int, vocab_size: int, map_seed: int) -> None:
        super().__init__(seq_len=seq_len)
        self.vocab_size = vocab_size
        self.map_seed = map_seed
        self.n_keys = (vocab_size - 1) // 2
        self.insert = vocab_size - 1
        self._value_of: dict[torch.device, Tensor] = {}  # copied to a device once: each copy would wait for it
        self.check()

    def check(self) -> None:
        super().check()
        if self.n_keys < 2:
            raise ValueError(f"task.vocab_size={self.vocab_size} is too small: needs vocab_size >= 5")
        if self.seq_len % 2:
            raise ValueError(f"seq_len={self.seq_len} is odd: a question takes two tokens, needs seq_len even")

    def values(self, device: torch.device) -> Tensor:
        """Return the value of each key: (n_keys,)."""
        if device not in self._value_of:
            shuffled = sorted(range(self.n_keys), key=self._hash)
            self._value_of[device] = self.n_keys + torch.tensor(shuffled, device=device)
        return self._value_of[device]

    def _hash(self, key: int) -> bytes:
        return hashlib.blake2b(f"{self.map_seed}/{key}".encode(), digest_size=16).digest()

    @property
    def max_scored(self) -> int:
        return self.seq_len // 2

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        n_keys = batch_size * (self.seq_len // 2)
        n_decks = -(-n_keys // self.n_keys)
        decks = order(torch.randint(1 << 40, (n_decks, self.n_keys), generator=rng, device=device))
        keys = decks.flatten()[:n_keys].view(batch_size, -1)
        inputs = torch.stack((keys, torch.full_like(keys, self.insert)), dim=2)
        targets = torch.stack((torch.full_like(keys, IGNORE), self.values(device)[keys]), dim=2)
        return Batch(inputs.flatten(1), targets.flatten(1))

    def baselines(self) -> dict[str, float]:
        return {"chance": 1 / self.n_keys}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline != "chance":
            raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")
        return uniform(self.n_keys, self.n_keys, self.vocab_size, inputs.device)

    def oracle(self, inputs: Tensor) -> Tensor:
        return self.values(inputs.device)[inputs[:, 0::2]].repeat_interleave(2, dim=1)
