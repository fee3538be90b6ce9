"""Pathfinder: decide if a path joins two dots in an image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.base import IGNORE, Batch, Task

BLANK, DOT, PAD, INK = range(4)
"""Token ids; ink has `n_shades` of them, from INK on."""


class Pathfinder(Task):
    """Pathfinder [Linsley et al. 2018; as a sequence of pixels in Long Range Arena, Tay et al. 2021].

    `n_paths` dashed paths run across a square image, from the left to the right edge or from the top to the bottom.
    Dots mark both ends of one of them. The path between them is whole (1), or it is cut somewhere (0), and then the
    dots belong to two paths. Pixels are read row by row, the answer is asked at the last one. One example with an
    answer of 0 and seq_len=64, as an image (`o` dot, `#` ink, `.` blank; n_shades=1); the lower path has two gaps, the
    upper one lacks three pixels, more than a gap:

        . # . . . # . .        tokens   0 3 0 0 0 3 0 0 1 0 ... 0 0
        o . . . . . # o        targets  . . . . . . . . . . ... . 0
        . . . . . . . .
        . . . . . . . .
        . # . # # . . .
        # . . . . # . #
        . . . . . . . .
        . . . . . . . .

    A path is one pixel in every column (row), a step of at most one row (column) further; two are `spacing` apart at
    least and never meet. Dashes: where a path runs straight, `gap` pixels may be left out, with at least `dash` pixels
    before the next; a cut leaves out `cut` > gap. Of the dotted path and one other, always exactly one is cut, and
    which of the two has the dots is a coin; a third path and more are cut by chance and end anywhere. So images
    without their dots, and dots without their images, are alike in both classes: no count of ink, gaps or cuts and no
    distance of the dots says anything. (Linsley et al. draw curves that turn back; here paths keep their order, so
    that a path can be told from its neighbours by rank where none of them is missing. And in an image of 8 x 8 nothing
    is far: counting the ink around the dots, 5 x 5 pixels each, is right in 72 % of the images; with 20 x 20 pixels
    and 5 paths in less than 60 %.)

    Every pixel of ink has one of `n_shades`, at random: they say nothing, and no two images are the same.

    Scored: the last position. Tokens: blank, dot, pad, the shades of ink; 0 and 1 are the answers. The image has the
    largest side whose square fits, after a pad on the left. `with_length` makes it larger, with as many paths.

    Baselines (token accuracy): `chance` = 1/2; the classes are equally frequent.

    Raises:
        ValueError: n_paths < 2, dash < 1, gap < 0, n_shades < 1, cut <= gap, spacing < 3 or < gap + 2
            (two paths could be taken for one), or an image too small for its paths or its cut.
    """

    def __init__(
        self, *, seq_len: int, n_paths: int, spacing: int, dash: int, gap: int, cut: int, n_shades: int
    ) -> None:
        super().__init__(seq_len=seq_len)
        self.n_paths = n_paths
        self.spacing = spacing
        self.dash = dash
        self.gap = gap
        self.cut = cut
        self.n_shades = n_shades
        self.vocab_size = INK + n_shades
        self.check()

    @property
    def side(self) -> int:
        """Side length of the image in pixels."""
        return math.isqrt(self.seq_len)

    def check(self) -> None:
        super().check()
        for name, least in (("n_paths", 2), ("dash", 1), ("gap", 0), ("cut", self.gap + 1), ("n_shades", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"task.{name}={getattr(self, name)} is too small: needs {name} >= {least}")
        if self.spacing < max(3, self.gap + 2):
            raise ValueError(
                f"task.spacing={self.spacing} is too small for task.gap={self.gap}: "
                f"needs spacing >= max(3, gap + 2) = {max(3, self.gap + 2)}"
            )
        side = max(self.spacing * (self.n_paths - 1) + 2, self.cut + 2)
        if self.side < side:
            raise ValueError(
                f"seq_len={self.seq_len} is too short for task.n_paths={self.n_paths}, task.spacing={self.spacing}, "
                f"task.cut={self.cut}: needs seq_len >= {side}^2 = {side**2}"
            )

    @property
    def max_scored(self) -> int:
        return 1

    def sample(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Batch:
        n, some = self.side, (batch_size, self.n_paths, 1)
        rows = self._rows(batch_size, rng, device)
        answer = torch.randint(2, (batch_size, 1, 1), generator=rng, device=device)
        dotted = torch.randint(self.n_paths, (batch_size, 1, 1), generator=rng, device=device)
        other = torch.randint(1, self.n_paths, (batch_size, 1, 1), generator=rng, device=device)
        rank = (torch.arange(self.n_paths, device=device).view(1, -1, 1) - dotted) % self.n_paths  # rank 0 has the dots
        is_cut = torch.randint(2, some, generator=rng, device=device)
        is_cut = torch.where(rank == 0, 1 - answer, torch.where(rank == other, answer, is_cut)) == 1
        ends_anywhere = (rank != 0) & (rank != other)
        is_left_out = (is_cut & self._cut(some, rng, device)) | (ends_anywhere & self._ends(some, rng, device))
        is_left_out |= self._gaps(rows, rng)

        column = torch.arange(n, device=device)
        is_flipped = torch.randint(2, (batch_size, 1, 1), generator=rng, device=device) == 1
        pixel = torch.where(is_flipped, column * n + rows, rows * n + column)
        image = torch.full((batch_size, n * n + 1), BLANK, device=device)  # the last takes what is left out
        ink = torch.randint(INK, self.vocab_size, rows.shape, generator=rng, device=device)
        image.scatter_(1, torch.where(is_left_out, n * n, pixel).flatten(1), ink.flatten(1))
        ends = pixel[:, :, :: n - 1].gather(1, dotted.expand(-1, 1, 2)).squeeze(1)
        inputs = F.pad(image.scatter_(1, ends, DOT)[:, :-1], (self.seq_len - n * n, 0), value=PAD)
        targets = torch.full_like(inputs, IGNORE)
        targets[:, -1] = answer.flatten()
        return Batch(inputs, targets)

    def _rows(self, batch_size: int, rng: torch.Generator, device: torch.device) -> Tensor:
        """Draw the row of every path in every column: (batch, n_paths, side).

        Random walks between two walls, sorted in each column: steps remain at most one and the order is fixed. Moving
        the paths apart preserves both.
        """
        room = self.side - 1 - self.spacing * (self.n_paths - 1)
        shape = (batch_size, self.n_paths, self.side)
        steps = torch.randint(4, shape, generator=rng, device=device) // 2  # 0 0 1 1
        steps -= torch.randint(2, shape, generator=rng, device=device)  # a step is straight half of the time
        steps[:, :, 0] = torch.randint(room + 1, shape[:2], generator=rng, device=device)
        walks = room - (steps.cumsum(2) % (2 * room) - room).abs()  # reflected by the walls
        apart = self.spacing * torch.arange(self.n_paths, device=device).unsqueeze(1)
        return walks.sort(dim=1).values + apart

    def _cut(self, some: tuple[int, ...], rng: torch.Generator, device: torch.device) -> Tensor:
        """Draw the pixels that a cut would remove, never the first or the last: (batch, n_paths, side)."""
        start = torch.randint(1, self.side - self.cut, some, generator=rng, device=device)
        column = torch.arange(self.side, device=device)
        return (column >= start) & (column < start + self.cut)

    def _ends(self, some: tuple[int, ...], rng: torch.Generator, device: torch.device) -> Tensor:
        """Draw the pixels before the start and after the end of a path that ends anywhere."""
        middle, column = self.side // 2, torch.arange(self.side, device=device)
        first = torch.randint(middle, some, generator=rng, device=device)
        last = torch.randint(middle, self.side, some, generator=rng, device=device)
        return (column < first) | (column > last)

    def _gaps(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Draw the pixels left out between dashes, only where a path runs straight: (batch, n_paths, side)."""
        period, width = self.dash + self.gap, self.side - self.gap - 1
        phase = torch.randint(period, rows.shape[:2], generator=rng, device=rows.device).unsqueeze(2)
        is_before = (torch.arange(width, device=rows.device) + phase) % period == 0  # the pixel before a gap
        for i in range(1, self.gap + 2):
            is_before = is_before & (rows[:, :, :width] == rows[:, :, i : i + width])
        is_gap = torch.zeros_like(rows, dtype=torch.bool)
        for i in range(1, self.gap + 1):
            is_gap[:, :, i : i + width] |= is_before
        return is_gap

    def baselines(self) -> dict[str, float]:
        return {"chance": 1 / 2}

    def guess(self, baseline: str, inputs: Tensor) -> Tensor:
        if baseline != "chance":
            raise ValueError(f"baseline={baseline} is unknown; choose from: {', '.join(self.baselines())}")
        probabilities = torch.zeros(self.vocab_size, device=inputs.device)
        probabilities[:2] = 1 / 2
        return probabilities

    def oracle(self, inputs: Tensor) -> Tensor:
        """Follow the path from the first dot, column by column."""
        n = self.side
        image = inputs[:, -n * n :].unflatten(1, (n, n))
        is_dot = image == DOT
        runs_right = is_dot[:, :, 0].any(1) & is_dot[:, :, -1].any(1)
        image = torch.where(runs_right.view(-1, 1, 1), image, image.transpose(1, 2))
        reached = [image[:, :, 0] == DOT]  # the rows reached in each column so far
        for column in range(1, n):
            near = reached[-1]
            near = near | F.pad(near, (1, -1)) | F.pad(near, (-1, 1))
            for before in reached[-self.gap - 1 : -1]:
                near = near | before
            reached.append(near & (image[:, :, column] != BLANK))
        answers = torch.zeros_like(inputs)
        answers[:, -1] = (reached[-1] & (image[:, :, -1] == DOT)).any(1)
        return answers
