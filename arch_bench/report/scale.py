"""Heights in a panel as values, and values as heights."""

from __future__ import annotations

import math


class Scale:
    """Shares of a panel's height <-> values, on a linear or a log axis."""

    def __init__(self, low: float, high: float, is_log: bool) -> None:
        self.is_log = is_log
        self.low, self.high = self._to(low), self._to(high)

    def at(self, share: float) -> float:
        position = self.low + share * (self.high - self.low)
        return 10.0**position if self.is_log else position

    def share(self, value: float) -> float:
        return (self._to(value) - self.low) / (self.high - self.low)

    def _to(self, value: float) -> float:
        return math.log10(value) if self.is_log else value
