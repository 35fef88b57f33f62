"""What a run may spend: every call is weighed before it is made.

A call counts with the most it could take until its answer says what it took. So no call is made that
could exceed the budget; when the next one could, those in flight are waited for first.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path

from llmdistill.config import Budget
from llmdistill.errors import BudgetError


@dataclass(frozen=True)
class Spend:
    """Tokens read and written, and US dollars."""

    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Spend) -> Spend:
        return Spend(self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: Spend) -> Spend:
        return Spend(self.tokens - other.tokens, self.cost - other.cost)


class Purse:
    """The budget of a run and what has been taken from it. Safe to use from several threads.

    Attributes:
        spent: what finished calls took, those of earlier processes included.
    """

    def __init__(self, limits: Budget, spent: Spend = Spend()) -> None:
        self.limits, self.spent = limits, spent
        self._reserved = Spend()
        self._lock = threading.Lock()

    @property
    def unlimited(self) -> bool:
        """Whether there is no limit to keep."""
        return self.limits.max_cost is None and self.limits.max_tokens is None

    def reserve(self, most: Spend) -> bool:
        """Set aside what a call could take; False when that does not fit beside what is set aside already."""
        with self._lock:
            after = self.spent + self._reserved + most
            if self._exceeds(after):
                return False
            self._reserved += most
            return True

    def settle(self, most: Spend, taken: Spend) -> None:
        """A call that `most` was set aside for has taken this."""
        with self._lock:
            self._reserved -= most
            self.spent += taken

    def check(self, most: Spend) -> None:
        """Raise `BudgetError` when a call that could take this much does not fit although none is in flight."""
        self._reserved = Spend()
        if self._exceeds(self.spent + most):
            raise BudgetError(self._message(most), do="raise the limit, and the same command goes on where it stopped")

    def _exceeds(self, spend: Spend) -> bool:
        max_cost, max_tokens = self.limits.max_cost, self.limits.max_tokens
        too_dear = max_cost is not None and spend.cost > max_cost + 1e-12
        return too_dear or (max_tokens is not None and spend.tokens > max_tokens)

    def _message(self, most: Spend) -> str:
        parts = []
        if self.limits.max_cost is not None:
            parts.append(f"${self.spent.cost:,.4f} of ${self.limits.max_cost:,.4f}")
        if self.limits.max_tokens is not None:
            parts.append(f"{self.spent.tokens:,} of {self.limits.max_tokens:,} tokens")
        could = f"${most.cost:,.4f} and {most.tokens:,} tokens" if most.cost else f"{most.tokens:,} tokens"
        return f"the budget is reached: {' and '.join(parts)} spent, the next call could take {could}"


def spent_in(run_dir: Path) -> Spend:
    """What a run has spent so far, from the journals of its stages, whether or not the answers are still used."""
    total = Spend()
    for path in sorted(run_dir.glob("*/journal/*.jsonl")):
        with open(path, "rb") as handle:
            for line in handle:
                total += _spend_of(line)
    return total


def _spend_of(line: bytes) -> Spend:
    try:
        row = json.loads(line)
        tokens = int(row.get("prompt_tokens", 0)) + int(row.get("completion_tokens", 0))
        return Spend(tokens, float(row.get("cost") or 0.0))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Spend()
