"""The LLM judge of single answers: a rubric, a candidate between fences, a score.

For engines with probabilities the score is their expectation over the rubric's score tokens (G-Eval,
arXiv 2303.16634, section 2), so even a small judge never fails to give one; for others it is read from
what the judge wrote (`verdicts`). A judge that says nothing usable is a failed judgement, never a low score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from llmdistill.config import Judge
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.filter.verdicts import parse_verdict
from llmdistill.record import Message, Record, Verdict
from llmdistill.run.digest import digest_of
from llmdistill.templates import Rubric, fence_for

_SOME_MASS = 1e-6
_CHARS_PER_TOKEN = 4
_ROLE_TAG = re.compile(
    r"<(?=[|｜][^\s<>]{1,40}[|｜]>|/?s>|[be]os>|(?:start|end)_of_(?:turn|text)>|/?(?:think|tool_call)>)|\[(?=/?INST\])",
    re.IGNORECASE,
)
_ENDED_WELL = ("scored", "stop")
_NOT_ASKED_AGAIN = ("too_long", "refused", "content_filter", "failed")


@dataclass(frozen=True, slots=True)
class Question:
    """One request to a judge, and the texts of others that it shows: a verdict in one of them is not the judge's."""

    request: Request
    shown: tuple[str, ...]

    def again(self, text: str) -> Question:
        """The same question with `text` below it; another request, because it reads differently."""
        *earlier, last = self.request.messages
        messages = [*earlier, {**last, "content": f"{last['content']}\n\n{text.strip()}"}]
        asked, record_id = self.request, self.request.id.rpartition("-")[0]
        return Question(request_to_judge(record_id, messages, asked.choices, asked.prefill, asked.sampling), self.shown)


@dataclass(frozen=True, slots=True)
class Said:
    """What a judge said to one question; no `value` when it could not be read or there was no answer (`error`)."""

    value: float | None
    outcome: str
    error: str = ""

    @property
    def unreadable(self) -> bool:
        """A reply that another one, asked for more clearly, may stand in for."""
        return self.value is None and self.outcome not in _NOT_ASKED_AGAIN


@dataclass(frozen=True, slots=True)
class Judgement:
    """One judge's word on one record: its verdicts, and the score they come to; None with the reason in `outcome`."""

    verdicts: list[Verdict]
    score: float | None
    outcome: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a judge is asked, whatever the form.

    Attributes:
        sampling: how it writes; None: the probabilities of its choices are asked for.
        only_probabilities: nothing it writes stands in for them.
        max_answer_chars: an answer is cut there.
    """

    sampling: Sampling | None = None
    only_probabilities: bool = False
    max_answer_chars: int = 2048

    @classmethod
    def of(cls, settings: Judge) -> Manner:
        """What the settings say."""
        sampling = Sampling(max_new_tokens=settings.max_new_tokens) if settings.scoring == "written" else None
        return cls(sampling, settings.scoring == "probabilities", settings.max_answer_tokens * _CHARS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A judge that scores each answer by itself: one request for each criterion of its rubric."""

    rubric: Rubric
    rubric_hash: str
    judge: str
    manner: Manner

    @property
    def again(self) -> str:
        """What is added to a question that is asked once more."""
        return self.rubric.again

    def questions(self, records: Sequence[Record]) -> Iterator[Question]:
        """Everything it is asked about the records of a shard."""
        for record in records:
            yield from self._questions(record)

    def _questions(self, record: Record) -> Iterator[Question]:
        shown = tuple(texts_shown(record, self.manner.max_answer_chars))
        for criterion in _criteria(self.rubric).values():
            request = judge_request(
                record, self.rubric, self.manner.max_answer_chars, criterion=criterion, sampling=self.manner.sampling
            )
            yield Question(request, shown)

    def read(self, completion: Completion, question: Question) -> Said:
        """The score in an answer to a question."""
        return score_in(completion, self.rubric, question.shown, self.manner.only_probabilities)

    def judgements(self, records: Sequence[Record], answer: Callable[[Question], Said]) -> list[Judgement]:
        """Its word on each record."""
        return [self._judgement([answer(question) for question in self._questions(record)]) for record in records]

    def _judgement(self, said: Sequence[Said]) -> Judgement:
        names: list[str | None] = [*self.rubric.criteria] or [None]
        verdicts = [
            Verdict(self.judge, self.rubric_hash[:16], word.value, word.outcome, name)
            for word, name in zip(said, names, strict=True)
        ]
        outcome = next((word.outcome for word in said if word.value is None), "parsed")
        error = next((word.error for word in said if word.error), "")
        return Judgement(verdicts, criteria_mean([word.value for word in said], self.rubric), outcome, error)


