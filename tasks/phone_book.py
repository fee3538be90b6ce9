"""Phone book: look up one number in a long list of names and numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.base import IGNORE, Batch, Task
from tasks.draws import distinct

N_DIGITS = 10
"""Number of different digits."""


class PhoneBook(Task):
    r"""Phone book look-up [Jelassi et al. 2024, "Repeat After Me": there with pretrained models].

    As many entries `name:number` as fit, each closed by a new line (`/` below), then one of the names and a colon. The
    number is to be written digit by digit. Names are strings of `length_name` letters, all different within a book;
    numbers are strings of `length_number` digits, i.i.d. uniform; the entry asked for is uniform too. What is left of
    seq_len, less than an entry, is padded on the left. (The paper has English names, numbers of ten digits and two
    answered questions before the one that counts, so that an untrained model can infer the question.)

    One example with n_letters=3, length_name=2, length_number=2 in seq_len=17 (`-` is not scored):

        position   0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16
        token      *  b  a  :  4  0  /  c  a  :  4  7  /  b  a  :  4
        target     -  -  -  -  -  -  -  -  -  -  -  -  -  -  -  4  0

    Scored: the digits of the answer, `length_number` positions. Tokens: 0 ... n_letters-1 are the letters, then the ten
    digits, the colon, the new line and the pad.

    `with_length` has more entries.

    Baselines (token accuracy): `chance` = 1/10; `number_set`: draws a number of the book, any that begins with the
    digits already written. It uses the numbers without their names, and is right about nearly every digit but the
    first: of E numbers the others that agree with the j digits written are binomial with p = 10^-j, which makes
    1/10 + 9/10 (1 - (1 - p)^E) / (E p) the accuracy at digit j = 0, 1, ... Only `sequence_accuracy` separates a
    look-up from this guess (it has 1/E there, if no two numbers are the same).

    Raises:
        ValueError: n_letters, length_name or length_number < 1; seq_len is too short for two entries and a question;
            or there are fewer names than entries fit.
    """

    def __init__(self, *, seq_len: int, n_letters: int, length_name: int, length_number: int) -> None:
        super().__init__(seq_len=seq_len)
        self.n_letters = n_letters
        self.length_name = length_name
        self.length_number = length_number
        self.colon, self.newline, self.pad = range(n_letters + N_DIGITS, n_letters + N_DIGITS + 3)
        self.vocab_size = n_letters + N_DIGITS + 3
        self.shows_answers = length_number > 1
        self.check()

    def check(self) -> None:
        super().check()
        for knob in ("n_letters", "length_name", "length_number"):
            if getattr(self, knob) < 1:
                raise ValueError(f"task.{knob}={getattr(self, knob)} is too small: needs {knob} >= 1")
        if self.n_entries < 2:
            needed = 2 * self._length_entry + self._length_asked
            raise ValueError(
                f"seq_len={self.seq_len} is too short for two entries of task.length_name={self.length_name} and "
                f"task.length_number={self.length_number}: needs seq_len >= {needed}"
            )
        n_names = self.n_letters**self.length_name
        if n_names < self.n_entries:
            raise ValueError(
                f"task.length_name={self.length_name} is too small for the {self.n_entries} entries of "
                f"seq_len={self.seq_len}: needs n_letters ** length_name = {n_names} >= {self.n_entries}"
            )

    @property
    def _length_entry(self) -> int:
        return self.length_name + self.length_number + 2  # a colon and a new line

    @property
    def _length_asked(self) -> int:
        """Length of the name, the colon and the answer without its last digit, which is never an input."""
        return self.length_name + self.length_number

    @property
    def n_entries(self) -> int:
        return (self.seq_len - self._length_asked) // self._length_entry

    @property
    def n_prompt(self) -> int:
        return self.seq_len - self.length_number + 1

    @property
    def max_scored(self) -> int:
        return self.length_number

    def word(self, token: int) -> str:
        if token >= self.n_letters:
            return "0123456789:/*"[token - self.n_letters]
        return chr(ord("a") + token) if self.n_letters <= 26 else f"n{token}"

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        shape = (batch_size, self.n_entries)
        names = self._spell(distinct(self.n_letters**self.length_name, self.n_entries, batch_size, rng, device))
        numbers = torch.randint(N_DIGITS, (*shape, self.length_number), generator=rng, device=device) + self.n_letters
        colons = names.new_full((*shape, 1), self.colon)
        entries = torch.cat((names, colons, numbers, torch.full_like(colons, self.newline)), dim=2)
        asked = torch.randint(self.n_entries, (batch_size, 1, 1), generator=rng, device=device)
        entry = entries.gather(1, asked.expand(-1, -1, self._length_entry)).squeeze(1)
        inputs = torch.cat((entries.flatten(1), entry[:, : self._length_asked]), dim=1)
        inputs = F.pad(inputs, (self.seq_len - inputs.shape[1], 0), value=self.pad)
        targets = torch.full_like(inputs, IGNORE)
        targets[:, self.n_prompt - 1 :] = entry[:, self.length_name + 1 : -1]
        return Batch(inputs, targets)

    def _spell(self, codes: Tensor) -> Tensor:
        """Spell the names numbered 0 ... n_letters ** length_name - 1: (batch, n) -> (batch, n, length_name)."""
        places = self.n_letters ** torch.arange(self.length_name, device=codes.device)
        return codes.unsqueeze(2) // places % self.n_letters

    def _read(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Split inputs into the book, (batch, n_entries, length of an entry), and the question with shown answer."""
        book, asked = inputs[:, : -self._length_asked], inputs[:, -self._length_asked :]
        return book[:, -self.n_entries * self._length_entry :].unflatten(1, (self.n_entries, self._length_entry)), asked

    def baselines(self) -> dict[str, float]:
        n, number_set = self.n_entries, 0.0
        for p in (N_DIGITS**-j for j in range(self.length_number)):
            number_set += 0.1 + 0.9 * (1 - (1 - p) ** n) / (n * p)
        return {"chance": 1 / N_DIGITS, "number_set": number_set / self.length_number}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        is_digit = torch.zeros(self.vocab_size, device=inputs.device)
        is_digit[self.n_letters : self.colon] = 1
        if baseline == "chance":
            return is_digit / N_DIGITS
        if baseline != "number_set":
            raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")
        book, asked = self._read(inputs)
        numbers, written = book[:, :, self.length_name + 1 : -1], asked[:, self.length_name + 1 :]
        agrees = F.pad((numbers[:, :, :-1] == written.unsqueeze(1)).long().cumprod(2), (1, 0), value=1).float()
        votes = torch.zeros(len(inputs), self.length_number, self.vocab_size, device=inputs.device)
        votes.scatter_add_(2, numbers.transpose(1, 2), agrees.transpose(1, 2))
        probabilities = is_digit.expand(*inputs.shape, -1) / N_DIGITS
        return torch.cat((probabilities[:, : self.n_prompt - 1], votes / votes.sum(2, keepdim=True)), dim=1)

    def oracle(self, inputs: Tensor) -> Tensor:
        book, asked = self._read(inputs)
        is_it = (book[:, :, : self.length_name] == asked[:, : self.length_name].unsqueeze(1)).all(2)
        entry = book.gather(1, is_it.int().argmax(1).view(-1, 1, 1).expand(-1, -1, self._length_entry)).squeeze(1)
        tokens = torch.zeros_like(inputs)
        tokens[:, self.n_prompt - 1 :] = entry[:, self.length_name + 1 : -1]
        return tokens
