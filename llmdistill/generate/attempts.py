"""Who is asked about a record: one teacher after the other, until an answer is usable."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmdistill.config import Generate, Model, Pipeline
from llmdistill.engines.base import Completion, Request
from llmdistill.engines.resume import Tally, answer_of
from llmdistill.generate.asker import Asker
from llmdistill.generate.replies import with_answer
from llmdistill.generate.samples import chooses
from llmdistill.record import Message, Record, Reject
from llmdistill.run.digest import Parts
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Usage
from llmdistill.run.stage import FAILED
from llmdistill.templates import HintTemplate, TeacherTemplate, load_template
from llmdistill.verify import Verified
from llmdistill.verify.base import final_answer
from llmdistill.verify.records import UNDECIDED, WRONG, RecordVerifier

CITES_HINT, USABLE = "cites_hint", "usable"

Shards = Callable[[], Iterator[list[Record]]]
"""The records to ask about, from the beginning, one shard at a time."""

Check = Callable[[Record], Verified | None]
"""The verifier's word on a record's answer; None where nobody asks."""

_TEMPLATE = "generate.template_sha256"
_MARKED_SOLUTION = re.compile(r"^####|\\boxed", re.MULTILINE)


@dataclass(frozen=True)
class Teacher:
    """A model, where it stands in the pipeline file, and how it is asked: plainly, or with the answer as a hint."""

    role: str
    asker: Asker
    template: TeacherTemplate

    @property
    def hinted(self) -> bool:
        """Whether it is told the answer."""
        return isinstance(self.template, HintTemplate)

    @property
    def name(self) -> str:
        """What tells the teachers of one pipeline apart."""
        return f"{self.role}.hint" if self.hinted else self.role

    @property
    def asked(self) -> Parts:
        """What its answers depend on, under keys that can stand beside those of the other teachers."""
        named = {_TEMPLATE: "generate.hint_template_sha256"} if self.hinted else {}
        return {named.get(key, key): value for key, value in self.asker.asked.items()}

    def request(self, record: Record) -> Request:
        """What it is asked about a record."""
        return self.asker.request(record.id, self._messages(record))

    def _messages(self, record: Record) -> list[Message]:
        if isinstance(self.template, HintTemplate):
            return self.template.ask_with(record.prompt, _hint(record.reference or ""))
        return self.template.ask(record.prompt)

    def read(self, record: Record, completion: Completion, settings: Generate) -> Record | Reject:
        """The record with what it said."""
        record = replace(record, teacher=self.asker.info(completion))
        record = record.with_meta(hinted=True) if self.hinted else record
        read = with_answer(record, completion, settings, self.template, self.asker.prefill)
        if isinstance(self.template, HintTemplate) and isinstance(read, Record):
            phrase = self.template.cited(read.rationale or read.reply, read.question)
            return Reject(read, "generate", CITES_HINT, phrase) if phrase else read
        return read


def main_teacher(pipeline: Pipeline) -> Teacher:
    """The pipeline's teacher, as it is asked first."""
    template, template_hash = load_template(pipeline.teacher_template, TeacherTemplate)
    return Teacher("teacher", Asker.of(pipeline, template, template_hash), template)