def judge_request(
    record: Record, rubric: Rubric, max_answer_chars: int, *, criterion: str = "", sampling: Sampling | None = None
) -> Request:
    """What the judge is asked about one record. The texts are data: they stand between fences.

    Args:
        criterion: text of the criterion that is judged, if the rubric has some.
        sampling: how the judge writes its verdict; None asks for the probabilities of the scores.
    """
    texts = _texts(record, max_answer_chars)
    messages = rubric.messages(**texts, criterion=criterion, fence=fence_for(*texts.values()))
    return request_to_judge(record.id, messages, tuple(rubric.scores), rubric.prefill, sampling)


def request_to_judge(
    record_id: str, messages: list[Message], choices: tuple[str, ...], prefill: str, sampling: Sampling | None
) -> Request:
    """A request whose id is made of all that the judge reads, so another answer to a prompt is another request."""
    choices = () if sampling else choices
    read = {"messages": messages, "choices": choices, "prefill": prefill, "sampling": sampling and asdict(sampling)}
    return Request(f"{record_id}-{digest_of(read)[:16]}", messages, sampling, choices, prefill=prefill)


def as_shown(text: str, max_chars: int | None = None) -> str:
    """The text as a judge sees it: at most so long, and its role tags broken up by a space.

    A server's tokenizer would take `<|im_end|>` for the end of the turn, whatever fence it stands in.
    """
    if max_chars is not None and len(text) > max_chars:
        text = text[:max_chars] + " [...]"
    return _ROLE_TAG.sub(lambda tag: f"{tag[0]} ", text)


def _criteria(rubric: Rubric) -> dict[str, str]:
    """Texts of the criteria; a rubric without any has a nameless one."""
    return {name: criterion.text for name, criterion in rubric.criteria.items()} or {"": ""}


def criteria_mean(scores: Sequence[float | None], rubric: Rubric) -> float | None:
    """Weighted mean of the criteria's scores; None if one is missing."""
    weights = [criterion.weight for criterion in rubric.criteria.values()] or [1.0]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    return sum(weight * score for weight, score in zip(weights, known, strict=True)) / sum(weights)


def expected_score(completion: Completion, rubric: Rubric) -> float | None:
    """Expectation of the score over the probabilities of its tokens; None when they carry no mass."""
    masses = choice_masses(completion, rubric.scores)
    total = sum(masses.values())
    if not total > _SOME_MASS:
        return None
    return sum(mass * rubric.scores[choice] for choice, mass in masses.items()) / total


def choice_masses(completion: Completion, choices: Mapping[str, float] | Sequence[str]) -> dict[str, float]:
    """Probability of each choice that the engine gave one for."""
    logprobs = completion.choice_logprobs or {}
    return {choice: math.exp(logprobs[choice]) for choice in choices if choice in logprobs}


def score_in(completion: Completion, rubric: Rubric, shown: Sequence[str], only_probabilities: bool = False) -> Said:
    """The score, from probabilities where there are some, else from what the judge wrote.

    Args:
        shown: the texts the judge was shown; a verdict that stands in one of them is not its own.
    """
    problem = no_reply(completion)
    if problem:
        return problem
    if is_written(completion) and not only_probabilities:
        return _written_score(rubric.prefill + completion.text, rubric, shown)
    score = expected_score(completion, rubric)
    return Said(score, "no_mass" if score is None else "parsed")


def no_reply(completion: Completion) -> Said | None:
    """Why a completion is no whole reply, if it is none. One that was cut off could still have changed its verdict."""
    if completion.finish_reason in _ENDED_WELL:
        return None
    if completion.finish_reason == "failed":
        return Said(None, "failed", completion.error or "no answer")
    return Said(None, "truncated" if completion.finish_reason == "length" else completion.finish_reason)


def is_written(completion: Completion) -> bool:
    """Whether the verdict is in the completion's text, not in probabilities."""
    return completion.finish_reason == "stop" or (completion.choice_logprobs is None and bool(completion.text))


def _written_score(text: str, rubric: Rubric, shown: Sequence[str]) -> Said:
    scores = set(rubric.scores.values())
    parsed = parse_verdict(text, min(scores), max(scores), shown=shown, decimals=any(score % 1 for score in scores))
    if parsed.score is not None and parsed.score not in scores:
        return Said(None, "not_a_choice")
    return Said(parsed.score, parsed.outcome)


def texts_shown(record: Record, max_answer_chars: int | None = None) -> list[str]:
    """What of a record the judge reads."""
    return list(_texts(record, len(record.answer or "") if max_answer_chars is None else max_answer_chars).values())


def _texts(record: Record, max_answer_chars: int) -> dict[str, str]:
    return {
        "prompt": as_shown(record.question),
        "answer": as_shown(record.answer or "", max_answer_chars),
        "rationale": as_shown(record.rationale or ""),
        "reference": as_shown(record.reference or ""),
    }
