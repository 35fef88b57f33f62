"""How one student does on the held-out prompts; what is measured once is kept by what it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.ablate.variants import ablation_of
from llmdistill.config import Pipeline
from llmdistill.engines.base import Completion
from llmdistill.engines.models import ModelSource, find_model, load_model, load_tokenizer, render_prompt
from llmdistill.engines.resume import find, find_weights, model_parts
from llmdistill.errors import ConfigError, DamagedError, ModelError
from llmdistill.evaluate.answers import Contestant, ask
from llmdistill.evaluate.measure import Sums, sums_of, target_ids, teacher_target
from llmdistill.record import Record
from llmdistill.run.digest import Parts, digest_of
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import read_json, write_json
from llmdistill.run.journal import Journal
from llmdistill.run.progress import progress
from llmdistill.run.stage import Stage, inputs_of, read_held_out
from llmdistill.signals.vocabulary import same_tokens
from llmdistill.templates import TeacherTemplate, load_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = "measure"


@dataclass(frozen=True)
class Measurement:
    """One student on the held-out prompts.

    Attributes:
        sums: by record id, sums over the tokens measured on.
        chosen: records that curation chose; None for the untrained student.
        trained: those of them that training could use.
        target_tokens: tokens trained on, each counted once.
        seconds: what training took.
    """

    sums: dict[str, Sums]
    chosen: int | None = None
    trained: int | None = None
    target_tokens: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """What every student is measured on, and against whom.

    Attributes:
        replies: the teacher's answers by record id, where they are measured on.
        teacher: the teacher's weights, where its distribution is compared with.
        parts: everything about it that a measurement depends on.
    """

    records: list[Record]
    replies: dict[str, Completion]
    teacher: ModelSource | None
    parts: Parts


def held_out_of(pipeline: Pipeline) -> HeldOut:
    """Find the prompts and the teacher that the measure needs; the teacher answers each prompt once.

    Raises:
        ConfigError: no held-out prompt can be measured on in this way.
        ModelError: the teacher's weights cannot be compared with the student's.
    """
    ablation = ablation_of(pipeline)
    records = read_held_out(pipeline.run_path)[: pipeline.evaluate.limit]
    parts: Parts = {
        **inputs_of(pipeline.run_path, "prompts"),
        "evaluate.limit": pipeline.evaluate.limit,
        "text": ablation.kind,
    }
    teacher, replies = None, {}
    if ablation.needs_teacher:
        teacher = _teacher_weights(pipeline)
        parts |= {**_asked_parts(pipeline), "teacher.weights": teacher.revision}
    if ablation.needs_answers:
        replies = _teacher_replies(pipeline, records)
        parts |= {**_asked_parts(pipeline), "replies": digest_of({key: one.text for key, one in replies.items()})}
        records = [record for record in records if replies[record.id].text.strip()]
    else:
        records = [record for record in records if (record.reference or "").strip()]
    if not records:
        what = "answer of the teacher to a held-out prompt" if ablation.needs_answers else "held-out prompt's reference"
        do = "hold out prompts that have references, or measure on another text"
        raise ConfigError(f"there is no {what} to measure on", where=f"ablation.measure: {ablation.measure}", do=do)
    return HeldOut(records, replies, teacher, parts)


def _asked_parts(pipeline: Pipeline) -> Parts:
    """What the teacher's answers depend on, as the stage `evaluate` says it too: the two share them."""
    return {
        **model_parts("teacher", pipeline.teacher, find(pipeline.teacher)),
        "generate.template_sha256": load_template(pipeline.teacher_template, TeacherTemplate)[1],
    }


def _teacher_replies(pipeline: Pipeline, records: list[Record]) -> dict[str, Completion]:
    template, _ = load_template(pipeline.teacher_template, TeacherTemplate)
    stage = Stage(pipeline.run_path, "evaluate", {})
    return ask(
        Contestant("teacher", pipeline.teacher, template), records, pipeline, stage, _asked_parts(pipeline)
    ).replies


def _teacher_weights(pipeline: Pipeline) -> ModelSource:
    teacher = find_weights(pipeline.teacher)
    student = pipeline.student
    if student.model and not same_tokens(teacher, find_model(student.model, student.revision)):
        raise ModelError(
            "teacher and student have different tokenizers, so their distributions cannot be compared",
            where=f"ablation.measure: {ablation_of(pipeline).measure}",
            do="measure human_text_ce",
        )
    return teacher


def measurement_path(folder: Path, parts: Mapping[str, Any]) -> Path:
    """Where the measurement that depends on `parts` is, or will be."""
    return folder / FOLDER / f"{digest_of(parts)[:16]}.json"


def read_measurement(path: Path) -> Measurement | None:
    """A finished measurement; None where there is none yet.

    Raises:
        DamagedError: the file is something else.
    """
    if not path.exists():
        return None
    try:
        return Measurement(**read_json(path))
    except TypeError as error:
        raise DamagedError("this is no measurement", where=path, do="remove it to have it made again") from error


def measure_student(
    path: Path, source: ModelSource, held_out: HeldOut, pipeline: Pipeline, **facts: Any
) -> Measurement:
    """Measure a student and put the measurement at `path`; a kill costs a few records.

    Args:
        facts: what else is to be known about the student.
    """
    with Journal(path.with_suffix(".jsonl")) as journal:
        if any(record.id not in journal for record in held_out.records):
            _measure(source, held_out, pipeline, journal)
        made = Measurement({record.id: journal[record.id]["sums"] for record in held_out.records}, **facts)
    failpoint("ablate.before_measurement")
    write_json(path, asdict(made))
    journal.path.unlink()
    return made


def _measure(source: ModelSource, held_out: HeldOut, pipeline: Pipeline, journal: Journal) -> None:
    tokenizer = load_tokenizer(source)
    like = pipeline.teacher
    sources = {"student": source} | ({"teacher": held_out.teacher} if held_out.teacher else {})
    models = {role: load_model(found, like.dtype, like.device) for role, found in sources.items()}
    template, _ = load_template(pipeline.teacher_template, TeacherTemplate)
    with progress("measure", len(held_out.records)) as bar:
        for record in held_out.records:
            if record.id not in journal:
                prompts = {"student": render_prompt(tokenizer, record.prompt)}
                if held_out.teacher:
                    prompts["teacher"] = render_prompt(tokenizer, template.ask(record.prompt))
                target = _text(record, held_out, tokenizer)
                journal.append(record.id, sums=sums_of(models, prompts, target, tokenizer.pad_token_id)["student"])
                failpoint("ablate.after_record")
            bar.advance()
    journal.commit()


def _text(record: Record, held_out: HeldOut, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if held_out.replies:
        return teacher_target(record, held_out.replies[record.id], tokenizer)
    return target_ids((record.reference or "").strip(), tokenizer)
