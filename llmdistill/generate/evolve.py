"""The mode `evolve`: variants of the given prompts, which the teacher then answers.

First every prompt is asked for in each kind (Evol-Instruct, arXiv 2304.12244, section 3), and variants that
failed are eliminated. Then the prompts that are left are answered as in the mode `answer`, from the same journal.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmdistill.config import Pipeline
from llmdistill.engines.base import Completion, Request
from llmdistill.engines.resume import answer_of, ask, usage_of
from llmdistill.errors import ConfigError
from llmdistill.generate.asker import Asker
from llmdistill.generate.fanout import Known, write_outcomes
from llmdistill.generate.replies import with_answer
from llmdistill.generate.synthesis import UNUSABLE, generation
from llmdistill.record import Record, Reject, record_id
from llmdistill.rows import has_surrogate, storable
from llmdistill.run.digest import Parts
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Manifest
from llmdistill.run.stage import Stage, num_records, read_all
from llmdistill.templates import EvolveTemplate, TeacherTemplate, fence_for, load_template
from llmdistill.text import plain

_LONGEST, _ROOM = 4, 400
"""A variant may have that many times the characters of its original, and so many more."""

_MOSTLY, _HARDLY = 0.5, 0.1
_THOUGHTS = re.compile(r"\A.*</think>", re.DOTALL)
_FENCED = re.compile(r"(`{3,})[^\n`]*\n(.*)\n\1", re.DOTALL)
_QUOTES = {'"': '"', "“": "”", "「": "」", "『": "』"}
_STOP_WORDS = frozenset(
    "a an and are as at be but by do for from how i if in is it of on or so than that the then there this to was what "
    "when where which who why will with you your 그 그리고 또는 및 수 의 이 저 것 등 를 을 은 는".split()
)
"""A prompt of these and of punctuation alone says nothing."""


@dataclass(frozen=True)
class _Answering:
    """Journals of both steps, and what failed in them."""

    evolved: Journal
    answers: Journal
    failed: dict[str, Completion]


class Evolved:
    """Asks the teacher for variants, then for answers."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.settings = pipeline, pipeline.generate.evolve
        path = self.settings.template or f"prompts/{pipeline.language}/evolve.yaml"
        self.template, template_hash = load_template(path, EvolveTemplate)
        missing = [kind for kind in self.settings.kinds if kind not in self.template.kinds]
        if missing:
            raise ConfigError(f"the template has no instruction for {', '.join(missing)}", where=path, do="add kinds")
        self.answer_template, answer_hash = load_template(pipeline.teacher_template, TeacherTemplate)
        self.evolver = Asker.of(pipeline, self.template, template_hash)
        teacher = Asker.of(pipeline, self.answer_template, answer_hash)
        # One engine for both steps: a model is loaded once.
        self.teacher = replace(teacher, engine=self.evolver.engine)
        self.asked: Parts = {**teacher.asked, "generate.evolve.template_sha256": template_hash}

    def run(self, stage: Stage) -> Manifest:
        """Ask for the variants, then for the answers to all that is left."""
        started = time.monotonic()
        total = num_records(self.pipeline.run_path, "prompts")
        with stage.journal(self.evolver.asked) as evolved, stage.journal(self.teacher.asked) as answers:
            try:
                failed = ask(self._requests(), evolved, self.evolver.engine, "evolve", total * len(self.settings.kinds))
                step = _Answering(evolved, answers, failed)
                num = sum(1 for _ in self._to_answer(step))
                failed |= ask(self._questions(step), answers, self.teacher.engine, "generate", num)
            finally:
                self.evolver.engine.close()
            counts = write_outcomes(stage, self._results(step), self.pipeline.generate.shard_size)
            seconds = time.monotonic() - started
            usage = usage_of(evolved, (request.id for request in self._requests()), seconds)
            answered = usage_of(answers, (record.id for record in self._to_answer(step)), seconds)
            return stage.finish(counts, replace(usage + answered, seconds=max(usage.seconds, answered.seconds)))

    def _pool(self) -> Iterator[Record]:
        return read_all(self.pipeline.run_path, "prompts")

    def _requests(self) -> Iterator[Request]:
        """What is asked for first: each prompt in each kind."""
        for record in self._pool():
            for kind in self.settings.kinds:
                prompt = record.prompt[-1]["content"]
                values = {"instruction": self.template.kinds[kind].strip(), "fence": fence_for(prompt)}
                yield self.evolver.request(_id(record, kind), self.template.messages(prompt=prompt, **values))

    def _questions(self, step: _Answering) -> Iterator[Request]:
        """What is asked for then: an answer to each prompt that is left."""
        for record in self._to_answer(step):
            yield self.teacher.request(record.id, self.answer_template.ask(record.prompt))

    def _to_answer(self, step: _Answering) -> Iterator[Record]:
        return (prompt for prompt in self._prompts(step) if isinstance(prompt, Record))

    def _prompts(self, step: _Answering) -> Iterator[Record | Reject]:
        """Originals and variants in the order of the pool, and the variants that failed."""
        known = Known(self.pipeline.run_path, self._pool())
        for original in self._pool():
            if self.settings.keep_originals:
                yield original
            for kind in self.settings.kinds:
                completion = answer_of(_id(original, kind), step.evolved, step.failed)
                yield self._variant(original, kind, completion, known)

    def _variant(self, original: Record, kind: str, completion: Completion, known: Known) -> Record | Reject:
        """The original's variant as a record of its own, without the original's reference."""
        text = read_variant(self.evolver.prefill + completion.text, self.template)
        wrong = self._fault(original, text, completion, known)
        meta = {"evolved_from": original.id, "kind": kind, "synthetic": generation([original])}
        if wrong is None:
            prompt = [*original.prompt[:-1], {"role": "user", "content": text}]
            return Record(record_id(prompt), prompt, source=original.source, meta=original.meta).with_meta(**meta)
        slot = record_id([{"role": "slot", "content": _id(original, kind)}])
        raw = storable(completion.text).strip()
        reply = [{"role": "assistant", "content": raw}] if raw else []
        info = self.evolver.info(completion)
        record = Record(slot, original.prompt, reply, source=original.source, teacher=info, meta=original.meta)
        return Reject(record.with_meta(**meta), "generate", *wrong)

    def _fault(self, original: Record, text: str, completion: Completion, known: Known) -> tuple[str, str] | None:
        """Reason and detail when a variant is none to answer."""
        if completion.finish_reason in UNUSABLE:
            return UNUSABLE[completion.finish_reason], completion.error
        if completion.finish_reason == "length":
            return "truncated", f"cut at {completion.completion_tokens:,} tokens"
        fault = variant_fault(original.prompt[-1]["content"], text, self.template)
        if fault:
            return fault
        question = "\n".join([*(m["content"] for m in original.prompt[:-1] if m["role"] == "user"), text])
        if known.is_held_out(question):
            return "held_out_prompt", ""
        return None if known.add(question) else ("duplicate_prompt", "an earlier prompt asks the same")

    def _results(self, step: _Answering) -> Iterator[Record | Reject]:
        """What became of every prompt and of every variant that was asked for."""
        for prompt in self._prompts(step):
            if isinstance(prompt, Reject):
                yield prompt
                continue
            completion = answer_of(prompt.id, step.answers, step.failed)
            asked = replace(prompt, teacher=self.teacher.info(completion))
            yield with_answer(asked, completion, self.pipeline.generate, self.answer_template, self.teacher.prefill)


