"""What the teacher knows beyond its text: its distribution at every target position.

One seam for every way to know it; a loss does not know which. So far there is
the teacher in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llmdistill.engines.aligned import AlignedBatch

if TYPE_CHECKING:
    import torch


class TeacherSignal(Protocol):
    """The teacher's distribution over the student's vocabulary."""

    def logits(self, batch: AlignedBatch, record_ids: list[str]) -> torch.Tensor:
        """Teacher logits at the batch's target positions: [rows, targets, shared vocabulary].

        The batch holds the prompts as the teacher was asked; its targets are those of the student's batch.
        """
        ...
