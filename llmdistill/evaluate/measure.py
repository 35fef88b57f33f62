"""How far a model is from its teacher on given texts.

Sums are kept per record, so that means are over tokens and intervals over records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmdistill.engines.aligned import align, target_logits
from llmdistill.engines.base import Completion
from llmdistill.engines.models import ModelSource, load_model, load_tokenizer, render_prompt
from llmdistill.evaluate.answers import Contestant
from llmdistill.record import Record
from llmdistill.run.failpoint import failpoint
from llmdistill.run.journal import Journal
from llmdistill.run.progress import progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

KINDS = ("teacher_text", "human_text")
"""Texts measured on: the teacher's greedy answers, and the references of the data."""

Sums = dict[str, float]
Distances = dict[str, dict[str, dict[str, Sums]]]
"""record id -> kind of text -> role -> sums over the record's target tokens (kl and ce in nats, top1, tokens)."""

_RESAMPLES = 1000
_MAX_TARGET = 512


def measure(
    records: list[Record],
    teacher_replies: Mapping[str, Completion],
    contestants: Mapping[str, Contestant],
    sources: Mapping[str, ModelSource],
    journal: Journal,
) -> Distances:
    """Score every model whose weights are here on the same texts. A kill costs one record.

    Without the teacher's weights there is no distance to it, only each student's cross-entropy.
    """
    owed = [record for record in records if record.id not in journal]
    if owed:
        settings = contestants["student"].settings
        models = {role: load_model(source, settings.dtype, settings.device) for role, source in sources.items()}
        tokenizer = load_tokenizer(sources["student"])
        with progress("measure", len(records), len(records) - len(owed)) as bar:
            for record in owed:
                texts = {"teacher_text": teacher_target(record, teacher_replies[record.id], tokenizer)}
                if record.reference and record.reference.strip():
                    texts["human_text"] = target_ids(record.reference.strip(), tokenizer)
                prompts = {
                    role: render_prompt(tokenizer, who.messages(record))
                    for role, who in contestants.items()
                    if role in models
                }
                sums = {kind: sums_of(models, prompts, ids, tokenizer.pad_token_id) for kind, ids in texts.items()}
                journal.append(record.id, sums=sums)
                failpoint("evaluate.after_record")
                bar.advance()
    journal.commit()
    return {record.id: journal[record.id]["sums"] for record in records}


def target_ids(text: str, tokenizer: Any) -> list[int]:
    """Ids of a text to be scored, at most `_MAX_TARGET` of them, and the end token."""
    ids = tokenizer.encode(text, add_special_tokens=False)[:_MAX_TARGET]
    return [*ids, tokenizer.eos_token_id]


def teacher_target(record: Record, reply: Completion, tokenizer: Any) -> list[int]:
    """The teacher's answer; without an end token where the teacher did not come to one."""
    target = target_ids(reply.text.strip(), tokenizer)
    return target if reply.finish_reason == "stop" else target[:-1]


def sums_of(
    models: Mapping[str, PreTrainedModel], prompts: Mapping[str, list[int]], target: list[int], pad_id: int
) -> dict[str, Sums]:
    """Each model's sums over one target, every model asked in its own way."""
    import torch

    logits = {}
    with torch.inference_mode():
        for role, model in models.items():
            batch = align([prompts[role]], [target], pad_id, model.device)
            logits[role] = target_logits(model, batch)[0].float()
    return {role: distances(own, logits.get("teacher"), batch.labels[0]) for role, own in logits.items()}


def distances(logits: torch.Tensor, teacher_logits: torch.Tensor | None, labels: torch.Tensor) -> Sums:
    """KL(teacher || model), agreement of the likeliest token and cross-entropy, summed over tokens.

    Args:
        logits: [tokens, vocabulary] of the model.
        teacher_logits: [tokens, vocabulary]; vocabularies padded to different sizes are cut to the shared ids.
            Without them there is only the cross-entropy.
        labels: [tokens] ids of the text.
    """
    cross_entropy = float(-logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).sum())
    sums = {"ce": cross_entropy, "tokens": float(len(labels))}
    if teacher_logits is None:
        return sums
    shared = min(logits.shape[-1], teacher_logits.shape[-1])
    own, teacher = logits[:, :shared].log_softmax(-1), teacher_logits[:, :shared].log_softmax(-1)
    kl = float((teacher.exp() * (teacher - own)).sum())
    return sums | {"kl": kl, "top1": float((own.argmax(-1) == teacher.argmax(-1)).sum())}


def weigh(sums: Sequence[Sums], name: str, seed: int = 0) -> dict[str, float] | None:
    """Mean over tokens with its 95 % bootstrap interval over records; None when there is nothing to weigh."""
    values, counts = np.array([row[name] for row in sums]), np.array([row["tokens"] for row in sums])
    if not len(sums) or counts.sum() == 0:
        return None
    draws = np.random.default_rng(seed).integers(0, len(sums), (_RESAMPLES, len(sums)))
    means = values[draws].sum(1) / np.maximum(counts[draws].sum(1), 1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values.sum() / counts.sum()), "low": float(low), "high": float(high)}
