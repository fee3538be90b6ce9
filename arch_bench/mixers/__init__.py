"""Sequence mixers: one file per family, all on the contract of `mixers.base`."""
