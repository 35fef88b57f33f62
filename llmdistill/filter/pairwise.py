"""The LLM judge of pairs: which of two answers is better, asked in both orders.

A judge that prefers whatever stands first (arXiv 2306.05685, section 3.3) contradicts itself when the order is
turned, so a comparison counts only when both orders agree; otherwise it is a tie. An answer is compared with the
record's reference, or with the other answers to the same prompt in its shard.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from llmdistill.engines.base import Completion
from llmdistill.filter.judge import (
    Judgement,
    Manner,
    Question,
    Said,
    as_shown,
    choice_masses,
    is_written,
    no_reply,
    request_to_judge,
)
from llmdistill.filter.verdicts import parse_choice
from llmdistill.record import Record, Verdict, record_id
from llmdistill.templates import ASKED_AGAIN, Template, fence_for

CHOICES = ("A", "B")
_SOME_MASS = 1e-6
_SHARES = {"A": 1.0, "B": 0.0, "tie": 0.5}
_SAME = Said(0.5, "parsed")
_NO_OPPONENT = Said(None, "no_opponent")


class Comparison(Template):
    """How the judge is asked which of two answers is better; it calls the first one A and the second one B."""

    values: ClassVar[tuple[str, ...]] = ("first", "second", "prompt", "fence")

    again: str = Field(default=ASKED_AGAIN, min_length=1)

    @model_validator(mode="after")
    def _shows_both(self) -> Comparison:
        if not re.search(r"\{\{\s*second\s*\}\}", self.user):
            raise ValueError("it does not name {{ second }}")
        return self


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two answers to compare, as the judge sees them; `other` is None for a reference, which no record stands for."""

    candidate: int
    other: int | None
    texts: tuple[str, str]

    @property
    def same(self) -> bool:
        """Whether the two texts are equal, which is a tie that nobody need be asked about."""
        return self.texts[0].strip() == self.texts[1].strip()


@dataclass(frozen=True, slots=True)
class Pairwise:
    """A judge that compares each answer with others. Its score is 1 for better, 0 for worse, 0.5 for a tie.

    Against several samples it is the mean over those that it could be compared with: a sample that makes the judge
    write nonsense takes no other sample with it.
    """

    template: Comparison
    template_hash: str
    judge: str
    manner: Manner
    against: Literal["reference", "samples"]

    @property
    def again(self) -> str:
        """What is added to a question that is asked once more."""
        return self.template.again

    def questions(self, records: Sequence[Record]) -> Iterator[Question]:
        """Everything it is asked about the records of a shard; equal texts for one prompt make equal questions."""
        for pair in self._pairs(records):
            if not pair.same:
                yield from self._orders(pair, records)

    def read(self, completion: Completion, question: Question) -> Said:
        """How much an answer to a question prefers the first text, from 0 to 1."""
        return preference_in(completion, self.template.prefill, question.shown, self.manner.only_probabilities)

    def judgements(self, records: Sequence[Record], answer: Callable[[Question], Said]) -> list[Judgement]:
        """Its word on each record."""
        found: list[list[Said]] = [[] for _ in records]
        for pair in self._pairs(records):
            said = _SAME if pair.same else compared(*map(answer, self._orders(pair, records)))
            found[pair.candidate].append(said)
            if pair.other is not None:
                found[pair.other].append(_turned(said))
        return [self._judgement(said) for said in found]

    def _pairs(self, records: Sequence[Record]) -> Iterator[_Pair]:
        texts = [as_shown(record.answer or "", self.manner.max_answer_chars) for record in records]
        if self.against == "samples":
            for one, other in _samples(records):
                yield _Pair(one, other, (texts[one], texts[other]))
            return
        for index, record in enumerate(records):
            if record.reference:
                yield _Pair(index, None, (texts[index], as_shown(record.reference, self.manner.max_answer_chars)))

    def _orders(self, pair: _Pair, records: Sequence[Record]) -> tuple[Question, Question]:
        """The question with the candidate first, and the other way round."""
        record, (ours, theirs) = records[pair.candidate], pair.texts
        prompt, owner = as_shown(record.question), record_id(record.prompt)
        shown, fence = (prompt, ours, theirs), fence_for(prompt, ours, theirs)
        asked = []
        for first, second in ((ours, theirs), (theirs, ours)):
            messages = self.template.messages(prompt=prompt, first=first, second=second, fence=fence)
            request = request_to_judge(owner, messages, CHOICES, self.template.prefill, self.manner.sampling)
            asked.append(Question(request, shown))
        return asked[0], asked[1]

    def _judgement(self, said: Sequence[Said]) -> Judgement:
        word = _mean(said)
        verdict = Verdict(self.judge, self.template_hash[:16], word.value, word.outcome)
        outcome = word.outcome if word.value is None else "parsed"
        return Judgement([verdict], word.value, outcome, next((item.error for item in said if item.error), ""))


def _samples(records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """Places of every two records that answer the same prompt."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[tuple((message["role"], message["content"]) for message in record.prompt)].append(index)
    for group in groups.values():
        yield from itertools.combinations(group, 2)


def compared(first: Said, second: Said) -> Said:
    """What both orders come to for the candidate, which stood first in the first order and second in the second.

    Orders that agree give the mean of the candidate's shares; others are a tie, "flipped".
    """
    failed = [said for said in (first, second) if said.value is None]
    if failed:
        return next((said for said in failed if said.error), failed[0])
    assert first.value is not None and second.value is not None
    shares = (first.value, 1.0 - second.value)
    agree = _side(shares[0]) == _side(shares[1])
    return Said(sum(shares) / 2, "parsed") if agree else Said(0.5, "flipped")


def _side(share: float) -> int:
    return (share > 0.5) - (share < 0.5)


def _turned(said: Said) -> Said:
    """The same comparison, seen from the other answer."""
    return said if said.value is None else Said(1.0 - said.value, said.outcome)


def _mean(said: Sequence[Said]) -> Said:
    """The mean over the comparisons that could be read; flipped when every one of them was."""
    values = [item.value for item in said if item.value is not None]
    if not values:
        return next((item for item in said if item.error), said[0]) if said else _NO_OPPONENT
    flipped = all(item.outcome == "flipped" for item in said if item.value is not None)
    return Said(sum(values) / len(values), "flipped" if flipped else "parsed")


def preference_in(completion: Completion, prefill: str, shown: Sequence[str], only_probabilities: bool = False) -> Said:
    """How much the judge prefers the text it was shown first: its probability against the other's, or 1, 0, 0.5.

    Args:
        shown: the texts the judge was shown; a verdict that stands in one of them is not its own.
    """
    problem = no_reply(completion)
    if problem:
        return problem
    if is_written(completion) and not only_probabilities:
        choice = parse_choice(prefill + completion.text, shown=shown)
        return Said(None if choice.winner is None else _SHARES[choice.winner], choice.outcome)
    masses = choice_masses(completion, CHOICES)
    total = sum(masses.values())
    return Said(masses.get("A", 0.0) / total, "parsed") if total > _SOME_MASS else Said(None, "no_mass")
