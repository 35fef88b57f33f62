"""The embedded engine: any causal language model, batched, on CPU or GPU.

Requests are sorted by length so that a batch pads little; completions come out
one batch at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmdistill.config import Model
from llmdistill.engines.aligned import AlignedBatch, align, target_logits
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.models import (
    ModelSource,
    context_length,
    end_token_ids,
    load_model,
    load_tokenizer,
    render_prompt,
)
from llmdistill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS_PER_ROW = 512
"""A batch of long prompts holds fewer rows: its cache is no larger than `batch_size` rows of this many tokens."""

_SCORING_TOKENS = 2048
"""Padded tokens per batch when nothing is generated: keeps the matrix products busy and the logits small."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request as token ids: the prompt (prefill included), and what is to be scored after it."""

    request: Request
    prompt: list[int]
    target: list[int]
    choice_tokens: dict[str, int]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.target)


class TransformersEngine:
    """Engine over one loaded model and its tokenizer.

    Args:
        batch_size: sequences generated side by side.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self._ends = end_token_ids(model, tokenizer)

    @classmethod
    def open(cls, settings: Model, source: ModelSource) -> TransformersEngine:
        """Load the model that the settings name."""
        model = load_model(source, settings.dtype, settings.device)
        return cls(model, load_tokenizer(source), settings.batch_size)

    def close(self) -> None:
        """Free the model's memory."""
        del self.model

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Stream completions batch by batch, longest prompts first so that a lack of memory shows at once."""
        prepared = [self._prepare(request) for request in requests]
        fitting = []
        for item in prepared:
            room = item.request.sampling.max_new_tokens if item.request.sampling else 0
            if item.length + room > context_length(self.model):
                yield Completion(item.request.id, finish_reason="too_long", prompt_tokens=len(item.prompt))
            else:
                fitting.append(item)
        fitting.sort(key=lambda item: (-item.length, item.request.id))
        for sampling in dict.fromkeys(item.request.sampling for item in fitting):
            same = [item for item in fitting if item.request.sampling == sampling]
            if sampling is not None:
                tokens = self.batch_size * _TOKENS_PER_ROW
                for batch in _batches(same, tokens, self.batch_size, sampling.max_new_tokens):
                    yield from self._generate(batch, sampling)
            else:
                for batch in _batches(same, _SCORING_TOKENS, len(same)):
                    yield from self._score(batch)

    def _prepare(self, request: Request) -> _Prepared:
        prompt = render_prompt(self.tokenizer, request.messages)
        prompt += self._encode(request.prefill) if request.prefill else []
        if request.choices:
            return self._prepare_choices(request, prompt)
        target = self._encode(request.given) + [self.tokenizer.eos_token_id] if request.given is not None else []
        return _Prepared(request, prompt, target, {})

    def _prepare_choices(self, request: Request, prompt: list[int]) -> _Prepared:
        """Choices share a beginning (a space, say) and differ in the token after it."""
        encoded = {choice: self._encode(choice) for choice in request.choices}
        shared = _common_prefix(list(encoded.values()))
        tokens = {choice: ids[shared] for choice, ids in encoded.items() if len(ids) > shared}
        if len(set(tokens.values())) < len(request.choices):
            message = f"the tokenizer does not tell the choices {', '.join(request.choices)} apart by one token"
            raise ModelError(message, do="use other choices in the rubric")
        first = next(iter(encoded.values()))
        return _Prepared(request, prompt + first[:shared], [first[shared]], tokens)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _generate(self, batch: list[_Prepared], sampling: Sampling) -> Iterator[Completion]:
        import torch

        aligned = self._align(batch)
        torch.manual_seed(_seed_of(batch, sampling))
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=aligned.input_ids,
                attention_mask=aligned.attention_mask,
                **self._generate_options(sampling),
            )
        for item, row in zip(batch, out[:, aligned.input_ids.shape[1] :].tolist(), strict=True):
            yield self._completion(item, row, sampling)

    def _generate_options(self, sampling: Sampling) -> dict[str, Any]:
        options: dict[str, Any] = {
            "max_new_tokens": sampling.max_new_tokens,
            "repetition_penalty": sampling.repetition_penalty,
            "do_sample": sampling.temperature > 0,
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": self._ends,
        }
        if sampling.temperature > 0:
            options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return options

    def _completion(self, item: _Prepared, row: list[int], sampling: Sampling) -> Completion:
        """Cut a generated row at its end token."""
        length = next((index for index, token in enumerate(row) if token in self._ends), len(row))
        stopped, token_ids = length < len(row), row[:length]
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Completion(
            item.request.id,
            text=text,
            token_ids=token_ids,
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(item.prompt),
            completion_tokens=len(token_ids) + stopped,
        )

    def _score(self, batch: list[_Prepared]) -> Iterator[Completion]:
        """Log-probabilities of given tokens, from one forward pass."""
        import torch

        with torch.inference_mode():
            logprobs = target_logits(self.model, self._align(batch)).float().log_softmax(-1)
        for item, row in zip(batch, logprobs, strict=True):
            choices = {text: row[0, token].item() for text, token in item.choice_tokens.items()}
            given = [row[index, token].item() for index, token in enumerate(item.target)]
            yield Completion(
                item.request.id,
                text=item.request.given or "",
                token_ids=[] if choices else item.target,
                finish_reason="scored",
                prompt_tokens=item.length,
                token_logprobs=None if choices else given,
                choice_logprobs=choices or None,
            )

    def _align(self, batch: list[_Prepared]) -> AlignedBatch:
        prompts, targets = [item.prompt for item in batch], [item.target for item in batch]
        return align(prompts, targets, self.tokenizer.pad_token_id, self.model.device)


def _common_prefix(rows: list[list[int]]) -> int:
    length = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def _seed_of(batch: list[_Prepared], sampling: Sampling) -> int:
    """A batch's own seed, so that its answers do not depend on the batches before it."""
    return zlib.crc32(batch[0].request.id.encode()) ^ (sampling.seed & 0xFFFFFFFF)


def _batches(items: list[_Prepared], num_tokens: int, num_rows: int, room: int = 0) -> Iterator[list[_Prepared]]:
    """Cut items, longest first, into batches that pad little and fit the memory.

    A batch holds at most `num_rows` rows and `num_tokens` padded tokens (each row with `room` for
    what is to come), and no row shorter than a quarter of the longest.
    """
    batch: list[_Prepared] = []
    for item in items:
        longest = batch[0].length if batch else item.length
        full = len(batch) >= num_rows or (len(batch) + 1) * (longest + room) > num_tokens
        if batch and (full or item.length < longest // 4):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
