"""What each model answers to the held-out prompts, and how fast."""

from __future__ import annotations

import time
from dataclasses import dataclass

from llmdistill.config import Model, Pipeline
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.resume import LazyEngine, complete_all
from llmdistill.record import Message, Record
from llmdistill.run.digest import Parts
from llmdistill.run.journal import Journal
from llmdistill.run.stage import Stage
from llmdistill.templates import TeacherTemplate

_SPEED_PROMPTS, _SPEED_TOKENS = 8, 32


@dataclass(frozen=True)
class Contestant:
    """One model to compare. Only the teacher is asked through the template; the students are asked as in training."""

    role: str
    settings: Model
    template: TeacherTemplate | None = None

    def messages(self, record: Record) -> list[Message]:
        """What this model is asked."""
        return self.template.ask(record.prompt) if self.template else record.prompt

    def request(self, record: Record, sampling: Sampling) -> Request:
        """One held-out prompt for this model."""
        prefill = self.template.prefill if self.template and self.settings.can_prefill else ""
        return Request(record.id, self.messages(record), sampling, prefill=prefill)


@dataclass(frozen=True)
class Answers:
    """A model's replies by record id, and its speed in generated tokens per second (None when it is served)."""

    replies: dict[str, Completion]
    tokens_per_second: float | None


def ask(
    contestant: Contestant,
    records: list[Record],
    pipeline: Pipeline,
    stage: Stage,
    depends_on: Parts,
    *,
    timed: bool = True,
) -> Answers:
    """Greedy answers of one model; those on disk are not asked for again. Only with `timed` is its speed measured."""
    settings = pipeline.evaluate
    sampling = Sampling(settings.max_new_tokens, repetition_penalty=settings.repetition_penalty)
    engine = LazyEngine.of(pipeline, contestant.settings, "evaluate")
    key = {**depends_on, "role": contestant.role, **settings.digest_view()}
    try:
        with stage.journal(key) as journal:
            requests = [contestant.request(record, sampling) for record in records]
            replies = complete_all(requests, journal, engine, f"answers of the {contestant.role}")
            return Answers(replies, _speed(contestant, records, engine, journal) if timed else None)
    finally:
        engine.close()


def _speed(contestant: Contestant, records: list[Record], engine: LazyEngine, journal: Journal) -> float | None:
    """Tokens per second on the shortest prompts (writing is measured, not reading), after one warm-up."""
    if contestant.settings.engine == "openai":
        return None
    if "speed" not in journal:
        some = sorted(records, key=lambda record: (len(record.question), record.id))[:_SPEED_PROMPTS]
        for num_tokens in (2, _SPEED_TOKENS):
            requests = [contestant.request(record, Sampling(num_tokens)) for record in some]
            started = time.monotonic()
            done = list(engine.get().complete(requests))
            seconds = time.monotonic() - started
        written = sum(completion.completion_tokens for completion in done)
        journal.append("speed", tokens_per_second=written / seconds)
    return float(journal["speed"]["tokens_per_second"])
