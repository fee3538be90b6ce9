"""Costs of one cell: a training step, decoding, single kernels."""
