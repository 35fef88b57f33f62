"""The judge that says nothing: how likely it finds an answer (GPTScore, arXiv 2302.04166, equation 1).

The score is the mean natural-log probability of the answer's tokens after its prompt, end token included, in nats
per token: 0 is certainty, lower is less likely. It needs an engine that gives the probabilities of a given text. Even
a model too small to follow a rubric has it; it says what the model expects, not what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llmdistill.engines.base import Completion, Request
from llmdistill.filter.judge import Judgement, Question, Said, no_reply
from llmdistill.record import Record, Verdict
from llmdistill.run.digest import digest_of

NAME = "likelihood"
"""Stands for the rubric's hash in verdicts: there is no rubric."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A judge that reads each answer as if it had written it."""

    judge: str

    @property
    def again(self) -> str:
        """Nothing is asked once more: the same question has the same answer."""
        return ""

    def questions(self, records: Sequence[Record]) -> Iterator[Question]:
        """One request for each record."""
        return map(self._question, records)

    def _question(self, record: Record) -> Question:
        key = f"{record.id}-{digest_of({'prompt': record.prompt, 'given': record.reply})[:16]}"
        return Question(Request(key, record.prompt, given=record.reply), ())

    def read(self, completion: Completion, question: Question) -> Said:
        """The mean of the tokens' log-probabilities."""
        problem = no_reply(completion)
        if problem:
            return problem
        logprobs = completion.token_logprobs
        return Said(sum(logprobs) / len(logprobs), "parsed") if logprobs else Said(None, "refused")

    def judgements(self, records: Sequence[Record], answer: Callable[[Question], Said]) -> list[Judgement]:
        """Its word on each record."""
        return [self._judgement(answer(self._question(record))) for record in records]

    def _judgement(self, said: Said) -> Judgement:
        verdict = Verdict(self.judge, NAME, said.value, said.outcome)
        return Judgement([verdict], said.value, said.outcome, said.error)
