"""The new student and the champion on the same held-out prompts, record by record.

The new student's answers and scores are those of the stage `evaluate`; the champion answers and is scored in the same
way, on the same texts. Its rows are kept in the journals of the version's `evaluate`, by what they depend on: the
champion's weights, not its number or place. So a kill costs what was not on disk, the same comparison again asks
nothing, and a version that is compared with a champion of before inherits what was measured then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmdistill.config import Pipeline
from llmdistill.engines.base import Completion
from llmdistill.engines.models import ModelSource, find_model, load_tokenizer
from llmdistill.errors import DamagedError, StageError
from llmdistill.evaluate.answers import Contestant, ask
from llmdistill.evaluate.measure import KINDS, Distances, measure, target_ids
from llmdistill.evaluate.stage import like_teacher, teacher_asked, teacher_weights
from llmdistill.generate.replies import split_reply
from llmdistill.record import Message, Record
from llmdistill.refresh.intervals import Floats
from llmdistill.run.digest import Parts, digest_of
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import read_manifest
from llmdistill.run.stage import Stage, inputs_of, part_paths, read_all
from llmdistill.run.tables import read_columns
from llmdistill.templates import TeacherTemplate
from llmdistill.text import plain
from llmdistill.verify.records import RecordVerifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ACCURACY = "accuracy"
MEASURES = (ACCURACY, "human_text_ce", "teacher_text_ce", "teacher_text_kl", "teacher_text_top1")
"""What can be compared, in the order in which one is taken where none is asked for."""

SHARES = (ACCURACY, "teacher_text_top1")
"""Measures that are shares: higher is better. The others are nats per token."""

Agreement = Literal["tokens", "text"]
"""Whether two models are scored on the same tokens of a text, or on the same text in tokens of their own."""


@dataclass(frozen=True)
class Pairs:
    """One measure of both models.

    Attributes:
        ids: of the records that can be compared.
        champion: [records] sums over tokens; 1 or 0 for a right or wrong answer.
        student: the same of the new student.
        weights: [records] of the new student's tokens; 1 for an answer.
    """

    measure: str
    ids: list[str]
    champion: Floats
    student: Floats
    weights: Floats

    @property
    def higher_is_better(self) -> bool:
        """Which way is up."""
        return self.measure in SHARES


@dataclass(frozen=True)
class HeldOut:
    """The held-out prompts that the teacher had an answer to, as `evaluate` left them.

    Attributes:
        records: those that neither model was trained on.
        num_all: with those that one of them was trained on.
    """

    records: list[Record]
    num_all: int

    @property
    def num_leaked(self) -> int:
        """How many one of the two was trained on."""
        return self.num_all - len(self.records)


def held_out_of(pipeline: Pipeline, trained: Iterable[Path]) -> HeldOut:
    """Read what both are compared on.

    Args:
        trained: run directories on whose curated records one of the two was trained. A question counts as trained on
            whatever sample of it, under whatever system prompt, case or spacing.

    Raises:
        StageError: a stage is not finished.
    """
    inputs_of(pipeline.run_path, "evaluate")
    records = list(read_all(pipeline.run_path, "evaluate"))
    asked = {_question(record.prompt) for record in records} - {""}
    seen = {question for run_dir in trained for question in _questions(run_dir) if question in asked}
    return HeldOut([record for record in records if _question(record.prompt) not in seen], len(records))


def _questions(run_dir: Path) -> Iterable[str]:
    inputs_of(run_dir, "curate")
    for path in part_paths(run_dir / "curate"):
        for table in read_columns(path, ["prompt"]):
            yield from map(_question, table.column("prompt").to_pylist())


def _question(prompt: Sequence[Message]) -> str:
    return plain("\n".join(message["content"] for message in prompt if message["role"] == "user"))


def has_reference(pipeline: Pipeline, record: Record) -> bool:
    """Whether a verifier has something to check an answer against."""
    verify = pipeline.filter.verify
    return verify is not None and (verify.has_rule or bool((record.reference or "").strip()))


def same_weights(one: Path, other: Path) -> bool:
    """Whether the students of two run directories are one and the same: weights, tokenizer and configuration."""
    if not _weights_of(one) or _weights_of(one) != _weights_of(other):
        return False
    return find_model(str(student_dir(one))).revision == find_model(str(student_dir(other))).revision


def _weights_of(run_dir: Path) -> dict[str, str]:
    manifest = read_manifest(run_dir / "train")
    outputs = manifest.outputs if manifest else {}
    return {name: sha256 for name, sha256 in outputs.items() if name.endswith(".safetensors")}


def student_dir(run_dir: Path) -> Path:
    """Where the student of a run lies.

    Raises:
        StageError: `train` is not finished.
        DamagedError: its files are gone.
    """
    inputs_of(run_dir, "train")
    path = run_dir / "train" / "student"
    if not (path / "config.json").exists():
        raise DamagedError("the student is missing", where=path, do="restore it, or remove train/ and train again")
    return path


class Comparison:
    """A version and the champion, before they are measured.

    Args:
        pipeline: the version's; its `evaluate` is finished.
        champion_dir: the champion's run directory.
        records: held-out prompts, as `evaluate` left them.
    """

    def __init__(self, pipeline: Pipeline, champion_dir: Path, records: list[Record]) -> None:
        self.pipeline, self.records = pipeline, records
        self.template, self.asked_teacher = teacher_asked(pipeline)
        self.student = ModelSource("student", student_dir(pipeline.run_path), "student")
        self.champion = ModelSource("champion", student_dir(champion_dir), "champion")
        self.is_same = same_weights(pipeline.run_path, champion_dir)
        self._champion_weights = inputs_of(champion_dir, "train")
        self._stage = Stage(pipeline.run_path, "evaluate", {})

    def pairs(self) -> dict[str, Pairs]:
        """Every measure that is to be had of both, in the order of `MEASURES`; the champion is asked and scored."""
        found = {}
        checked = [record for record in self.records if has_reference(self.pipeline, record)]
        if checked:
            found[ACCURACY] = self._accuracy(checked)
        own = {record.id: _meta(record)["distances"] for record in self.records}
        theirs, agreements = (own, _on_tokens(self.records)) if self.is_same else self._scored(own)
        for name in MEASURES[1:]:
            pairs = _paired(name, own, theirs, agreements)
            if pairs is not None:
                found[name] = pairs
        return found

    def _accuracy(self, records: list[Record]) -> Pairs:
        """Whether each reply is right. What only one verdict says nothing of is not right; what neither does is out."""
        own = {record.id: str(_meta(record)["replies"]["student"]) for record in records}
        theirs = own if self.is_same else self._replies(records)
        assert self.pipeline.filter.verify is not None
        verifier = RecordVerifier(self.pipeline.filter.verify)
        rows = []
        with self._stage.journal(verifier.parts) as journal:
            for record in records:
                marks = [
                    _mark(record, replies[record.id], self.template, verifier, journal) for replies in (theirs, own)
                ]
                if marks != [None, None]:
                    rows.append((record.id, float(marks[0] is True), float(marks[1] is True), 1.0))
        return _pairs_of(ACCURACY, rows)

    def _replies(self, records: list[Record]) -> dict[str, str]:
        """The champion's greedy answers, found under the key by which its own `evaluate` asked for them too."""
        champion = Contestant("student", like_teacher(self.pipeline, self.champion.path))
        answers = ask(champion, records, self.pipeline, self._stage, self._champion_weights, timed=False)
        return {id_: completion.text for id_, completion in answers.replies.items()}

    def _teacher_replies(self) -> dict[str, Completion]:
        """What the teacher answered for `evaluate`: all of it is in the journal, so nobody is asked."""
        teacher = Contestant("teacher", self.pipeline.teacher, self.template)
        return ask(teacher, self.records, self.pipeline, self._stage, self.asked_teacher, timed=False).replies

    def _scored(self, own: Distances) -> tuple[Distances, dict[tuple[str, str], Agreement]]:
        """The champion's sums on the same texts, and on which of them they can be compared."""
        replies = self._teacher_replies()
        # A reference may be mended, and a teacher may answer anew, under the same prompt: rows are found by the text.
        keys = {record.id: _text_key(record, replies[record.id]) for record in self.records}
        sources = {"student": self.champion}
        has_kl = any("kl" in roles["student"] for kinds in own.values() for roles in kinds.values())
        teacher = teacher_weights(self.pipeline, self.champion) if has_kl else None
        if teacher:
            sources["teacher"] = teacher
        contestants = {
            "student": Contestant("student", like_teacher(self.pipeline, self.champion.path)),
            "teacher": Contestant("teacher", self.pipeline.teacher, self.template),
        }
        asked = [replace(record, id=keys[record.id]) for record in self.records]
        texts = {keys[id_]: reply for id_, reply in replies.items()}
        with self._stage.journal(self._scoring_parts(teacher)) as journal:
            sums = measure(asked, texts, contestants, sources, journal)
        agreements = _agreements(self.records, replies, load_tokenizer(self.student), load_tokenizer(self.champion))
        return {id_: sums[key] for id_, key in keys.items()}, agreements

    def _scoring_parts(self, teacher: ModelSource | None) -> Parts:
        return {
            "what": "distances of the champion",
            **self._champion_weights,
            **(self.asked_teacher if teacher else {}),
            "teacher.weights": teacher.revision if teacher else None,
            "dtype": self.pipeline.teacher.dtype,
        }


