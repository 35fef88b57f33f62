"""What the teacher knows beyond its text: its distribution at every target position.

One seam for every way to know it; a loss does not know which: the teacher in memory (`online`), or captured
before (`stage` makes a `store` by `capture` or `capture_vllm`, `stored` reads it). `distributions` are the forms
a distribution comes in, `vocabulary` says whether two models' ids can be compared at all.
"""

from __future__ import annotations

from typing import Protocol

from llmdistill.engines.batches import Batch
from llmdistill.signals.distributions import Distribution


class TeacherSignal(Protocol):
    """The teacher's distribution over the student's vocabulary."""

    def distribution(self, batch: Batch, asked: Batch | None) -> Distribution:
        """The distribution at all target positions of a batch, in their order.

        Args:
            batch: the records as the student reads them.
            asked: the records as the teacher was asked, its template included, with the targets of the
                student's batch; None where `needs_batch` is false.
        """
        ...

    @property
    def needs_batch(self) -> bool:
        """Whether the teacher has to read the text again."""
        ...
