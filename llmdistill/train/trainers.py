"""SFT and logit KD as trainers of TRL and Transformers.

Both see the same examples in the same order under the same seed; only the loss differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from llmdistill.config import Train
from llmdistill.engines.aligned import IGNORED
from llmdistill.engines.batches import check_packing, pack, pad
from llmdistill.engines.examples import Example
from llmdistill.signals import TeacherSignal
from llmdistill.train.arguments import common_arguments, one_device
from llmdistill.train.kd import KDTrainer, SharedKDTrainer


def sft_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: Train,
    output_dir: Path,
    seed: int,
) -> Trainer:
    """TRL's SFTTrainer on examples that are tokenised and masked already (cross-entropy on the teacher's text)."""
    from trl import SFTConfig

    from llmdistill.train.sft import SharedSFTTrainer

    if settings.packing:
        check_packing(model)
    arguments = SFTConfig(
        **common_arguments(settings, output_dir, seed),
        max_length=None,
        # TRL's own `packing` would choose which examples stand in a batch; this lays out the ones that do.
        packing=False,
        padding_free=settings.packing,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = Dataset.from_list([_row(example) for example in examples])
    return SharedSFTTrainer(
        model, args=one_device(arguments), train_dataset=rows, processing_class=tokenizer, share=settings
    )


def _row(example: Example) -> dict[str, Any]:
    labels = [IGNORED] * len(example.prompt) + example.target
    return {"input_ids": example.prompt + example.target, "labels": labels, "record_id": example.record_id}


def kd_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    teacher: TeacherSignal,
    settings: Train,
    output_dir: Path,
    seed: int,
) -> KDTrainer:
    """Logit distillation on the teacher's distribution over the examples.

    Raises:
        ModelError: `train.packing` is on and the model lets packed examples see each other.
    """
    needs_asked = teacher.needs_batch and settings.soft_weight > 0
    if settings.packing:
        check_packing(model)

    def collate(batch: list[Example]) -> dict[str, Any]:
        lay = pack if settings.packing else lambda examples: pad(examples, tokenizer.pad_token_id)
        asked = lay([example.as_asked() for example in batch]) if needs_asked else None
        return {"student": lay(batch), "asked": asked}

    return SharedKDTrainer(
        model,
        args=one_device(TrainingArguments(**common_arguments(settings, output_dir, seed))),
        train_dataset=examples,
        data_collator=collate,
        processing_class=tokenizer,
        teacher=teacher,
        settings=settings,
        share=settings,
    )