def _mark(
    record: Record, reply: str, template: TeacherTemplate, verifier: RecordVerifier, journal: Journal
) -> bool | None:
    """The verifier's word on a reply; one without text is wrong."""
    if not reply.strip():
        return False
    parsed = split_reply(reply, template)
    answer = parsed[1] if parsed else reply.strip()
    return verifier.verified(replace(record, answer=answer), journal).ok


def _paired(
    measure_name: str, own: Distances, theirs: Distances, agreements: Mapping[tuple[str, str], Agreement]
) -> Pairs | None:
    """One measure of the records on whose text both have it; None when there is none.

    The likelihood of a text is comparable whatever tokens it is cut into, so the cross-entropy of either model is
    divided by the new student's tokens: nats per byte, in a unit in which the margin keeps its meaning. A distance
    from the teacher is one between distributions over tokens, and only the same tokens can be compared.
    """
    kind = next(kind for kind in KINDS if measure_name.startswith(kind))
    name = measure_name.removeprefix(f"{kind}_")
    rows = []
    for id_, kinds in own.items():
        if kind not in kinds or kind not in theirs[id_]:
            continue
        mine, other = kinds[kind]["student"], theirs[id_][kind]["student"]
        enough = ("tokens", "text") if name == "ce" else ("tokens",)
        if name in mine and name in other and mine["tokens"] and agreements.get((id_, kind)) in enough:
            rows.append((id_, other[name], mine[name], mine["tokens"]))
    return _pairs_of(measure_name, rows) if rows else None


