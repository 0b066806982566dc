"""From values to places along an axis, and the values marked on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Scale", "spread"]


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` laid out along an axis, evenly or by their logarithm."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, wanted: int = 6) -> list[float]:
        """Round values to mark, about so many."""
        return self._log_ticks(wanted) if self.log else _even_ticks(self.low, self.high, wanted)

    def _log_ticks(self, wanted: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1,)):
            marks = [
                mark
                for exponent in range(first, last + 1)
                for step in steps
                if self.low <= (mark := float(f"{step}e{exponent}")) <= self.high
            ]
            if len(marks) <= wanted:
                break
        if len(marks) < 2:
            return _even_ticks(self.low, self.high, wanted)
        return marks[:: math.ceil(len(marks) / wanted)]


def _even_ticks(low: float, high: float, wanted: int) -> list[float]:
    rough = (high - low) / max(1, wanted)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    # Multiples of the step, not sums of it: no rounding adds up.
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def spread(values: Sequence[float], log: bool, margin: float = 0.06) -> Scale:
    """A scale that holds all of these finite values with a margin on both sides."""
    low, high = min(values), max(values)
    if log:
        widest = max(math.log(high / low), math.log(2))
        middle = math.sqrt(low * high)
        factor = math.exp(widest * (0.5 + margin))
        return Scale(middle / factor, middle * factor, log=True)
    widest = max(high - low, abs(high) * 0.02, 1e-12)
    middle = (low + high) / 2
    return Scale(middle - widest * (0.5 + margin), middle + widest * (0.5 + margin))
