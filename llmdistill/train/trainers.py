"""SFT and logit KD as trainers of TRL and Transformers.

Both see the same examples in the same order under the same seed; only the loss differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from llmdistill.config import Train
from llmdistill.engines.aligned import IGNORED
from llmdistill.engines.batches import Batch, pack, pad, target_hidden
from llmdistill.engines.examples import Example
from llmdistill.engines.models import choose_device, choose_dtype
from llmdistill.errors import StageError
from llmdistill.signals import TeacherSignal
from llmdistill.signals.distributions import head_of
from llmdistill.train.losses.mix import Mix, Terms, distillation_loss


def _arguments(settings: Train, output_dir: Path, seed: int) -> dict[str, Any]:
    """Arguments that SFT and KD share. Nothing is reported or pushed anywhere."""
    device = choose_device(settings.device)
    return {
        "output_dir": str(output_dir),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": settings.keep_checkpoints,
        "logging_steps": 1,
        "seed": seed,
        "data_seed": seed,
        "bf16": settings.dtype == "auto" and choose_dtype("auto", device) == torch.bfloat16,
        "fp16": False,
        "gradient_checkpointing": False,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": "none",
        "push_to_hub": False,
    }


def sft_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: Train,
    output_dir: Path,
    seed: int,
) -> Trainer:
    """TRL's SFTTrainer on examples that are tokenised and masked already (cross-entropy on the teacher's text)."""
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": example.prompt + example.target, "labels": [IGNORED] * len(example.prompt) + example.target}
        for example in examples
    ]
    arguments = SFTConfig(
        **_arguments(settings, output_dir, seed),
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return SFTTrainer(model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


class KDTrainer(Trainer):
    """Transformers' Trainer with the distillation loss.

    Args:
        teacher: where the teacher's distribution comes from.
    """

    def __init__(self, *args: Any, teacher: TeacherSignal, settings: Train, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher, self.mix = teacher, Mix.of(settings)
        # The loss is divided by the number of targets in all micro-batches, so the trainer must not divide again.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro-batches of one optimiser step, and how many targets they hold on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(len(batch["student"].labels) for batch in batches), device=device)
        return batches, self.accelerator.reduce(count, "sum")

    def _prepare_input(self, data: Any) -> Any:
        return data.to(self.args.device) if isinstance(data, Batch) else super()._prepare_input(data)

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum of the per-token losses over the number of targets of the whole optimiser step."""
        batch = inputs["student"]
        teacher = self.teacher.distribution(batch.record_ids, inputs["asked"])
        terms = distillation_loss(target_hidden(model, batch), head_of(model), batch.labels, teacher, self.mix)
        _stop_unless_finite(terms, batch)
        count = len(batch.labels) if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over the processes; the sum over them is wanted.
        return terms.total / count * self.accelerator.num_processes


def _stop_unless_finite(terms: Terms, batch: Batch) -> None:
    for name, values in (("soft", terms.soft), ("hard", terms.hard)):
        if values is not None and not torch.isfinite(values).all():
            wrong = (~torch.isfinite(values)).nonzero()[:, 0].tolist()
            records = ", ".join(dict.fromkeys(map(batch.record_of, wrong)))
            raise StageError(f"the {name} term of the loss is not finite for {records}")


def kd_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    teacher: TeacherSignal,
    settings: Train,
    output_dir: Path,
    seed: int,
) -> KDTrainer:
    """Logit distillation on the teacher's distribution over the examples."""

    def collate(batch: list[Example]) -> dict[str, Any]:
        lay = pack if settings.packing else lambda examples: pad(examples, tokenizer.pad_token_id)
        asked = lay([example.as_asked() for example in batch]) if teacher.needs_batch else None
        return {"student": lay(batch), "asked": asked}

    return KDTrainer(
        model,
        args=TrainingArguments(**_arguments(settings, output_dir, seed)),
        train_dataset=examples,
        data_collator=collate,
        processing_class=tokenizer,
        teacher=teacher,
        settings=settings,
    )
