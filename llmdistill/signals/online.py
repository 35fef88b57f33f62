"""The teacher in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmdistill.engines.batches import Batch, check_packing, target_hidden
from llmdistill.signals.distributions import Full, head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OnlineTeacher:
    """Runs the teacher on each batch, without gradients.

    Args:
        model: the teacher.
        vocab_size: number of leading ids that both models share.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        self.model, self.vocab_size = model, vocab_size
        self._packing_checked = False

    @property
    def needs_batch(self) -> bool:
        """It reads the text."""
        return True

    def distribution(self, batch: Batch, asked: Batch | None) -> Full:
        """The teacher's hidden states at the batch's targets, with its output layer.

        Raises:
            ModelError: the batch is packed and the teacher lets packed examples see each other.
        """
        import torch

        assert asked is not None
        if asked.attention_mask is None and not self._packing_checked:
            check_packing(self.model)
            self._packing_checked = True
        with torch.no_grad():
            return Full(target_hidden(self.model, asked), head_of(self.model), self.vocab_size)
