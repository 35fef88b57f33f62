"""Where things lie in the charts of report pages; the templates draw them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 300.0, 150.0
"""Of a chart's drawing area, in units of its view box."""


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, with round ticks in it."""

    low: float
    high: float
    ticks: list[float]

    def place(self, value: float, length: float) -> float:
        """Where a value lies on a line of a length."""
        share = (value - self.low) / (self.high - self.low)
        return round(length * min(max(share, 0.0), 1.0), 2)


def axis_of(values: Sequence[float], num_ticks: int = 5) -> Axis:
    """A scale that holds all values, its ends at ticks."""
    low, high = min(values), max(values)
    step = _round_up(max(high - low, 1e-3) / num_ticks)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return Axis(first * step, last * step, [round(number * step, 6) for number in range(first, last + 1)])


def _round_up(size: float) -> float:
    """The next of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size * (1 - 1e-9))
