"""What goes into an engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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
    """

    id: str
    messages: list[Message]
    sampling: Sampling | None = None
    choices: tuple[str, ...] = ()
    given: str | None = None
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        finish_reason: "stop", "length", "scored", or "too_long" when the prompt does not fit the context.
        token_logprobs: natural-log probabilities of `token_ids`, when the request asked for them.
        choice_logprobs: natural-log probability per choice, not renormalised.
    """

    id: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    token_logprobs: list[float] | None = None
    choice_logprobs: dict[str, float] | None = None


class Engine(Protocol):
    """Answers requests; order of the completions is free, each request gets exactly one."""

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Stream completions as they are finished."""
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...