class Teachers:
    """All teachers of a pipeline.

    The first round is shared by the main teacher and the co-teachers; the fallback, and the hint where it is shown
    after a failure, come then. Where the hint is always shown, whoever is asked about a record with a reference is
    told it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.settings, self.language = pipeline.generate, pipeline.language
        self._first = [main_teacher(pipeline)]
        for number, co_teacher in enumerate(self.settings.co_teachers):
            self._first.append(_beside(self._first[0], pipeline, co_teacher.model, f"generate.co_teachers.{number}"))
        self._then: Teacher | None = None
        if self.settings.fallback:
            self._then = _beside(self._first[0], pipeline, self.settings.fallback, "generate.fallback")
        self._with_hint = self._hinted() if self.settings.hint != "never" else {}
        self.weights = weights_of(self.settings)

    @property
    def all(self) -> list[Teacher]:
        """Every teacher, in the order in which they are asked."""
        return [*self._first, *([self._then] if self._then else []), *self._with_hint.values()]

    @property
    def num_rounds(self) -> int:
        """How many may be asked about one record."""
        return 1 + (self._then is not None) + (self.settings.hint == "failed")

    @property
    def asked(self) -> Parts:
        """Everything that the answers depend on."""
        parts: Parts = {}
        for teacher in self.all:
            parts |= teacher.asked
        always = self.settings.hint == "always"
        return parts | {"generate.teacher_weights": self.weights, "generate.hint_first": always}

    def of(self, record: Record) -> list[Teacher]:
        """Who is asked about a record, as long as no answer is usable."""
        first = self._first[share_of(record.id, self.weights)]
        chain = [first, self._then] if self._then else [first]
        if self._with_hint and (record.reference or "").strip():
            if self.settings.hint == "always":
                return [self._with_hint[teacher.role] for teacher in chain]
            return [*chain, self._with_hint[chain[-1].role]]
        return chain

    def _hinted(self) -> dict[str, Teacher]:
        """The teachers that are told answers, by role."""
        name = self.settings.hint_template or f"prompts/{self.language}/hint.yaml"
        template, template_hash = load_template(name, HintTemplate)
        plain = [*self._first, *([self._then] if self._then else [])]
        told = plain if self.settings.hint == "always" or not self._then else plain[-1:]
        hinted = {}
        for teacher in told:
            prefill = template.prefill if teacher.asker.engine.settings.can_prefill else ""
            asked = {**teacher.asker.asked, _TEMPLATE: template_hash}
            hinted[teacher.role] = Teacher(teacher.role, replace(teacher.asker, prefill=prefill, asked=asked), template)
        return hinted


def _beside(main: Teacher, pipeline: Pipeline, model: Model, role: str) -> Teacher:
    """Another model, asked as the main teacher is."""
    asker = Asker.of(pipeline, main.template, main.asker.asked[_TEMPLATE], model, role)
    return replace(main, role=role, asker=asker)


def weights_of(settings: Generate) -> list[float]:
    """Shares of the main teacher and of the co-teachers."""
    return [1.0, *(co_teacher.weight for co_teacher in settings.co_teachers)]


def share_of(id_: str, weights: Sequence[float]) -> int:
    """Which teacher a record falls to, by its id alone; each gets its share of many records.

    Weighted rendezvous hashing: a further teacher takes records over, but no record goes from one old teacher to
    another, so that answers stay of use.
    """
    if len(weights) == 1:
        return 0

    def waits(index: int) -> float:
        drawn = hashlib.blake2b(f"{id_} {index}".encode(), digest_size=8).digest()
        return -math.log((int.from_bytes(drawn) + 1) / 2**64) / weights[index]

    return min(range(len(weights)), key=waits)


def _hint(reference: str) -> str:
    """What the teacher is told: the final answer of a reference that is a whole solution and marks it."""
    return final_answer(reference).text if _MARKED_SOLUTION.search(reference) else reference.strip()


def checks_answers(settings: Generate) -> bool:
    """Whether it matters in this stage which answers are right."""
    return settings.fallback is not None or settings.hint == "failed" or chooses(settings.samples)


def checking_parts(pipeline: Pipeline) -> Parts:
    """What the outcome depends on besides the answers: how it is told which are right, or equal."""
    verify = pipeline.filter.verify
    if verify is None or not (checks_answers(pipeline.generate) or pipeline.generate.samples.vote):
        return {}
    return {**RecordVerifier(verify).parts, "filter.verify.undecided": verify.undecided}


@dataclass(frozen=True, slots=True)
class Attempt:
    """What asking one teacher about a record came to.

    Attributes:
        ok: the verifier's word, None where it has none.
        failure: why the answer is not usable; None when it is.
    """

    teacher: Teacher
    completion: Completion
    result: Record | Reject
    ok: bool | None
    failure: str | None

    def in_short(self) -> dict[str, Any]:
        """For the record's `meta`."""
        told = {"hinted": True} if self.teacher.hinted else {}
        return {"teacher": self.teacher.asker.engine.source.name, "reason": self.failure or USABLE, **told}


