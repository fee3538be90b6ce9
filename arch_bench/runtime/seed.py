"""Seeds of any size for generators that read 32 bits of one."""

from __future__ import annotations

import hashlib

BITS = 32
"""What PyTorch's generator on a CPU reads of its seed, and NumPy's of RandomState at most."""


def narrow(*parts: int) -> int:
    """Return a seed of 32 bits: one number that has no more as it is, else a hash of all of every part.

    A generator would leave out the upper bits: the seeds 1 and 1 + 2**40 would give the same weights.
    """
    if len(parts) == 1 and parts[0] < 1 << BITS:
        return parts[0]
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=BITS // 8).digest()
    return int.from_bytes(digest, "big")
