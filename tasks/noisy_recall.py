"""Noisy recall: key-value pairs among pairs of noise."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.base import IGNORE, Batch, Task
from tasks.draws import distinct, order
from tasks.guesses import most_common, most_common_share, uniform


class NoisyRecall(Task):
    """Noisy in-context recall [Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures", MAD].

    A stream of seq_len / 2 slots of two tokens. Of these, `frac_noise` (rounded to whole slots) hold two tokens of
    noise; which ones is uniform, so noise stands anywhere. The others hold pairs: the first `n_pairs` = D show a key
    each, all different, with its value; every later one repeats one of these keys, each equally likely, with its value
    once more. With K = (vocab_size - noise_vocab_size) // 2, keys are 0 ... K - 1 and values the tokens from there to
    vocab_size - noise_vocab_size - 1, drawn independently, so that two keys may share one; then come noise_vocab_size
    tokens of noise. With frac_noise=0 this is the in-context recall of MAD.

    One example with n_pairs=2, vocab_size=8, noise_vocab_size=2, frac_noise=0.34 (2 of 6 slots), seq_len=12 (`.` is
    not scored):

        position   0  1  2  3  4  5  6  7  8  9 10 11
        token      1  4  7  6  2  4  1  4  6  6  2  4
        target     .  .  .  .  .  .  4  .  .  .  4  .

    Scored: every repeated key; the target is its value, which is also the next input.

    MAD tosses a coin for each slot and draws every key independently; here the numbers of noisy slots and of different
    keys are fixed, so that every example asks equally many questions. MAD trains on every next token and tests on
    answers; keys and noise cannot be predicted, so here training scores answers too. Its published scores are averages
    over classes, ours over tokens.

    `with_length` keeps n_pairs and frac_noise: there are more questions, and more noise.

    Baselines (token accuracy): `chance` = 1 / number of values; `most_common_value`, the value that most of the D keys
    have: the expected size of the largest group when D values fall on so many, divided by D (0.32 for 8 on 8, where
    chance is 0.125).

    Raises:
        ValueError: seq_len is odd, the slots without noise are not more than n_pairs, n_pairs is more than there are
            keys, fewer than 2 values, frac_noise outside [0, 1), or noise without tokens for it.
    """

    shows_answers = True

    def __init__(
        self, *, seq_len: int, n_pairs: int, vocab_size: int, noise_vocab_size: int, frac_noise: float
    ) -> None:
        super().__init__(seq_len=seq_len)
        self.n_pairs = n_pairs
        self.vocab_size = vocab_size
        self.noise_vocab_size = noise_vocab_size
        self.frac_noise = frac_noise
        self.first_noise = vocab_size - noise_vocab_size
        self.n_keys = self.first_noise // 2
        self.n_values = self.first_noise - self.n_keys
        self.check()

    def check(self) -> None:
        super().check()
        if self.n_pairs < 1:
            raise ValueError(f"task.n_pairs={self.n_pairs} is too small: needs n_pairs >= 1")
        if not 0 <= self.frac_noise < 1:
            raise ValueError(f"task.frac_noise={self.frac_noise} is no share: needs 0 <= frac_noise < 1")
        if self.noise_vocab_size < (self.frac_noise > 0):
            raise ValueError(
                f"task.noise_vocab_size={self.noise_vocab_size} is too small for task.frac_noise={self.frac_noise}: "
                f"needs noise_vocab_size >= {int(self.frac_noise > 0)}"
            )
        self._check_room()

    def _check_room(self) -> None:
        fewest = max(2 * self.n_pairs, 3) + self.noise_vocab_size  # n_pairs keys and at least 2 values
        if self.vocab_size < fewest:
            raise ValueError(
                f"task.vocab_size={self.vocab_size} is too small for task.n_pairs={self.n_pairs}: "
                f"needs vocab_size >= max(2 * n_pairs, 3) + noise_vocab_size = {fewest}"
            )
        if self.seq_len % 2:
            raise ValueError(f"seq_len={self.seq_len} is odd: pairs take two tokens each, needs seq_len even")
        if self._n_shown() <= self.n_pairs:
            raise ValueError(
                f"seq_len={self.seq_len} is too short for task.n_pairs={self.n_pairs} with task.frac_noise="
                f"{self.frac_noise}: {self._n_shown()} slots are without noise, needs n_pairs + 1 = {self.n_pairs + 1}"
            )

    def _n_shown(self) -> int:
        """Return the number of slots that hold a pair."""
        return self.seq_len // 2 - round(self.frac_noise * (self.seq_len // 2))

    @property
    def max_scored(self) -> int:
        return self._n_shown() - self.n_pairs

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        keys = distinct(self.n_keys, self.n_pairs, batch_size, rng, device)
        values = self.n_keys + torch.randint(self.n_values, keys.shape, generator=rng, device=device)
        asked = torch.randint(self.n_pairs, (batch_size, self.max_scored), generator=rng, device=device)
        first = torch.arange(self.n_pairs, device=device).expand(batch_size, -1)
        is_shown, n_before = self._slots(batch_size, rng, device)
        pair = torch.cat((first, asked), dim=1).gather(1, n_before)  # (batch, n_slots)
        pairs = torch.stack((keys.gather(1, pair), values.gather(1, pair)), dim=2)
        slots = torch.where(is_shown.unsqueeze(2), pairs, self._noise(pairs, rng))
        answers = torch.where(is_shown & (n_before >= self.n_pairs), pairs[..., 1], IGNORE)
        targets = torch.stack((answers, torch.full_like(answers, IGNORE)), dim=2)
        return Batch(slots.flatten(1), targets.flatten(1))

    def _slots(self, batch_size: int, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw which slots hold a pair, and count the slots before each that do: both (batch, n_slots)."""
        priority = torch.randint(1 << 40, (batch_size, self.seq_len // 2), generator=rng, device=device)
        is_shown = order(priority) < self._n_shown()
        return is_shown, (is_shown.cumsum(1) - is_shown.long()).clamp(max=self._n_shown() - 1)

    def _noise(self, like: Tensor, rng: torch.Generator) -> Tensor:
        n = max(self.noise_vocab_size, 1)  # if there are no noise tokens, these draws are not used
        return self.first_noise + torch.randint(n, like.shape, generator=rng, device=like.device)

    def baselines(self) -> dict[str, float]:
        return {"chance": 1 / self.n_values, "most_common_value": most_common_share(self.n_pairs, self.n_values)}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline == "chance":
            return uniform(self.n_keys, self.n_values, self.vocab_size, inputs.device)
        if baseline == "most_common_value":
            return most_common(self._value_of(inputs)[:, : self.n_keys], self.n_keys, self.n_values, self.vocab_size)
        raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")

    def oracle(self, inputs: Tensor) -> Tensor:
        return self._value_of(inputs).gather(1, inputs.clamp(max=self.n_keys))

    def _value_of(self, inputs: Tensor) -> Tensor:
        """Return the value of each key, 0 if it has none; the last column collects noise: (batch, K + 1)."""
        none = inputs.new_zeros(len(inputs), self.n_keys + 1)
        return none.scatter_(1, inputs[:, 0::2].clamp(max=self.n_keys), inputs[:, 1::2])