def _pairs_of(name: str, rows: list[tuple[str, float, float, float]]) -> Pairs:
    champion, student, weights = (np.array([row[column] for row in rows], dtype=float) for column in (1, 2, 3))
    return Pairs(name, [row[0] for row in rows], champion, student, weights)


def _agreements(
    records: list[Record],
    replies: Mapping[str, Completion],
    student: PreTrainedTokenizerBase,
    champion: PreTrainedTokenizerBase,
) -> dict[tuple[str, str], Agreement]:
    """On which texts two models can be compared, by record and kind of text."""
    found: dict[tuple[str, str], Agreement] = {}
    for record in records:
        texts = {"teacher_text": replies[record.id].text.strip(), "human_text": (record.reference or "").strip()}
        for kind, text in texts.items():
            agreement = _agreement(text, student, champion)
            if agreement:
                found[record.id, kind] = agreement
    return found


def _agreement(text: str, student: PreTrainedTokenizerBase, champion: PreTrainedTokenizerBase) -> Agreement | None:
    """None where one of them scores less than the text: its end is cut off, or letters are unknown to it."""
    one, other = target_ids(text, student), target_ids(text, champion)
    if one == other:
        return "tokens"
    return "text" if _is_whole(text, one, student) and _is_whole(text, other, champion) else None


def _is_whole(text: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    return str(tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False)).strip() == text


def _on_tokens(records: list[Record]) -> dict[tuple[str, str], Agreement]:
    return {(record.id, kind): "tokens" for record in records for kind in KINDS}


def _text_key(record: Record, reply: Completion) -> str:
    texts = {"reference": record.reference, "teacher": reply.text, "finish_reason": reply.finish_reason}
    return f"{record.id}-{digest_of(texts)[:16]}"


def _meta(record: Record) -> dict[str, Any]:
    """What `evaluate` noted of a record.

    Raises:
        StageError: this is not a record of `evaluate`.
    """
    meta = json.loads(record.meta)
    if "distances" not in meta or "replies" not in meta:
        raise StageError("evaluate left no measurement of a record", where=record.id, do="run llmdistill evaluate")
    return meta
