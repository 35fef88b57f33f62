"""What goes into an engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmdistill.record import Message


@dataclass(frozen=True, slots=True)
class Sampling:
    """How text is drawn. `temperature` 0 is greedy decoding."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model. Exactly one of the three kinds:

    - `sampling`: write an answer;
    - `choices`: give the log-probability of each of these continuations (told apart by their first
      differing token);
    - `given`: give the log-probability of each token of this answer, its end token included.

    `prefill` is text the answer begins with; it is not part of the completion's text.
    `schema` is a JSON schema that a written answer must satisfy; an engine that cannot enforce it leaves
    that to who reads the answer. `top_logprobs` asks for that many likeliest tokens at each position of the answer.
    `may_repeat` False: a call that may have been charged for is not made again by the engine itself.
    """

    id: str
    messages: list[Message]
    sampling: Sampling | None = None
    choices: tuple[str, ...] = ()
    given: str | None = None
    prefill: str = ""
    schema: Mapping[str, Any] | None = None
    top_logprobs: int = 0
    may_repeat: bool = True


TopLogprobs = list[list[tuple[int, float]]]
"""Per position of an answer, (token id, natural-log probability) pairs, likeliest first."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        finish_reason: "stop", "length", "scored"; "too_long" when the prompt does not fit the context;
            "refused" when the server will not answer this request, "content_filter" when it cut the answer;
            "failed" when no attempt brought an answer (`error` says why; it is owed again).
        reasoning: what a reasoning model thought before its answer, when the server gives it apart.
        token_logprobs: natural-log probabilities of `token_ids`, when the request asked for them.
        top_logprobs: the likeliest tokens at each position, when the request asked for them.
        choice_logprobs: natural-log probability per choice, not renormalised.
        usage_known: whether the token counts are the server's; else they are upper bounds.
        cost: US dollars, None when the price is unknown; engines leave it to who asks them.
        num_lost: calls for this request that may have been charged for and brought nothing usable.
    """

    id: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning: str = ""
    error: str = ""
    token_logprobs: list[float] | None = None
    top_logprobs: TopLogprobs | None = None
    choice_logprobs: dict[str, float] | None = None
    usage_known: bool = True
    cost: float | None = 0.0
    num_lost: int = 0


class Engine(Protocol):
    """Answers requests; order of the completions is free, each request gets exactly one."""

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Stream completions as they are finished. Requests are taken only as there is room for them."""
        ...

    def status(self) -> str:
        """What a person watching the progress should know beside it, e.g. calls in flight; may be empty."""
        ...

    def close(self) -> None:
        """Free the model's memory, or the connections."""
        ...
