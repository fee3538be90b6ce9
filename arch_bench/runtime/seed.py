"""Seeds of any size for generators that read only 32 bits."""

from __future__ import annotations

import hashlib

BITS = 32
"""Bits that PyTorch's CPU generator reads of its seed, and the most that NumPy's RandomState accepts."""


def narrow(*parts: int) -> int:
    """Return a 32-bit seed: a single number if it fits, else a hash of all parts.

    Generators ignore the upper bits: the seeds 1 and 1 + 2**40 would give the same weights.
    """
    if len(parts) == 1 and parts[0] < 1 << BITS:
        return parts[0]
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=BITS // 8).digest()
    return int.from_bytes(digest, "big")
