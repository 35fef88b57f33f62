"""From records to token ids: what the student reads, and what it is trained to write.

The loss is on the assistant's tokens only, the token that ends its turn
included; whatever the chat template puts after that is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmdistill.engines.models import render, render_prompt
from llmdistill.record import Record, Reject
from llmdistill.templates import TeacherTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Example:
    """One record as token ids: no loss on `prompt`, loss on every token of `target`.

    `teacher_prompt` is the prompt as the teacher was asked, its template included: the
    student learns to do unasked what the teacher does when asked (context distillation,
    arXiv 2209.15189). It is empty where the teacher's distribution is not needed.
    """

    record_id: str
    prompt: list[int]
    target: list[int]
    teacher_prompt: list[int] = field(default_factory=list)

    def as_asked(self) -> Example:
        """The same target after the prompt as the teacher was asked."""
        return replace(self, prompt=self.teacher_prompt or self.prompt)


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a record cannot be trained on."""

    reason: str
    detail: str


def encode(
    record: Record,
    tokenizer: PreTrainedTokenizerBase,
    end_tokens: Sequence[int],
    max_length: int,
    template: TeacherTemplate | None = None,
) -> Example | Unusable:
    """Render a record through the chat template.

    Args:
        end_tokens: ids that end the assistant's turn; the first is used where the template has none.
        max_length: longest sequence, prompt and target together, in tokens.
        template: how the teacher was asked, where its distribution is to be learned.
    """
    prompt = render_prompt(tokenizer, record.prompt)
    messages = [*record.prompt, *record.completion]
    whole = render(tokenizer, messages, add_generation_prompt=False)
    if whole[: len(prompt)] != prompt:
        return Unusable("template_mismatch", "the template renders the prompt otherwise when an answer follows")
    target = _until_end(whole[len(prompt) :], end_tokens)
    if record.reply.strip() not in tokenizer.decode(target):
        return Unusable("template_ate_text", "the chat template removes part of the answer (a <think> block?)")
    if len(prompt) + len(target) > max_length:
        return Unusable("too_long_to_train", f"{len(prompt) + len(target):,} tokens, train.max_length {max_length:,}")
    teacher_prompt = render_prompt(tokenizer, template.ask(record.prompt)) if template else []
    return Example(record.id, prompt, target, teacher_prompt)


def encode_all(
    records: Iterable[Record],
    tokenizer: PreTrainedTokenizerBase,
    end_tokens: Sequence[int],
    max_length: int,
    template: TeacherTemplate | None = None,
    *,
    stage: str = "train",
) -> tuple[list[Example], list[Reject]]:
    """Examples of all records that can be trained on, and the others as rejects of `stage`."""
    examples, rejects = [], []
    for record in records:
        encoded = encode(record, tokenizer, end_tokens, max_length, template)
        if isinstance(encoded, Unusable):
            rejects.append(Reject(record, stage, encoded.reason, encoded.detail))
        else:
            examples.append(encoded)
    return examples, rejects


def _until_end(target: list[int], end_tokens: Sequence[int]) -> list[int]:
    """The target up to its last end token; one is added when the template writes none."""
    for index in range(len(target) - 1, -1, -1):
        if target[index] in end_tokens:
            return target[: index + 1]
    return [*target, end_tokens[0]]
