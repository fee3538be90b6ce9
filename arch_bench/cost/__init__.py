"""Costs of one cell: training steps, decoding and single kernels."""
