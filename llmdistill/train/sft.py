"""TRL's SFTTrainer, which names the records when a loss is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from trl import SFTTrainer

from llmdistill.train.finite import check_step
from llmdistill.train.sharing import SharedSteps


class NamedSFTTrainer(SFTTrainer):
    """SFT on rows of `input_ids`, `labels` and `record_id`."""

    data_collator: Callable[..., dict[str, Any]]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        # TRL takes no other collator where it lays examples end to end, so its own is wrapped.
        self._collate, self.data_collator = self.data_collator, self._collate_named
        self._step_records: list[str] = []

    def _collate_named(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._collate(rows), "record_ids": [row["record_id"] for row in rows]}

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of one optimiser step, and how many targets they hold on all processes."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_records = [record_id for batch in batches for record_id in batch["record_ids"]]
        return batches, count

    def compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any], *args: Any, **more: Any) -> torch.Tensor:
        """TRL's loss."""
        record_ids = inputs.pop("record_ids")
        loss = super().compute_loss(model, inputs, *args, **more)
        check_step({"loss": loss.item()}, record_ids)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **more: Any) -> None:
        """Stop before a checkpoint is written when the gradient was not finite, though the loss was."""
        check_step(logs, self._step_records)
        super().log(logs, *args, **more)


class SharedSFTTrainer(SharedSteps, NamedSFTTrainer):
    """TRL's SFT whose steps the processes share."""
