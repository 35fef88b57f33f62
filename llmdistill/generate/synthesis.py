"""The mode `synthetic_qa`: new question-answer pairs from seed examples or from the user's documents.

One request asks for several pairs. Every pair that was asked for is accounted for: kept, or rejected with its
reason, `missing_pair` if it never came; pairs beyond those asked for count too.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmdistill.config import Pipeline
from llmdistill.engines.base import Completion, Request
from llmdistill.engines.resume import answer_of, usage_of
from llmdistill.generate.asker import Asker
from llmdistill.generate.fanout import Known, write_outcomes
from llmdistill.generate.pairs import Piece, read_pairs
from llmdistill.record import Message, Record, Reject, Source, TeacherInfo, record_id
from llmdistill.rows import storable
from llmdistill.run.digest import Parts, digest_of
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Manifest
from llmdistill.run.stage import FAILED, Stage, num_records, read_all
from llmdistill.templates import DocumentPairsTemplate, PairsTemplate, fence_for, load_template

UNUSABLE = {
    "too_long": "prompt_too_long",
    "failed": FAILED,
    "refused": "refused",
    "content_filter": "content_filter",
}
_TEXT = r"(?:text|passage|excerpt|article|document|paragraph)"
_REFERS = re.compile(
    rf"\b(?:according to|based on|mentioned in|described in|stated in|discussed in|presented in|given in)"
    rf" (?:the|this)(?: above| given| provided| following)? {_TEXT}\b"
    rf"|\b(?:in|from|by) (?:the|this) (?:(?:above|given|provided|following) {_TEXT}\b|{_TEXT}\s*(?:[?,.]|$))"
    rf"|\b(?:does|do|did) (?:the|this) (?:passage|excerpt|author)\b"
    r"|(?<![가-힣])(?:위|윗|이|본|주어진|제시된) ?(?:글|본문|지문|텍스트|문서|자료|문단)"
    r"(?:에서|에|은|는|이|을|를|의)?(?![가-힣])"
    r"|(?<![가-힣])(?:글|본문|지문|텍스트|문서|자료)에 (?:따르면|의하면|나온|나오는|언급된|제시된)"
    r"|(?<![가-힣])(?:본문|글쓴이|필자)(?:에서|에|은|는|이|가|의)(?![가-힣])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Question:
    """One request: what the teacher is shown, and of which records that is made."""

    id: str
    messages: list[Message]
    shown: list[Record]


class Synthesis:
    """Asks the teacher for pairs and sorts what comes."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.settings = pipeline, pipeline.generate.synthesis
        self.from_documents = pipeline.prompts.are_documents
        name = "synthetic_qa_documents" if self.from_documents else "synthetic_qa"
        path = self.settings.template or f"prompts/{pipeline.language}/{name}.yaml"
        kind = DocumentPairsTemplate if self.from_documents else PairsTemplate
        self.template, template_hash = load_template(path, kind)
        self.schema = pairs_schema(self.template)
        asker = Asker.of(pipeline, self.template, template_hash)
        self.asked: Parts = {
            **asker.asked,
            "generate.synthesis.pairs": self.settings.pairs,
            "generate.synthesis.schema": digest_of(self.schema),
        }
        if not self.from_documents:
            self.asked["generate.synthesis.examples"] = self.settings.examples
        # An engine that holds the reply to the schema would have it begin in the middle.
        prefill = asker.prefill if pipeline.teacher.engine == "transformers" else ""
        self.teacher = replace(asker, asked=self.asked, prefill=prefill)

    def run(self, stage: Stage) -> Manifest:
        """Ask for all pairs, then sort them."""
        started = time.monotonic()
        with stage.journal(self.asked) as journal:
            total = num_requests(self.pipeline, num_records(self.pipeline.run_path, "prompts"))
            requests = (self._request(question) for question in self._questions())
            failed = self.teacher.ask(requests, journal, total)
            results = self._results(journal, failed)
            counts = write_outcomes(stage, results, self.pipeline.generate.shard_size)
            ids = (question.id for question in self._questions())
            return stage.finish(counts, usage_of(journal, ids, time.monotonic() - started))

    def _request(self, question: _Question) -> Request:
        return replace(self.teacher.request(question.id, question.messages), schema=self.schema)

    def _questions(self) -> Iterator[_Question]:
        """All requests in their order. The same request twice differs by a number, which makes its sampling differ."""
        times_asked: Counter[str] = Counter()
        for shown in self._shown():
            messages = self._messages(shown)
            content = record_id(messages)
            yield _Question(record_id(messages, times_asked[content]), messages, shown)
            times_asked[content] += 1

    def _shown(self) -> Iterator[list[Record]]:
        """What each request shows: a chunk, or some seeds."""
        found = read_all(self.pipeline.run_path, "prompts")
        if self.from_documents:
            return ([record] for record in found)
        pool = list(found)
        drawn = draw(len(pool), self.settings.examples, num_requests(self.pipeline, len(pool)), self.pipeline.seed)
        return ([pool[index] for index in indices] for indices in drawn)

    def _messages(self, shown: Sequence[Record]) -> list[Message]:
        pairs = str(self.settings.pairs)
        if self.from_documents:
            text = shown[0].question
            return self.template.messages(document=text, pairs=pairs, fence=fence_for(text))
        examples = "\n\n".join(_fenced(seed, self.template) for seed in shown)
        return self.template.messages(examples=examples, pairs=pairs)

    def _results(self, journal: Journal, failed: dict[str, Completion]) -> Iterator[Record | Reject]:
        """What became of every pair, in the order of the requests."""
        seeds = () if self.from_documents else read_all(self.pipeline.run_path, "prompts")
        known = Known(self.pipeline.run_path, seeds)
        for question in self._questions():
            completion = answer_of(question.id, journal, failed)
            pieces = self._pieces(completion)
            infos = _shared(self.teacher.info(completion), [bool(piece.raw) for piece in pieces])
            for number, (piece, info) in enumerate(zip(pieces, infos, strict=True), start=1):
                yield self._sorted(self._record(question, number, piece, info), piece, known)

    def _pieces(self, completion: Completion) -> list[Piece]:
        """As many pieces as pairs were asked for, or more."""
        most, raw = self.settings.pairs, self.teacher.prefill + completion.text
        if completion.finish_reason in UNUSABLE:
            empty = Piece(reason=UNUSABLE[completion.finish_reason], detail=completion.error)
            return [replace(empty, raw=completion.text), *[empty] * (most - 1)]
        is_cut = completion.finish_reason == "length"
        pieces = read_pairs(completion.text, self.teacher.prefill, is_cut, self.template)
        if not pieces:
            pieces = [Piece(raw=raw, reason="unparsed", detail="no pair in the reply")]
            return [*pieces, *[replace(pieces[0], raw="")] * (most - 1)]
        missing = Piece(reason="missing_pair", detail=f"{len(pieces)} of {most} came")
        return [*pieces, *[missing] * (most - len(pieces))]

    def _record(self, question: _Question, number: int, piece: Piece, info: TeacherInfo) -> Record:
        """A pair as a record. What is no pair keeps the part of the reply that it is."""
        if piece.question and piece.answer and not piece.reason and info.finish_reason == "length":
            info = replace(info, finish_reason="stop")  # the reply was cut off after this pair
        system = self.pipeline.prompts.system
        prompt: list[Message] = [{"role": "system", "content": system}] if system else []
        prompt.append({"role": "user", "content": piece.question})
        parts = [part for part in (piece.rationale, piece.answer) if part]
        text = "\n\n".join(parts) if piece.question and piece.answer else storable(piece.raw)
        slot = [{"role": "slot", "content": f"{question.id}:{number}"}]
        return Record(
            id=record_id(prompt if piece.question else slot),
            prompt=prompt if piece.question else [],
            completion=[{"role": "assistant", "content": text}] if text else [],
            rationale=piece.rationale,
            answer=piece.answer or None,
            source=_source(question.shown),
            teacher=info,
        ).with_meta(**self._meta(question, number))

    def _meta(self, question: _Question, number: int) -> dict[str, Any]:
        shown = question.shown
        from_ = {"chunk": shown[0].source.key} if self.from_documents else {"seeds": [record.id for record in shown]}
        return {**from_, "request": question.id, "pair": number, "synthetic": generation(shown)}

    def _sorted(self, record: Record, piece: Piece, known: Known) -> Record | Reject:
        reason, detail = piece.reason, piece.detail
        if not reason and self.from_documents and (found := _REFERS.search(piece.question)):
            reason, detail = "question_refers_to_text", found.group(0).strip()
        if not reason and known.is_held_out(piece.question):
            reason = "held_out_question"
        if not reason and not known.add(piece.question):
            reason, detail = "duplicate_question", "a seed or an earlier pair asks the same"
        return Reject(record, "generate", reason, detail) if reason else record