def num_requests(pipeline: Pipeline, num_pool: int) -> int:
    """How many requests the mode makes at most: one for each variant, and one for each prompt that is answered."""
    settings = pipeline.generate.evolve
    return num_pool * (2 * len(settings.kinds) + settings.keep_originals)


def read_variant(reply: str, template: EvolveTemplate) -> str:
    """The new prompt of a reply: what follows the marker, or all of it; without the fence or quotes around it."""
    text = _THOUGHTS.sub("", reply).strip()
    if text.startswith("<think>"):
        return ""
    word = re.escape(template.prompt_marker.strip().removesuffix(":"))
    marks = list(re.finditer(rf"(?m:^)[ \t>*_#-]{{0,20}}{word}[ \t*_#]*[:：][*_]*", text, re.IGNORECASE))
    text = text[marks[0].end() :].strip() if marks else text
    fenced = _FENCED.fullmatch(text)
    text = fenced.group(2).strip() if fenced else text
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 1 and text.endswith(closing) and closing not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def variant_fault(original: str, text: str, template: EvolveTemplate) -> tuple[str, str] | None:
    """Reason and detail when a variant failed by itself (the eliminations of arXiv 2304.12244, section 3)."""
    words = [word for word in re.findall(r"\w+", plain(text)) if word not in _STOP_WORDS]
    if not words or has_surrogate(text):
        return "empty", "punctuation and stop words only" if text else ""
    if plain(text) == plain(original):
        return "no_change", "a copy of the original"
    for leak in template.leaks:
        if plain(leak) in plain(text) and plain(leak) not in plain(original):
            return "leaks_template", f"it speaks of {leak!r}"
    longest = _LONGEST * len(original) + _ROOM
    if len(text) > longest:
        return "over_long", f"{len(text):,} characters, at most {longest:,}"
    if _is_other_script(original, text):
        return "wrong_language", "one is in Hangul, the other is not"
    return None


def _is_other_script(original: str, text: str) -> bool:
    shares = sorted(map(_share_of_hangul, (original, text)))
    return shares[0] < _HARDLY and shares[1] > _MOSTLY


def _share_of_hangul(text: str) -> float:
    letters = [character for character in text if character.isalpha()]
    return sum(unicodedata.name(letter, "").startswith("HANGUL") for letter in letters) / max(1, len(letters))


def _id(record: Record, kind: str) -> str:
    """The request for one variant."""
    return f"{record.id}-{kind}"
