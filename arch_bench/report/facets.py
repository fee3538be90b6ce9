"""What gives rows a panel of their own: the task; of a timing, the policy that sets its batch, and the device."""

from __future__ import annotations

from typing import Any, NamedTuple

from arch_bench.results import Kind, Row

TRAINED: frozenset[Kind] = frozenset({"quality", "scan"})
"""Kinds of rows that say how well a model learned; the others say what it costs."""

LARGEST = "largest"
"""The policy under which two series at one length differ in their batch."""
WORDS = {"constant_tokens": "constant tokens per step", "single": "batch 1", LARGEST: "largest batch"}
"""A policy as rows name it -> as a reader does; in reading order."""


class Facet(NamedTuple):
    """What one panel shows, and the widest set of rows that may be compared."""

    task: str
    """Of kernels, the backbone that they are for: they run alone, without a task."""
    batching: str = ""
    """Empty for scores, and for rows from before the policy had a name."""
    device: str = ""
    """Of costs, where they were measured on several."""

    @property
    def title(self) -> str:
        """`mqar, batch 1`."""
        return ", ".join(part for part in (self.task, self.conditions) if part)

    @property
    def conditions(self) -> str:
        """`batch 1, NVIDIA H200`."""
        return ", ".join(part for part in (words(self.batching), self.device) if part)


def settings(row: Row) -> dict[str, Any]:
    """How the phase was set; kernels go by the lengths and batches of `speed`."""
    found = row.config.get("speed" if row.kind == "kernels" else row.kind)
    return found if isinstance(found, dict) else {}


def batching(row: Row) -> str:
    """The policy that was asked for, which a failed row knows too; else the one that is on record."""
    asked = settings(row).get("batching")
    return str(asked or row.metrics.get("batching") or "")


def words(policy: str) -> str:
    return WORDS.get(policy, policy.replace("_", " "))


def place(policy: str) -> tuple[int, str]:
    """Sorts policies: none, then in the order of `WORDS`, then the rest."""
    known = ["", *WORDS]
    return (known.index(policy) if policy in known else len(known)), policy