def num_requests(pipeline: Pipeline, num_pool: int) -> int:
    """How many requests the mode makes of a pool of seeds or chunks; each asks for `synthesis.pairs` pairs."""
    if pipeline.prompts.are_documents or not num_pool:
        return num_pool
    return pipeline.generate.synthesis.requests or num_pool


def draw(num_seeds: int, examples: int, num: int, seed: int) -> Iterator[list[int]]:
    """Which seeds each of `num` requests shows: different ones, and each as often as the others or once more."""
    generator, deck = random.Random(seed), list[int]()
    size = min(examples, num_seeds)
    for _ in range(num):
        if len(deck) < size:
            again = generator.sample(range(num_seeds), num_seeds)
            left = set(deck)
            deck += [index for index in again if index not in left] + [index for index in again if index in left]
        yield deck[:size]
        deck = deck[size:]


def pairs_schema(template: PairsTemplate) -> dict[str, Any]:
    """JSON schema of a reply; servers that keep strictly to a schema want every key required."""
    parts = ["question", *(["rationale"] if template.rationale_marker else []), "answer"]
    pair = {
        "type": "object",
        "properties": {part: {"type": "string"} for part in parts},
        "required": parts,
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"pairs": {"type": "array", "items": pair}},
        "required": ["pairs"],
        "additionalProperties": False,
    }


