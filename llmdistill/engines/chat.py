"""Chat completions on the wire: a Request as a JSON body, a JSON reply as a Completion.

Follows OpenAI's API reference for `POST /v1/chat/completions`; vLLM's additions (`continue_final_message`,
`return_tokens_as_token_ids`, `repetition_penalty`) are sent only where the settings ask for them.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from llmdistill.config import Model
from llmdistill.engines.base import Completion, Request, Sampling, TopLogprobs
from llmdistill.engines.endpoint import Endpoint
from llmdistill.errors import ModelError

MOST_TOP_LOGPROBS = 20
"""What OpenAI's API gives at most."""

_CHOICE_TOKENS = 8
_CHOOSE = "\n\nReply with exactly one of these and nothing else: "
_MESSAGE_TOKENS = 16
"""A chat template adds a few tokens to each message."""

_MOST_TOKENS = 1_000_000_000
_LEAST_LOGPROB, _ROUNDING = -1e6, 1e-3
"""What is outside, infinity and NaN among it, is no log-probability; a server rounds."""

_FINISHED = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}
_TOKEN_ID = re.compile(r"token_id:([0-9]{1,9})")


class MalformedReply(Exception):
    """A reply that does not say what a chat completion says."""


def payload(
    request: Request, settings: Model, endpoint: Endpoint, without: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Body of one chat completion.

    Args:
        without: optional features the server is known to refuse: "schema", "logprobs".

    Raises:
        ModelError: the request is of a kind that this API does not have.
    """
    if request.given is not None:
        message = "a chat API does not give the probabilities of a given text"
        raise ModelError(message, where=settings.model, do="use engine: transformers or engine: vllm for this")
    body: dict[str, Any] = {"model": settings.model, "messages": list(request.messages)}
    if request.choices:
        body |= _choosing(request, settings, "logprobs" not in without)
    elif request.sampling:
        body |= _writing(request, request.sampling, without)
    if request.prefill and settings.can_prefill:
        body["messages"] = [*body["messages"], {"role": "assistant", "content": request.prefill}]
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if endpoint.is_openai:
        body["max_completion_tokens"] = body.pop("max_tokens")
    if settings.api.token_ids and body.get("logprobs"):
        body["return_tokens_as_token_ids"] = True
    body |= settings.api.extra
    return {key: value for key, value in body.items() if value is not None}


def _writing(request: Request, sampling: Sampling, without: frozenset[str]) -> dict[str, Any]:
    body: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
    if sampling.top_p < 1:
        body["top_p"] = sampling.top_p
    if sampling.repetition_penalty != 1:
        body["repetition_penalty"] = sampling.repetition_penalty
    if request.top_logprobs and "logprobs" not in without:
        body |= {"logprobs": True, "top_logprobs": min(request.top_logprobs, MOST_TOP_LOGPROBS)}
    if request.schema is not None and "schema" not in without:
        form = {"name": "answer", "schema": dict(request.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def _choosing(request: Request, settings: Model, with_logprobs: bool) -> dict[str, Any]:
    """A choice is asked for in words, unless the server lets us begin the answer."""
    body: dict[str, Any] = {"max_tokens": _CHOICE_TOKENS, "temperature": 0.0}
    if with_logprobs:
        body |= {"logprobs": True, "top_logprobs": MOST_TOP_LOGPROBS}
    if not settings.can_prefill:
        *earlier, last = request.messages
        choices = ", ".join(choice.strip() for choice in request.choices)
        asked = f"{last['content']}{_CHOOSE}{choices}"
        body["messages"] = [*earlier, {**last, "content": asked}]
    return body


def prompt_bound(request: Request) -> int:
    """More tokens than a request's prompt can have: byte-level tokenizers make at most one of each UTF-8 byte."""
    told = [message["content"] for message in request.messages]
    told += [request.prefill, request.given or "", *request.choices]
    told += [json.dumps(request.schema)] if request.schema is not None else []
    asked = _MESSAGE_TOKENS * (len(request.messages) + 1) + (len(_CHOOSE) if request.choices else 0)
    return asked + sum(len(text.encode("utf-8", "replace")) + 2 for text in told)


def answer_bound(request: Request, settings: Model | None = None) -> int:
    """More tokens than an answer can have, whatever the settings lay over the request."""
    most = request.sampling.max_new_tokens if request.sampling else _CHOICE_TOKENS if request.choices else 1
    extra = settings.api.extra if settings and settings.engine == "openai" else {}
    told = [extra.get(name) for name in ("max_tokens", "max_completion_tokens")]
    answers = extra.get("n")
    most = max([most, *(value for value in told if isinstance(value, int))])
    return most * max(1, answers if isinstance(answers, int) else 1)


def parse_reply(body: bytes) -> Any:
    """A reply's JSON.

    Raises:
        MalformedReply: it is none.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedReply(f"not JSON ({str(error)[:80]})" if body.strip() else "empty body") from None


def read_reply(reply: object, request: Request) -> Completion:
    """The answer in a server's reply.

    Raises:
        MalformedReply: it is not a chat completion.
    """
    choice = _first_choice(reply)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise MalformedReply("no message")
    if choice.get("finish_reason") == "error":
        raise MalformedReply("the server broke off with an error")
    text, refusal = _text_of(message.get("content")), message.get("refusal")
    reason = choice.get("finish_reason")
    finish = _FINISHED.get(reason, "stop") if isinstance(reason, str) else "stop"
    if not text and isinstance(refusal, str) and refusal:
        return _completion(reply, request, "", "refused", error=_readable(refusal)[:300])
    if request.choices and finish != "content_filter":
        return _completion(reply, request, text, "scored", choice_logprobs=_choice_logprobs(choice, text, request))
    ids, top = _logprobs(choice) if request.top_logprobs else ([], None)
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    thought = _readable(reasoning) if isinstance(reasoning, str) else ""
    return _completion(reply, request, text, finish, token_ids=ids, top_logprobs=top, reasoning=thought)


def _first_choice(reply: object) -> dict[str, Any]:
    if not isinstance(reply, dict):
        raise MalformedReply("not a JSON object")
    choices = reply.get("choices")
    if not isinstance(choices, list):
        said = reply.get("error")
        raise MalformedReply(f"an error in place of an answer: {reprlib.repr(said)[:120]}" if said else "no choices")
    if not choices:
        raise MalformedReply("empty choices")
    if not isinstance(choices[0], dict):
        raise MalformedReply("a choice that is no object")
    return choices[0]


def _text_of(content: object) -> str:
    """A message's text; null is none, and a list of parts is joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return _readable(content)
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) == len(content) and all(isinstance(part, str) for part in parts):
            return _readable("".join(str(part) for part in parts))
    raise MalformedReply("content that is no text")


