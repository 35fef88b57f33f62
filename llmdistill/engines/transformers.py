"""The embedded engine: any causal language model, batched, on CPU or GPU.

Requests are taken some at a time and sorted by length, so that a batch pads
little; completions come out one batch at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from llmdistill.config import Model
from llmdistill.engines.aligned import AlignedBatch, align, target_logits
from llmdistill.engines.base import Completion, Request, Sampling, TopLogprobs
from llmdistill.engines.models import ModelSource, context_length, end_token_ids, load_model, load_tokenizer
from llmdistill.engines.prepare import Prepared, decode, prepare, seed_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS_PER_ROW = 512
"""A batch of long prompts holds fewer rows: its cache is no larger than `batch_size` rows of this many tokens."""

_SCORING_TOKENS = 2048
"""Padded tokens per batch when nothing is generated: keeps the matrix products busy and the logits small."""


_TAKEN = 2048
"""Requests taken at a time: enough to sort into batches of like length, few enough to keep in memory."""


class TransformersEngine:
    """Engine over one loaded model and its tokenizer.

    Args:
        batch_size: sequences generated side by side.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self._ends = end_token_ids(tokenizer, model.generation_config)

    @classmethod
    def open(cls, settings: Model, source: ModelSource) -> TransformersEngine:
        """Load the model that the settings name."""
        model = load_model(source, settings.dtype, settings.device)
        return cls(model, load_tokenizer(source), settings.batch_size)

    def close(self) -> None:
        """Free the model's memory."""
        del self.model

    def status(self) -> str:
        """Nothing to say beside the progress."""
        return ""

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Stream completions batch by batch, longest prompts first so that a lack of memory shows at once."""
        source = iter(requests)
        while taken := list(itertools.islice(source, _TAKEN)):
            yield from self._complete(taken)

    def _complete(self, requests: list[Request]) -> Iterator[Completion]:
        fitting = []
        for item in (prepare(self.tokenizer, request) for request in requests):
            if item.length + item.room > context_length(self.model):
                yield item.too_long()
            else:
                fitting.append(item)
        fitting.sort(key=lambda item: (-item.length, item.request.id))
        for sampling in dict.fromkeys(item.request.sampling for item in fitting):
            same = [item for item in fitting if item.request.sampling == sampling]
            if sampling is not None:
                tokens = self.batch_size * _TOKENS_PER_ROW
                for batch in _batches(same, tokens, self.batch_size, sampling.max_new_tokens):
                    yield from self._add_logprobs(batch, self._generate(batch, sampling))
            else:
                for batch in _batches(same, _SCORING_TOKENS, len(same)):
                    yield from self._score(batch)

    def _generate(self, batch: list[Prepared], sampling: Sampling) -> Iterator[Completion]:
        import torch

        aligned = self._align(batch)
        torch.manual_seed(seed_of(batch[0].request))
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

    def _completion(self, item: Prepared, row: list[int], sampling: Sampling) -> Completion:
        """Cut a generated row at its end token."""
        length = next((index for index, token in enumerate(row) if token in self._ends), len(row))
        stopped, token_ids = length < len(row), row[:length]
        return Completion(
            item.request.id,
            text=decode(self.tokenizer, token_ids),
            token_ids=token_ids,
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(item.prompt),
            completion_tokens=len(token_ids) + stopped,
        )

    def _add_logprobs(self, batch: list[Prepared], completions: Iterable[Completion]) -> Iterator[Completion]:
        """Score written answers whose log-probabilities are asked for: what generation gives is not the raw model's."""
        asked = []
        for item, completion in zip(batch, completions, strict=True):
            if item.request.top_logprobs:
                asked.append((dataclasses.replace(item, target=completion.token_ids), completion))
            else:
                yield completion
        asked.sort(key=lambda pair: -pair[0].length)
        written = iter([completion for _, completion in asked])
        for part in _batches([item for item, _ in asked], _SCORING_TOKENS, len(asked)):
            for item, row in zip(part, self._logprobs(part), strict=True):
                logprobs, top = _of_target(row, item)
                yield dataclasses.replace(next(written), token_logprobs=logprobs, top_logprobs=top)

    def _score(self, batch: list[Prepared]) -> Iterator[Completion]:
        """Log-probabilities of given tokens, from one forward pass."""
        for item, row in zip(batch, self._logprobs(batch), strict=True):
            choices = {text: row[0, token].item() for text, token in item.choice_tokens.items()}
            logprobs, top = _of_target(row, item)
            yield Completion(
                item.request.id,
                text=item.request.given or "",
                token_ids=[] if choices else item.target,
                finish_reason="scored",
                prompt_tokens=item.length,
                token_logprobs=None if choices else logprobs,
                top_logprobs=None if choices else top,
                choice_logprobs=choices or None,
            )

    def _logprobs(self, batch: list[Prepared]) -> torch.Tensor:
        """Log-probabilities at the positions that predict targets: [rows, targets, vocabulary]."""
        import torch

        with torch.inference_mode():
            return target_logits(self.model, self._align(batch)).float().log_softmax(-1)

    def _align(self, batch: list[Prepared]) -> AlignedBatch:
        prompts, targets = [item.prompt for item in batch], [item.target for item in batch]
        return align(prompts, targets, self.tokenizer.pad_token_id, self.model.device)


def _of_target(row: torch.Tensor, item: Prepared) -> tuple[list[float], TopLogprobs | None]:
    """Log-probability of each target token, and the likeliest tokens at its position if they are asked for."""
    logprobs = [row[index, token].item() for index, token in enumerate(item.target)]
    if not item.request.top_logprobs:
        return logprobs, None
    top = row[: len(item.target)].topk(min(item.request.top_logprobs, row.shape[-1]))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return logprobs, [list(zip(ids, values, strict=True)) for ids, values in pairs]


def _batches(items: list[Prepared], num_tokens: int, num_rows: int, room: int = 0) -> Iterator[list[Prepared]]:
    """Cut items, longest first, into batches that pad little and fit the memory.

    A batch holds at most `num_rows` rows and `num_tokens` padded tokens (each row with `room` for
    what is to come), and no row shorter than a quarter of the longest.
    """
    batch: list[Prepared] = []
    for item in items:
        longest = batch[0].length if batch else item.length
        full = len(batch) >= num_rows or (len(batch) + 1) * (longest + room) > num_tokens
        if batch and (full or item.length < longest // 4):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
