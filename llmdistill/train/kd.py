"""Transformers' Trainer with the distillation loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from llmdistill.config import Train
from llmdistill.engines.batches import Batch
from llmdistill.signals import TeacherSignal
from llmdistill.signals.distributions import Distribution, Full
from llmdistill.train.finite import check_loss, check_step
from llmdistill.train.forward import add_distillation
from llmdistill.train.losses.mix import Mix
from llmdistill.train.sharing import COUNTED, SharedSteps


class KDTrainer(Trainer):
    """Trains on the sum of the per-token losses over the number of targets of the whole optimiser step.

    The number is that of all micro-batches on all processes, so neither changes what is learnt.

    Args:
        model: the student, with or without PEFT around it.
        teacher: where the teacher's distribution comes from.
    """

    def __init__(
        self, model: PreTrainedModel, *args: Any, teacher: TeacherSignal, settings: Train, **more: Any
    ) -> None:
        add_distillation(model)
        super().__init__(model, *args, **more)
        self.teacher, self.mix = teacher, Mix.of(settings)
        # The trainer must not divide by the number of micro-batches again.
        self.model_accepts_loss_kwargs = True
        self._step_records: list[str] = []

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro-batches of one optimiser step, and how many targets they hold on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_records = [record_id for batch in batches for record_id in batch["student"].record_ids]
        count = sum(len(batch["student"].labels) for batch in batches if batch.get(COUNTED, True))
        return batches, self.accelerator.reduce(torch.tensor(count, device=device), "sum")

    def _prepare_input(self, data: Any) -> Any:
        return data.to(self.args.device) if isinstance(data, Batch) else super()._prepare_input(data)

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """This micro-batch's share of the loss of the step."""
        batch, teacher = inputs["student"], None
        if self.mix.soft_weight:
            teacher = moved(self.teacher.distribution(batch, inputs["asked"]), self.args.device)
        terms = model(batch=batch, teacher=teacher, mix=self.mix)
        check_loss(terms, batch, teacher)
        count = len(batch.labels) if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over the processes; the sum over them is wanted.
        return terms.total / count * self.accelerator.num_processes

    def log(self, logs: dict[str, float], *args: Any, **more: Any) -> None:
        """Stop before a checkpoint is written when the gradient was not finite, though the loss was."""
        check_step(logs, self._step_records)
        super().log(logs, *args, **more)


class SharedKDTrainer(SharedSteps, KDTrainer):
    """Logit distillation whose steps the processes share."""


def moved(distribution: Distribution, device: torch.device) -> Distribution:
    """A distribution with its tensors on `device`; a teacher in memory computes where it is."""
    if isinstance(distribution, Full):
        return distribution
    tensors = {field.name: getattr(distribution, field.name) for field in fields(distribution)}
    there: dict[str, Any] = {
        name: value.to(device) for name, value in tensors.items() if isinstance(value, torch.Tensor)
    }
    return replace(distribution, **there)