class Attempts:
    """The rounds of one stage: asks what is owed, and knows what has been asked.

    Args:
        journals: of each teacher, by its name.
    """

    def __init__(self, teachers: Teachers, journals: dict[str, Journal], check: Check, undecided: str) -> None:
        self.teachers, self._journals, self._check = teachers, journals, check
        self._rejects_undecided = undecided == "reject"
        self._failed: dict[str, dict[str, Completion]] = {name: {} for name in journals}

    def ask_all(self, shards: Shards) -> None:
        """Have every record answered, round after round."""
        for number in range(self.teachers.num_rounds):
            totals = Counter(teacher.name for _, teacher in self._owed(shards, number))
            for teacher in self.teachers.all:
                if totals[teacher.name]:
                    self._ask(teacher, shards, number, totals[teacher.name])

    def _ask(self, teacher: Teacher, shards: Shards, number: int, total: int) -> None:
        requests = (teacher.request(record) for record, owing in self._owed(shards, number) if owing is teacher)
        failed = teacher.asker.ask(requests, self._journals[teacher.name], total)
        self._failed[teacher.name].update(failed)

    def _owed(self, shards: Shards, number: int) -> Iterator[tuple[Record, Teacher]]:
        """The records of a round, each with whom it falls to."""
        for records in shards():
            for record in records:
                teacher = self._asked_in(record, number)
                if teacher is not None:
                    yield record, teacher

    def _asked_in(self, record: Record, number: int) -> Teacher | None:
        chain = self.teachers.of(record)
        if number >= len(chain):
            return None
        made = self._made(record, chain[:number])
        if made and made[-1].failure is None:
            return None
        # An earlier process may have come further with this record than to an answer of this teacher.
        if record.id not in self._journals[chain[number].name]:
            for teacher in chain[number + 1 :]:
                if record.id in self._journals[teacher.name] and self._attempt(teacher, record).failure is None:
                    return None
        return chain[number]

    def made(self, record: Record) -> list[Attempt]:
        """The attempts at a record, up to the first usable one, once all rounds are done."""
        return self._made(record, self.teachers.of(record))

    def _made(self, record: Record, chain: list[Teacher]) -> list[Attempt]:
        made: list[Attempt] = []
        for teacher in chain:
            made.append(self._attempt(teacher, record))
            if made[-1].failure is None:
                break
        return made

    def _attempt(self, teacher: Teacher, record: Record) -> Attempt:
        failed, journal = self._failed[teacher.name], self._journals[teacher.name]
        completion = Completion(record.id, finish_reason="failed", error="no answer")
        if record.id in failed or record.id in journal:
            completion = answer_of(record.id, journal, failed)
        result = teacher.read(record, completion, self.teachers.settings)
        if isinstance(result, Reject):
            return Attempt(teacher, completion, result, None, result.reason)
        verified = self._check(result)
        ok = verified.ok if verified else None
        return Attempt(teacher, completion, result, ok, self._unusable(result, verified))

    def summary(self, shards: Shards) -> tuple[Usage, list[dict[str, Any]]]:
        """What all answers took (its seconds are left out), and of each teacher: how many it was asked for, and why
        which of them were no use.
        """
        reasons: dict[str, Counter[str]] = {teacher.name: Counter() for teacher in self.teachers.all}
        tally = Tally()
        for record in itertools.chain.from_iterable(shards()):
            for attempt in self.made(record):
                reasons[attempt.teacher.name][attempt.failure or USABLE] += 1
            for completion in self._journalled(record):
                tally.add(completion)
        return tally.usage(0.0), [_counted(teacher, reasons[teacher.name]) for teacher in self.teachers.all]

    def _journalled(self, record: Record) -> Iterator[Completion]:
        for teacher in self.teachers.of(record):
            if record.id in self._journals[teacher.name]:
                yield answer_of(record.id, self._journals[teacher.name], {})

    def _unusable(self, record: Record, verified: Verified | None) -> str | None:
        """Why an answer that could be read does not do. Where there is nothing to check against, no other will."""
        if verified is None or verified.ok:
            return None
        if verified.ok is False:
            return WRONG
        return UNDECIDED if self._rejects_undecided and (record.reference or "").strip() else None


def outcome_of(made: list[Attempt]) -> Attempt:
    """The attempt that counts: the usable one; else one without an answer, which may be tried again; else the first."""
    if made[-1].failure is None:
        return made[-1]
    return next((attempt for attempt in made if attempt.failure == FAILED), made[0])


def _counted(teacher: Teacher, reasons: Counter[str]) -> dict[str, Any]:
    """A teacher's part in the manifest."""
    return {
        "role": teacher.role,
        "model": teacher.asker.engine.source.name,
        "hinted": teacher.hinted,
        "asked": reasons.total(),
        "usable": reasons[USABLE],
        "reasons": {reason: number for reason, number in sorted(reasons.items()) if reason != USABLE},
    }
