"""Requests as token ids, the same for every engine that has the model's tokenizer."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmdistill.engines.base import Completion, Request
from llmdistill.engines.models import render_prompt
from llmdistill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as token ids: the prompt (prefill included), and what is to be scored after it."""

    request: Request
    prompt: list[int]
    target: list[int]
    choice_tokens: dict[str, int]

    @property
    def length(self) -> int:
        """Tokens there are before anything is written."""
        return len(self.prompt) + len(self.target)

    @property
    def room(self) -> int:
        """Tokens that may be written."""
        return self.request.sampling.max_new_tokens if self.request.sampling else 0

    def too_long(self) -> Completion:
        """The completion of a request that does not fit the context."""
        return Completion(self.request.id, finish_reason="too_long", prompt_tokens=len(self.prompt))


def prepare(tokenizer: PreTrainedTokenizerBase, request: Request) -> Prepared:
    """Token ids of a request.

    Raises:
        ModelError: the tokenizer does not tell its choices apart.
    """
    prompt = render_prompt(tokenizer, request.messages)
    prompt += _encode(tokenizer, request.prefill) if request.prefill else []
    if request.choices:
        return _prepare_choices(tokenizer, request, prompt)
    if request.given is None:
        return Prepared(request, prompt, [], {})
    given = tokenizer.encode(request.given, add_special_tokens=False, split_special_tokens=True)
    return Prepared(request, prompt, [*given, tokenizer.eos_token_id], {})


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """Text of a written answer."""
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def seed_of(request: Request) -> int:
    """A seed of the request's own, so that its answer does not depend on the requests before it."""
    seed = request.sampling.seed if request.sampling else 0
    return zlib.crc32(request.id.encode()) ^ (seed & 0xFFFFFFFF)


def _prepare_choices(tokenizer: PreTrainedTokenizerBase, request: Request, prompt: list[int]) -> Prepared:
    """Choices share a beginning (a space, say) and differ in the token after it."""
    encoded = {choice: _encode(tokenizer, choice) for choice in request.choices}
    shared = _common_prefix(list(encoded.values()))
    tokens = {choice: ids[shared] for choice, ids in encoded.items() if len(ids) > shared}
    if len(set(tokens.values())) < len(request.choices):
        message = f"the tokenizer does not tell the choices {', '.join(request.choices)} apart by one token"
        raise ModelError(message, do="use other choices in the rubric")
    first = next(iter(encoded.values()))
    return Prepared(request, prompt + first[:shared], [first[shared]], tokens)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _common_prefix(rows: list[list[int]]) -> int:
    length = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
