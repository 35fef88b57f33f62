"""The stage `evaluate`: three models answer and are measured, side by side.

Texts measured on: the teacher's own greedy answers, and the human references
where the prompts have them. Every model is scored on the same tokens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmdistill.config import Model, Pipeline
from llmdistill.engines.models import ModelSource, num_parameters
from llmdistill.engines.resume import find, find_weights, model_parts, usage_from
from llmdistill.evaluate.answers import Answers, Contestant, ask
from llmdistill.evaluate.measure import KINDS, Distances, measure, weigh
from llmdistill.record import Record, Reject
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.manifest import Counts, Manifest
from llmdistill.run.stage import begin, inputs_of, read_held_out, write_part
from llmdistill.signals.vocabulary import same_tokens
from llmdistill.templates import TeacherTemplate, load_template

ROLES = ("teacher", "untrained", "student")


def run(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Compare student, untrained student and teacher on the held-out prompts."""
    template, asked_teacher = teacher_asked(pipeline)
    asked_student = inputs_of(pipeline.run_path, "train")
    parts: Parts = {
        **flatten(pipeline.evaluate.digest_view(), "evaluate."),
        **asked_teacher,
        **asked_student,
        **inputs_of(pipeline.run_path, "prompts"),
    }
    stage = begin(pipeline.run_path, "evaluate", parts, fresh=fresh)
    if isinstance(stage, Manifest):
        return stage
    started = time.monotonic()
    records = read_held_out(pipeline.run_path)[: pipeline.evaluate.limit]
    if not records:
        return stage.finish(Counts(0, 0, 0), metrics={"table": {}})
    contestants = _contestants(pipeline, template)
    asked = {"teacher": asked_teacher, "untrained": asked_student, "student": asked_student}
    answers = {role: ask(contestants[role], records, pipeline, stage, asked[role]) for role in ROLES}
    usable = [record for record in records if _has_text(answers["teacher"], record)]
    rejects = [Reject(record, "evaluate", "no_teacher_answer") for record in records if record not in usable]
    sources = _weights(pipeline)
    with stage.journal({**parts, "what": "distances", "measured": sorted(sources)}) as journal:
        distances = measure(usable, answers["teacher"].replies, contestants, sources, journal)
    write_part(stage, 0, [_result(record, answers, distances) for record in usable])
    reasons = stage.write_rejects(rejects)
    compared = ROLES if usable else ()
    table = {role: _row(role, sources.get(role), usable, answers[role], distances) for role in compared}
    counts = Counts(len(records), len(usable), len(rejects), reasons=reasons)
    replies = [reply for found in answers.values() for reply in found.replies.values()]
    return stage.finish(counts, usage_from(replies, time.monotonic() - started), metrics={"table": table})


def teacher_asked(pipeline: Pipeline) -> tuple[TeacherTemplate, Parts]:
    """How the teacher is asked about a held-out prompt, and what its answers depend on."""
    template, template_hash = load_template(pipeline.teacher_template, TeacherTemplate)
    parts: Parts = {
        **model_parts("teacher", pipeline.teacher, find(pipeline.teacher)),
        "generate.template_sha256": template_hash,
    }
    return template, parts


def _contestants(pipeline: Pipeline, template: TeacherTemplate) -> dict[str, Contestant]:
    """The teacher is asked where it is; the students are local."""
    found = {"teacher": Contestant("teacher", pipeline.teacher, template)}
    for role in ("untrained", "student"):
        found[role] = Contestant(role, like_teacher(pipeline, pipeline.run_path / "train" / role))
    return found


def like_teacher(pipeline: Pipeline, path: Path) -> Model:
    """A student in a directory, loaded the way a local teacher would be."""
    like = pipeline.teacher
    return Model(model=str(path), dtype=like.dtype, device=like.device, batch_size=like.batch_size)


def _weights(pipeline: Pipeline) -> dict[str, ModelSource]:
    """Where the weights of each model lie; the teacher may have none."""
    train_dir = pipeline.run_path / "train"
    found = {role: ModelSource(role, train_dir / role, role) for role in ("untrained", "student")}
    teacher = teacher_weights(pipeline, found["student"])
    return {"teacher": teacher, **found} if teacher else found


def teacher_weights(pipeline: Pipeline, student: ModelSource) -> ModelSource | None:
    """The teacher's weights; None where a server keeps them, or where its tokens are not the student's."""
    if not pipeline.has_teacher_weights:
        return None
    teacher = find_weights(pipeline.teacher)
    return teacher if same_tokens(teacher, student) else None


def _has_text(answers: Answers, record: Record) -> bool:
    return bool(answers.replies[record.id].text.strip())


def _result(record: Record, answers: Mapping[str, Answers], distances: Distances) -> Record:
    """The held-out record with the teacher's answer; the other replies and the numbers are in `meta`."""
    replies = {role: answers[role].replies[record.id].text for role in ROLES}
    teacher = [{"role": "assistant", "content": replies["teacher"].strip()}]
    return replace(record, completion=teacher).with_meta(replies=replies, distances=distances[record.id])


def _row(
    role: str, source: ModelSource | None, records: list[Record], answers: Answers, distances: Distances
) -> dict[str, Any]:
    """One column of the comparison: numbers with their 95 % intervals over records."""
    replies = [answers.replies[record.id] for record in records]
    row: dict[str, Any] = {
        "stopped": sum(reply.finish_reason == "stop" for reply in replies) / len(replies),
        "answer_tokens": sum(reply.completion_tokens for reply in replies) / len(replies),
        "tokens_per_second": answers.tokens_per_second,
        **(_size(source.path) if source else {}),
    }
    per_record = [distances[record.id] for record in records]
    for kind in KINDS:
        sums = [record[kind][role] for record in per_record if role in record.get(kind, {})]
        for name in ("kl", "top1", "ce"):
            row[f"{kind}_{name}"] = weigh([sum_ for sum_ in sums if name in sum_], name)
    return row


def _size(path: Path) -> dict[str, int]:
    """Parameters, and bytes on disk."""
    return {
        "parameters": num_parameters(path),
        "bytes": sum(file.stat().st_size for file in path.glob("*.safetensors")),
    }