def _readable(text: str) -> str:
    """Text that can be written as UTF-8: half of a surrogate pair becomes a replacement character."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _completion(reply: object, request: Request, text: str, finish_reason: str, **more: Any) -> Completion:
    usage = reply.get("usage") if isinstance(reply, dict) else None
    counts = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    known = None not in counts
    bounds = (prompt_bound(request), answer_bound(request))
    read, written = (bound if count is None else count for count, bound in zip(counts, bounds, strict=True))
    return Completion(
        request.id, text, more.pop("token_ids", []), finish_reason, read, written, usage_known=known, **more
    )


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS
    return value if valid else None


def _positions(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []


def _choice_logprobs(choice: Mapping[str, Any], text: str, request: Request) -> dict[str, float] | None:
    """Log-probability of each choice, or None when the answer is none of them.

    After a prefill the first token's alternatives are all there is to read. Otherwise the first line must be
    one of the choices and nothing else; without probabilities it then has all of them.
    """
    by_text = {name.strip(): name for name in request.choices}
    first_line = text.strip().partition("\n")[0]
    said = by_text.get(first_line.strip().removesuffix("."))
    if said is None and not request.prefill:
        return None
    first = next((entry for entry in _positions(choice) if _token_of(entry).strip()), {})
    masses: dict[str, float] = {}
    for token, logprob in _alternatives(first):
        name = by_text.get(token.strip())
        if name is not None:
            masses[name] = masses.get(name, 0.0) + math.exp(min(logprob, 0.0))
    found = {name: math.log(mass) for name, mass in masses.items() if mass > 0}
    if said is not None and said not in found:
        return {said: 0.0}
    return found or None


def _alternatives(entry: Mapping[str, Any]) -> list[tuple[str, float]]:
    listed = entry.get("top_logprobs")
    found = []
    for item in listed if isinstance(listed, list) else []:
        token, logprob = (item.get("token"), item.get("logprob")) if isinstance(item, dict) else (None, None)
        if isinstance(token, str) and isinstance(logprob, int | float) and _LEAST_LOGPROB <= logprob < _ROUNDING:
            found.append((token, float(logprob)))
    return found


def _logprobs(choice: Mapping[str, Any]) -> tuple[list[int], TopLogprobs | None]:
    """Token ids of the answer and the likeliest at each position, where the server names tokens by id."""
    positions = _positions(choice)
    ids = [_token_id(_token_of(entry)) for entry in positions]
    rows = [[(_token_id(token), value) for token, value in _alternatives(entry)] for entry in positions]
    if not positions or None in ids or any(token is None for row in rows for token, _ in row):
        return [], None
    return [token for token in ids if token is not None], [[(t, v) for t, v in row if t is not None] for row in rows]


def _token_of(entry: Mapping[str, Any]) -> str:
    token = entry.get("token")
    return token if isinstance(token, str) else ""


def _token_id(token: str) -> int | None:
    found = _TOKEN_ID.fullmatch(token)
    return int(found[1]) if found else None
