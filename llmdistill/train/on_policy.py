"""On-policy distillation: the student answers, and learns from the teacher's distribution over its own answers.

TRL's DistillationTrainer does it (generalised knowledge distillation, arXiv 2306.13649, with every answer the
student's own). It reads the prompts of the curated records; the answers kept in them are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DistillationConfig, DistillationTrainer

from llmdistill.config import Train
from llmdistill.engines.examples import Example
from llmdistill.engines.models import ModelSource, load_model, load_tokenizer
from llmdistill.engines.quantize import Bits
from llmdistill.errors import ConfigError, ModelError
from llmdistill.signals.vocabulary import compare, require_shared
from llmdistill.templates import TeacherTemplate
from llmdistill.train.arguments import common_arguments, one_device
from llmdistill.train.finite import check_step
from llmdistill.train.sharing import divided

_PROBE = "x"


def check_on_policy(settings: Train, template: TeacherTemplate, template_name: str) -> None:
    """Refuse what on-policy training cannot do.

    Raises:
        ConfigError: a divergence TRL does not have, a term or a layout it has no place for, a step that the processes
            cannot share evenly, or a teacher that is asked otherwise than the student: both read the same tokens.
    """
    beta_of(settings)
    unwanted = (
        ("soft_weight", settings.soft_weight != 1.0, "set it to 1: there is no other term to weigh it against"),
        ("hard_weight", settings.hard_weight != 0.0, "set it to 0: the student's own answers are no labels"),
        ("packing", settings.packing, "set it to false: the answers are not there yet when a batch is laid out"),
        ("cross_tokenizer", settings.cross_tokenizer != "refuse", "remove it: both models read the same tokens"),
    )
    for key, is_set, advice in unwanted:
        if is_set:
            raise ConfigError(f"train.method on_policy has no {key}", where=f"train.{key}", do=advice)
    _check_shares(settings)
    bare = [{"role": "user", "content": _PROBE}]
    if template.ask(bare) != bare:
        raise ConfigError(
            "train.method on_policy asks the teacher with the student's own prompt, and this prompt file changes it",
            where=template_name,
            do="set generate.mode: answer or a template that is only {{ prompt }}, or use train.method: kd",
        )


def _check_shares(settings: Train) -> None:
    """TRL gives every process the same number of prompts."""
    step, (batch, passes) = settings.batch_size * settings.gradient_accumulation, divided(settings)
    if batch * passes * settings.num_processes != step:
        raise ConfigError(
            f"train.method on_policy cannot share a step of {step} prompts evenly: {settings.num_processes} processes, "
            f"{passes} passes of {batch}",
            where="train.num_processes",
            do="change train.batch_size or train.gradient_accumulation",
        )


def beta_of(settings: Train) -> float:
    """TRL's name for the divergence: 0 is forward KL, 1 reverse KL, between them the teacher's share in the JSD.

    Raises:
        ConfigError: TRL does not have it.
    """
    betas = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": settings.jsd_beta}
    if settings.divergence not in betas:
        raise ConfigError(
            f"train.method on_policy has no divergence {settings.divergence}",
            where="train.divergence",
            do=f"there are: {', '.join(betas)}",
        )
    return betas[settings.divergence]


def load_teacher(
    source: ModelSource,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    device: str,
    quantize: Bits | None = None,
) -> PreTrainedModel:
    """The teacher with an output layer of the student's size; the rows cut off are padding that no token maps to.

    Raises:
        ModelError: the ids mean other tokens, or the student's output layer is the larger one.
    """
    rows = student.get_output_embeddings().weight.shape[0]
    teacher = load_model(source, dtype, device, quantize)
    teacher_rows = teacher.get_output_embeddings().weight.shape[0]
    shared = require_shared(compare(load_tokenizer(source), tokenizer, teacher_rows, rows), source.name)
    if shared < rows:
        raise ModelError(
            f"the student's output layer has {rows:,} ids, of which it shares {shared:,} with the teacher",
            where=source.name,
            do="use train.method: kd, which compares the shared ones",
        )
    if rows < teacher_rows:
        teacher.resize_token_embeddings(rows, mean_resizing=False)
    return teacher


class EpochOrder(Sampler[int]):
    """Rows in an order that seed and epoch alone decide, each batch of them `repeats` times in a row.

    TRL's own sampler goes on from epoch to epoch, so that a resumed run would begin with the first epoch's prompts;
    and it leaves out an incomplete last batch, which is filled up here with the first rows of the order.
    """

    def __init__(self, num_rows: int, batch: int, repeats: int, seed: int) -> None:
        self.num_rows, self.batch, self.repeats, self.seed, self.epoch = num_rows, batch, repeats, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch) * self.batch * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        filled = cycle(order)
        for _ in range(len(self) // (self.batch * self.repeats)):
            yield from list(islice(filled, self.batch)) * self.repeats


class OnPolicyTrainer(DistillationTrainer):
    """TRL's trainer on rows of `prompt`, token ids in which no text has become a control token, and `record_id`."""

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochOrder:
        repeats = self.args.gradient_accumulation_steps
        batch = self.args.per_device_train_batch_size * self.accelerator.num_processes * repeats
        return EpochOrder(len(self.train_dataset), batch, repeats, self.args.seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The rows of one optimiser step, once for each of its micro-batches."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_records = [row["record_id"] for row in batches[0]]
        return batches, count

    def compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
        """TRL's loss, if it is a number."""
        loss = super().compute_loss(model, inputs, *args, **more)
        check_step({"loss": loss.item()}, self._step_records, "soft")
        return loss

    def log(self, logs: dict[str, float], *args: Any, **more: Any) -> None:
        """Stop before a checkpoint is written when the gradient was not finite, though the loss was."""
        check_step(logs, self._step_records, "soft")
        super().log(logs, *args, **more)


def on_policy_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    teacher: PreTrainedModel,
    settings: Train,
    output_dir: Path,
    seed: int,
) -> OnPolicyTrainer:
    """Train on answers of at most `settings.max_new_tokens` tokens, sampled anew in every epoch.

    `settings.temperature` is the one of sampling and of both distributions in the loss, which TRL does not multiply
    by its square.

    Args:
        teacher: as `load_teacher` gives it.

    Raises:
        ModelError: TRL refuses the models (an adapter on the output layer, for one).
    """
    arguments = DistillationConfig(
        **common_arguments(settings, output_dir, seed),
        beta=beta_of(settings),
        temperature=settings.temperature,
        max_completion_length=settings.max_new_tokens,
    )
    rows = Dataset.from_list([{"prompt": example.prompt, "record_id": example.record_id} for example in examples])
    try:
        return OnPolicyTrainer(
            model, teacher, args=one_device(arguments), train_dataset=rows, processing_class=tokenizer
        )
    except ValueError as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"on-policy training refuses these models ({first})", do="see train.lora") from error