def generation(origins: Sequence[Record]) -> int:
    """How many times in a row a model has written from what a model had written; 1 from real data."""
    return 1 + max((int(json.loads(record.meta).get("synthetic", 0)) for record in origins), default=0)


def _fenced(seed: Record, template: PairsTemplate) -> str:
    """A seed as an example, with its reference for an answer if it has one."""
    text = f"{template.question_marker} {seed.question}"
    if seed.reference:
        text += f"\n{template.answer_marker} {seed.reference}"
    fence = fence_for(text)
    return f"{fence}\n{text}\n{fence}"


def _source(shown: Sequence[Record]) -> Source:
    """Where the seeds or the chunk came from; several values side by side."""
    values = {
        name: list(dict.fromkeys(value for record in shown if (value := getattr(record.source, name)) is not None))
        for name in ("dataset", "split", "key", "licence")
    }
    joined = {name: (" AND " if name == "licence" else "+").join(found) or None for name, found in values.items()}
    return Source(**joined)


def _shared(info: TeacherInfo, have_text: Sequence[bool]) -> list[TeacherInfo]:
    """What a request took, divided among the pieces of its reply so that the sums are right."""
    places = [index for index, has_text in enumerate(have_text) if has_text] or [0]
    num = len(places)
    cost = None if info.cost is None else info.cost / num
    share = replace(
        info, prompt_tokens=info.prompt_tokens // num, completion_tokens=info.completion_tokens // num, cost=cost
    )
    first = replace(
        share,
        prompt_tokens=share.prompt_tokens + info.prompt_tokens % num,
        completion_tokens=share.completion_tokens + info.completion_tokens % num,
        cost=None if info.cost is None or cost is None else info.cost - cost * (num - 1),
    )
    nothing = replace(info, prompt_tokens=0, completion_tokens=0, cost=None if info.cost is None else 0.0)
    return [first if index == places[0] else share if index in places else nothing for index in range(len(have_text))]
