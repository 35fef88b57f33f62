"""What each model answers to the held-out prompts, and how fast."""

from __future__ import annotations

import time
from dataclasses import dataclass

from llmdistill.config import Model, Pipeline
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.models import ModelSource
from llmdistill.engines.resume import LazyEngine, complete_all
from llmdistill.record import Message, Record
from llmdistill.run.digest import Parts
from llmdistill.run.stage import Stage
from llmdistill.templates import TeacherTemplate

_SPEED_PROMPTS, _SPEED_TOKENS = 8, 32


@dataclass(frozen=True)
class Contestant:
    """One model to compare. Only the teacher is asked through the template; the students are asked as in training."""

    role: str
    source: ModelSource
    template: TeacherTemplate | None = None

    def messages(self, record: Record) -> list[Message]:
        """What this model is asked."""
        return self.template.ask(record.prompt) if self.template else record.prompt

    def request(self, record: Record, sampling: Sampling) -> Request:
        """One held-out prompt for this model."""
        prefill = self.template.prefill if self.template else ""
        return Request(record.id, self.messages(record), sampling, prefill=prefill)


@dataclass(frozen=True)
class Answers:
    """A model's replies by record id, and its speed in generated tokens per second."""

    replies: dict[str, Completion]
    tokens_per_second: float


def ask(contestant: Contestant, records: list[Record], pipeline: Pipeline, stage: Stage, depends_on: Parts) -> Answers:
    """Greedy answers of one model; those on disk are not asked for again."""
    settings = pipeline.evaluate
    sampling = Sampling(settings.max_new_tokens, repetition_penalty=settings.repetition_penalty)
    engine = LazyEngine(_as_settings(contestant.source, pipeline.teacher), contestant.source)
    key = {**depends_on, "role": contestant.role, **settings.digest_view()}
    try:
        with stage.journal(key) as journal:
            requests = [contestant.request(record, sampling) for record in records]
            replies = complete_all(requests, journal, engine.get, f"answers of the {contestant.role}")
            if "speed" not in journal:
                journal.append("speed", tokens_per_second=_speed(contestant, records, engine))
            return Answers(replies, float(journal["speed"]["tokens_per_second"]))
    finally:
        engine.close()


def _as_settings(source: ModelSource, like: Model) -> Model:
    """Settings that load `source` the way the teacher is loaded."""
    return like.model_copy(update={"model": str(source.path)})


def _speed(contestant: Contestant, records: list[Record], engine: LazyEngine) -> float:
    """Tokens per second on the shortest prompts (writing is measured, not reading), after one warm-up."""
    some = sorted(records, key=lambda record: (len(record.question), record.id))[:_SPEED_PROMPTS]
    for num_tokens in (2, _SPEED_TOKENS):
        requests = [contestant.request(record, Sampling(num_tokens)) for record in some]
        started = time.monotonic()
        done = list(engine.get().complete(requests))
        seconds = time.monotonic() - started
    return sum(completion.completion_tokens for completion in done) / seconds
