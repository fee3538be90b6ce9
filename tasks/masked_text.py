"""Masked text: predict the tokens taken out of a text from the text on both sides."""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.base import IGNORE, Batch
from tasks.corpus import Knobs
from tasks.text import Text
from tasks.tokens import Tokenizer

MASK = "…mask"
"""Display form of the mask, different from every token of a text."""
SHOWN_AS_MASK, SHOWN_AS_ANY = 0.8, 0.1
"""Shares of the scored positions; the rest stays unchanged, so that no position is known to be right."""


class MaskedText(Text):
    """The masked-token objective of BERT (Devlin et al. 2019, section 3.1, task 1).

    One example is a window of seq_len tokens of the same corpora, tokenizers and splits as `Text`. `mask_rate` of its
    positions, at least one, are scored: 80 % of them show the mask, 10 % a random token, 10 % the token itself. The
    example `to be` in bytes
    with seq_len=5 and the second position taken out:

        token      116  256   32   98  101      t ? _ b e
        target       -  111    -    -    -

    Tokens are those of `Text` and, after them, the mask: vocab_size = 257 for bytes. Baselines as in `Text`.

    Raises ValueError as `Text`, and if `mask_rate` is not between 0 and 1.
    """

    shows_answers = False

    def __init__(
        self, *, seq_len: int, mask_rate: float, tokenizer: Tokenizer, bpe_vocab_size: int, **corpus: Unpack[Knobs]
    ) -> None:
        self.mask_rate = mask_rate
        super().__init__(seq_len=seq_len, tokenizer=tokenizer, bpe_vocab_size=bpe_vocab_size, **corpus)

    @property
    def mask(self) -> int:
        """Token that stands for one taken out."""
        return self.tokens.vocab_size

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return self.mask + 1

    def check(self) -> None:
        super().check()
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"mask_rate={self.mask_rate} must be greater than 0 and less than 1")

    def slices(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return no slices: they depend on the text before a token, and a masked token is predicted from both sides."""
        return {}

    def word(self, token: int) -> str:
        return MASK if token == self.mask else super().word(token)

    @property
    def max_scored(self) -> int:
        return max(1, round(self.mask_rate * self.seq_len))

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        text = self.tokens.windows(self.split, batch_size, self.seq_len, rng, device).long()
        order = torch.rand(text.shape, generator=rng, device=device).argsort(1)
        at = order[:, : self.max_scored]  # the same number in every example
        answers = text.gather(1, at)
        targets = torch.full_like(text, IGNORE).scatter_(1, at, answers)
        return Batch(text.scatter(1, at, self._shown(answers, rng)), targets)

    def _shown(self, answers: Tensor, rng: torch.Generator) -> Tensor:
        """Return the tokens to show at the scored positions."""
        dice = torch.rand(answers.shape, generator=rng, device=answers.device)
        any_token = torch.randint(self.mask, answers.shape, generator=rng, device=answers.device)
        shown = torch.where(dice < SHOWN_AS_MASK + SHOWN_AS_ANY, any_token, answers)
        return torch.where(dice < SHOWN_AS_MASK, self.mask, shown)

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        """Return the guess of `Text`, with probability 0 for the mask."""
        return F.pad(super().guess(baseline, inputs), (0, 1))
