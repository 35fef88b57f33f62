"""What a run would do, and about how long that takes on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmdistill.report.words import duration

FORWARD_SHARE = 1 / 3
"""Of a step, forward, backward and the gradients of the weights, which cost about the same, the forward pass."""


@dataclass(frozen=True)
class Step:
    """One row of the plan.

    Attributes:
        number: of trainings or sets in all, `left` of them still to do.
        seconds: of one, None where that is not known before.
    """

    name: str
    number: int
    left: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """The steps of a run. `seconds` is what is left to do, without what is not known before.

    Attributes:
        what: is counted: trainings or sets.
    """

    name: str
    run_dir: str
    protocol: str
    what: str
    steps: list[Step]

    @property
    def seconds(self) -> float:
        """Time of all that is left."""
        return sum(step.left * (step.seconds or 0.0) for step in self.steps)

    def lines(self) -> Iterable[str]:
        """The plan in a line; nothing when all is done."""
        left = sum(step.left for step in self.steps)
        if left:
            total = sum(step.number for step in self.steps)
            unknown = [step.name for step in self.steps if step.left and step.seconds is None]
            besides = f", and {', '.join(unknown)}" if unknown else ""
            yield f"{left} of {total} {self.what} to do, about {duration(self.seconds)}{besides} -> {self.run_dir}"
