"""Patterns of causal attention: the earlier positions that a position sees, by arithmetic, never as a matrix.

Legend: N blocks, S positions per block, W blocks of keys that a block of queries meets, R blocks picked at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Pattern(Protocol):
    """Pattern described twice: coarsely by blocks and exactly by a rule for pairs. A tuple of numbers (or tensors)."""

    def __hash__(self) -> int: ...

    def __iter__(self) -> Iterator[int]: ...

    @property
    def block(self) -> int:
        """Positions per block, S."""

    def picks(self, n_blocks: int) -> Tensor:
        """Return (N, R) blocks picked at random for each block of queries, -1 if it has none."""

    def table(self, picks: Tensor) -> Tensor:
        """Return (N, W) key blocks that each block of queries meets, each once, -1 for none; W is constant."""

    def visible(self, h: Tensor, i: Tensor, j: Tensor, picks: Tensor) -> Tensor:
        """Return True if in head h the query at i sees the key at j; the arguments broadcast."""


def n_band_pairs(n: int, reach: int) -> int:
    """Count the pairs in a causal band: the sum over t < n of min(reach, t + 1)."""
    reach = min(n, reach)
    return reach * (2 * n - reach + 1) // 2


def behind(n_blocks: int, distance: int) -> Tensor:
    """Return (N, distance + 1): each block and those up to `distance` before it, -1 for none."""
    which = torch.arange(n_blocks)[:, None] - torch.arange(distance + 1)
    return which.clamp(min=-1)


class WindowGlobalRandom(NamedTuple):
    """Pattern of the last `window` positions, the first `n_global`, and `n_random` earlier blocks per query block.

    The window moves by `grain` positions at once, and ends where they end: 1, or whole blocks. A random block is none
    that the window or the global positions touch; what block c picks depends on c and `seed` alone, so that a longer
    sequence keeps the choices of a shorter one.
    """

    block: int
    window: int
    n_global: int
    n_random: int = 0
    seed: int = 0
    grain: int = 1

    def _near(self) -> int:
        """Return the number of blocks before its own that the window of a block touches."""
        return -((self.grain - self.window) // self.block)

    def _first(self) -> int:
        """Return the number of blocks that hold the global positions."""
        return -(-self.n_global // self.block)

    def picks(self, n_blocks: int) -> Tensor:
        """Draw without replacement: the r-th pick counts the blocks that are not picked yet."""
        rng = torch.Generator().manual_seed(self.seed)
        draws = torch.rand(n_blocks, self.n_random, generator=rng, dtype=torch.float64)
        n_there = torch.arange(n_blocks) - self._near() - self._first()
        picked = torch.empty(n_blocks, 0, dtype=torch.long)
        for r, draw in enumerate(draws.unbind(1)):
            pick = (draw * (n_there - r)).long()
            for earlier in picked.sort(-1).values.unbind(1):
                pick = pick + (pick >= earlier)
            picked = torch.cat((picked, pick.where(n_there > r, n_blocks)[:, None]), 1)
        return (picked + self._first()).where(picked < n_blocks, -1)

    def table(self, picks: Tensor) -> Tensor:
        near, n = behind(len(picks), self._near()), len(picks)
        first = torch.arange(self._first()).repeat(n, 1)
        first = first.where(first < torch.arange(n)[:, None] - self._near(), -1)
        return torch.cat((first, near, picks), 1)

    def visible(self, h: Tensor, i: Tensor, j: Tensor, picks: Tensor) -> Tensor:
        end = i // self.grain * self.grain + self.grain - 1
        seen = (end - j < self.window) | (j < self.n_global)
        for r in range(picks.shape[1]):
            seen = seen | (picks[i // self.block, r] == j // self.block)
        return seen & (i >= j)

    def n_pairs(self, n: int) -> int:
        """Count the visible pairs among n positions."""
        i = torch.arange(n, device="cpu")
        near = (i + 1).clamp(max=self.window - self.grain + 1 + i % self.grain)
        beyond = (i + 1 - near).clamp(max=self.n_global)  # the global positions that have left the window
        picked = self.block * (i // self.block - self._near() - self._first()).clamp(0, self.n_random)
        return int((near + beyond + picked).sum())


class Stairs(NamedTuple):
    """Pattern in which head h sees the last h + 1 positions, its own included."""

    block: int
    n_heads: int

    def picks(self, n_blocks: int) -> Tensor:
        return torch.empty(n_blocks, 0, dtype=torch.long)

    def table(self, picks: Tensor) -> Tensor:
        return behind(len(picks), -(-(self.n_heads - 1) // self.block))

    def visible(self, h: Tensor, i: Tensor, j: Tensor, picks: Tensor) -> Tensor:
        return (i - j <= h) & (i >= j)


@torch.compiler.assume_constant_result
def tables(pattern: Pattern, n_blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return `pattern.table` and `pattern.picks` for a number of blocks, built once."""
    return _kept_tables(pattern, n_blocks, device)


