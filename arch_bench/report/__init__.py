"""Rows -> a folder with one self-contained page, the same in Markdown, figures and a CSV. Imports no torch."""

from arch_bench.report.folder import build, place
from arch_bench.report.terminal import summary

__all__ = ["build", "place", "summary"]
