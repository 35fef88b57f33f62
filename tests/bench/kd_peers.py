"""Distillation steps as other tools take them, beside which `bench_kd` puts ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from llmdistill.train.arguments import common_arguments, one_device

Examples = list[Any]


def gkd_trainer(
    student: Any, teacher: Any, tokenizer: Any, examples: Examples, settings: Any, folder: Path, beta: float
) -> Any:
    """TRL's experimental trainer, on given text alone (lmbda 0); beta 0 is forward KL, 1 reverse, 0.5 JSD."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = [
        {"input_ids": each.prompt + each.target, "labels": [-100] * len(each.prompt) + each.target} for each in examples
    ]
    arguments = GKDConfig(
        **common_arguments(settings, folder, 0), max_length=None, lmbda=0.0, beta=beta, temperature=1.0
    )
    return GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=one_device(arguments),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


class DenseTopKTrainer(Trainer):
    """Stored top-k as DistillKit 0.1 trains on it (`distillkit/trainer.py`, `lossfuncs/kl.py`).

    The student's logits of every position are made and kept, its own cross-entropy with them, then one log-sum-exp over
    the vocabulary and a gather; `missing: zero`, so what is stored is normalised. Reading and decompressing stored
    signals, which DistillKit does in each step, is left out.
    """

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        ids, log_probs = inputs.pop("ids"), inputs.pop("log_probs")
        outputs = model(**inputs)
        found = outputs.logits.gather(-1, ids) - outputs.logits.logsumexp(-1, keepdim=True)
        taught = log_probs.log_softmax(-1)
        divergence = (taught.exp() * (taught - found)).sum(-1)
        mask = inputs["labels"] >= 0
        hard = self.args.hard_weight
        loss = (1 - hard) * (divergence * mask).sum() / mask.sum() + hard * outputs.loss
        return (loss, outputs) if return_outputs else loss


def dense_topk_trainer(student: Any, examples: Examples, settings: Any, folder: Path, k: int, vocabulary: int) -> Any:
    """See `DenseTopKTrainer`; what the signals say does not matter for the cost."""
    arguments = one_device(TrainingArguments(**common_arguments(settings, folder, 0)))
    arguments.hard_weight = settings.hard_weight
    draw = torch.Generator().manual_seed(0)

    def collate(batch: Examples) -> dict[str, torch.Tensor]:
        tokens = torch.tensor([each.prompt + each.target for each in batch])
        labels = torch.tensor([[-100] * len(each.prompt) + each.target for each in batch])
        shape = (*tokens.shape, k)
        return {
            "input_ids": tokens,
            "labels": labels,
            "ids": torch.randint(vocabulary, shape, generator=draw),
            "log_probs": torch.randn(shape, generator=draw).log_softmax(-1),
        }

    return DenseTopKTrainer(student, arguments, train_dataset=examples, data_collator=collate)