@cache
@torch.inference_mode(False)  # the first call may come from a test, the next from training
def _kept_tables(pattern: Pattern, n_blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.device("cpu"):
        picks = pattern.picks(n_blocks)
        table = pattern.table(picks)
    return table.to(device), picks.to(device)


@torch.compiler.assume_constant_result
def numbers(pattern: Pattern, device: torch.device) -> tuple[Tensor, ...]:
    """Return the numbers of a pattern as tensors, in their order."""
    return _kept_numbers(pattern, device)


@cache
@torch.inference_mode(False)
def _kept_numbers(pattern: Pattern, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(number, device=device) for number in pattern)


@torch.compiler.assume_constant_result
def tiles(pattern: Pattern, n: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut the table of a pattern on n positions into tiles of `size` positions: both ways, as flex reads it.

    Returns how many tiles of keys each tile of queries meets (N,) and which (N, W), in ascending order; then the same
    from the keys' side, where a row is as wide as the most queries that meet one tile: N for global positions.
    """
    return _kept_tiles(pattern, n, size, device)


@cache
@torch.inference_mode(False)
def _kept_tiles(pattern: Pattern, n: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.device("cpu"):
        table = pattern.table(pattern.picks(-(-n // pattern.block)))
        which = recut(table, pattern.block, -(-n // size), size)
        found = (*_counted(which), *_counted(_turned(which)))
    a, b, c, d = (each.int().to(device) for each in found)
    return a, b, c, d


def recut(table: Tensor, block: int, n_tiles: int, size: int) -> Tensor:
    """Cut (N, W) blocks of `block` positions into (n_tiles, width) tiles of `size`: ascending, unique, then n_tiles."""
    own = torch.arange(n_tiles)[:, None]
    rows = own * size // block + torch.arange((size - 1) // block + 2)  # blocks of queries that may touch a tile
    is_there = (rows < len(table)) & (rows * block < (own + 1) * size)
    met = table[rows.clamp(max=len(table) - 1)].where(is_there[..., None], -1).flatten(1)[..., None]
    which = met * block // size + torch.arange((block - 1) // size + 2)  # tiles that a block of keys may touch
    is_met = (met >= 0) & (which * size < (met + 1) * block) & (which <= own[..., None])
    which = which.where(is_met, n_tiles).flatten(1).sort(-1).values
    which[:, 1:].masked_fill_(which[:, 1:] == which[:, :-1], n_tiles)
    which = which.sort(-1).values
    return which[:, : int((which < n_tiles).sum(-1).max())]


def _turned(which: Tensor) -> Tensor:
    """Transpose the pairs: for each key tile the query tiles, ascending, then len(which)."""
    n = len(which)
    queries, slots = (which < n).nonzero(as_tuple=True)
    keys, order = which[queries, slots].sort(stable=True)
    counts = keys.bincount(minlength=n)
    ranks = torch.arange(len(keys)) - (counts.cumsum(0) - counts)[keys]
    turned = torch.full((n, int(counts.max())), n)
    turned[keys, ranks] = queries[order]
    return turned


def _counted(which: Tensor) -> tuple[Tensor, Tensor]:
    n = len(which)
    return (which < n).sum(-1), which.clamp(max=n - 1)
