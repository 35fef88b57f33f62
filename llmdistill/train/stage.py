"""The stage `train`: build the student, train it, save it beside its untrained self.

<run>/train/untrained/     the student before the first step
<run>/train/checkpoints/   where to resume from, removed when the student is saved
<run>/train/working/       what several processes tell each other, removed likewise
<run>/train/student/       the result, one directory that `from_pretrained` opens
<run>/train/adapter/       the LoRA adapter alone, when one was trained
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.config import Pipeline
from llmdistill.engines.examples import Example, encode_all
from llmdistill.engines.models import (
    ModelSource,
    end_token_ids,
    end_tokens_of,
    find_model,
    load_model,
    load_tokenizer,
)
from llmdistill.engines.resume import find_weights
from llmdistill.errors import RejectsError
from llmdistill.record import Record, Reject
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.manifest import Counts, Manifest
from llmdistill.run.stage import begin, inputs_of, read_all
from llmdistill.signals.cross import teachable
from llmdistill.templates import TeacherTemplate, load_template
from llmdistill.train.checks import check_training
from llmdistill.train.fit import train_student, untrained_source, weights_dtype
from llmdistill.train.launch import Launch, launch_of, train_in_processes
from llmdistill.train.nodes import check_nodes, train_on_nodes
from llmdistill.train.student import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CALIBRATION = 16
"""Examples on which layers are chosen."""


def run(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Train the student on the curated records."""
    template, template_hash = load_template(pipeline.teacher_template, TeacherTemplate)
    check_training(pipeline)
    upstream = ["curate"] if pipeline.signals is None else ["curate", "signals"]
    parts: Parts = {
        **flatten(pipeline.train.digest_view(), "train."),
        **flatten(pipeline.student.digest_view(), "student."),
        **_teacher_parts(pipeline),
        **_student_parts(pipeline),
        "generate.template_sha256": template_hash,
        "train.seed": pipeline.train_seed,
        **inputs_of(pipeline.run_path, *upstream),
    }
    stage = begin(pipeline.run_path, "train", parts, guard=("train.", "student."), fresh=fresh)
    if isinstance(stage, Manifest):
        shutil.rmtree(pipeline.run_path / "train" / "checkpoints", ignore_errors=True)
        return stage
    check_nodes(pipeline.train)
    launch = launch_of(pipeline.train)
    records = list(read_all(pipeline.run_path, "curate"))
    untrained_student(pipeline, stage.dir, records)
    examples, rejects = _examples(pipeline, stage.dir, records, template)
    reasons = stage.write_rejects(rejects)
    if not examples:
        raise RejectsError(f"no record can be trained on ({reasons})", where=stage.dir, do="raise train.max_length")
    history = _train(pipeline, stage.dir, examples, launch)
    counts = Counts(len(records), len(examples), len(rejects), reasons=reasons)
    metrics = {"history": history, "target_tokens": sum(len(example.target) for example in examples)}
    weights = sorted((stage.dir / "student").glob("*.safetensors"))
    manifest = stage.finish(counts, metrics=metrics, more_outputs=weights)
    # Not before: a kill between the last step and the manifest must not cost the training.
    shutil.rmtree(stage.dir / "checkpoints", ignore_errors=True)
    return manifest


def _examples(
    pipeline: Pipeline, stage_dir: Path, records: list[Record], template: TeacherTemplate
) -> tuple[list[Example], list[Reject]]:
    source = untrained_source(stage_dir)
    tokenizer = load_tokenizer(source)
    wanted = template if pipeline.train.method == "kd" else None
    ends = end_tokens_of(source, tokenizer)
    examples, rejects = encode_all(records, tokenizer, ends, pipeline.train.max_length, wanted)
    if wanted is None:
        return examples, rejects
    known, more = teachable(find_weights(pipeline.teacher), source, pipeline.train, examples, records, wanted)
    return known, rejects + more


def _train(pipeline: Pipeline, stage_dir: Path, examples: list[Example], launch: Launch) -> list[dict[str, Any]]:
    """Train from the newest checkpoint on, in this process or in several; gives the log of every step."""
    from llmdistill.train.checkpoints import latest_complete

    start = latest_complete(stage_dir / "checkpoints", sharded=launch.sharded)
    if pipeline.train.num_processes == 1:
        return train_student(pipeline, stage_dir, examples, start)
    if pipeline.train.num_nodes > 1:
        return train_on_nodes(pipeline, stage_dir, examples, start)
    return train_in_processes(pipeline, stage_dir, examples, start, launch)


def _student_parts(pipeline: Pipeline) -> Parts:
    settings = pipeline.student
    return {} if settings.model is None else {"student.found": find_model(settings.model, settings.revision).revision}


def _teacher_parts(pipeline: Pipeline) -> Parts:
    """What identifies the teacher's weights, where training needs them; who served its text does not matter here."""
    if not pipeline.needs_teacher_weights:
        return {}
    source = find_weights(pipeline.teacher)
    return {
        "teacher.model": source.name,
        "teacher.revision": source.revision,
        "teacher.dtype": pipeline.teacher.dtype,
        "teacher.quantize": pipeline.teacher.quantize,
    }


def untrained_student(pipeline: Pipeline, stage_dir: Path, records: list[Record]) -> ModelSource:
    """The student before training, kept on disk: evaluation measures it too."""
    source = untrained_source(stage_dir)
    if not source.path.exists():
        settings = pipeline.student
        if settings.model is not None:
            found = find_model(settings.model, settings.revision)
            model, tokenizer = load_model(found, weights_dtype(pipeline.train), "cpu"), load_tokenizer(found)
        else:
            model, tokenizer = _cut_student(pipeline, records)
        save_model(model, tokenizer, source.path)
    return source


def _cut_student(pipeline: Pipeline, records: list[Record]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The teacher with `student.keep_layers` of its layers."""
    from llmdistill.engines.aligned import align
    from llmdistill.train.student import choose_layers, with_layers

    assert pipeline.student.keep_layers is not None
    teacher = find_weights(pipeline.teacher)
    tokenizer = load_tokenizer(teacher)
    model = load_model(teacher, weights_dtype(pipeline.train), pipeline.train.device)
    ends = end_token_ids(tokenizer, model.generation_config)
    examples, _ = encode_all(records[:CALIBRATION], tokenizer, ends, pipeline.train.max_length)
    if not examples:
        raise RejectsError("no record fits train.max_length", where=pipeline.run_path, do="raise train.max_length")
    rows = [example.prompt + example.target for example in examples]
    batch = align(rows, [[]] * len(rows), tokenizer.pad_token_id, model.device)
    layers = choose_layers(model, pipeline.student.keep_layers, pipeline.student.layer_rule, batch)
    return with_layers(model, layers), tokenizer
