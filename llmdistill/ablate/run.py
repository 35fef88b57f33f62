"""Going through the trainings of an ablation, one at a time; what is done already is skipped."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

from llmdistill.ablate.folders import SHARED, drop_weights, share_stages
from llmdistill.ablate.measure import (
    HeldOut,
    Measurement,
    held_out_of,
    measure_student,
    measurement_path,
    read_measurement,
)
from llmdistill.ablate.table import table_of
from llmdistill.ablate.variants import FOLDER, Trial, ablation_of, trials_of
from llmdistill.config import UNTRAINED, Pipeline
from llmdistill.engines.models import ModelSource, find_model
from llmdistill.engines.resume import find_weights
from llmdistill.errors import RejectsError, StageError
from llmdistill.run.digest import Parts, digest_of, flatten
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import make_dir, write_json
from llmdistill.run.inherit import inherit_cache
from llmdistill.run.lock import locked
from llmdistill.run.manifest import read_manifest
from llmdistill.run.progress import say
from llmdistill.run.stage import inputs_of, read_all
from llmdistill.stages import run_stages, stages_of
from llmdistill.templates import TeacherTemplate, load_template

TABLE = "table.json"


def ablate(pipeline: Pipeline, *, fresh: bool = False) -> dict[str, Any]:
    """Train and measure what is not measured yet, and give the table of all.

    Args:
        fresh: do stages up to `filter` over whose costly settings changed.

    Raises:
        ConfigError: the section is missing or a variant cannot be; nothing was done.
        LlmdistillError: a stage could not finish; what is done so far is kept.
    """
    ablation = ablation_of(pipeline)
    trials_of(pipeline)  # a variant that cannot be is found before anything is spent
    run_stages(pipeline, SHARED, fresh=fresh)
    with locked(pipeline.run_path):
        held_out = held_out_of(pipeline)
        student = _made_student(pipeline)
        trials = trials_of(pipeline, student)
        untrained = _untrained(pipeline, student, held_out)
        done: dict[tuple[str, int], Measurement] = {}
        before = pipeline.run_path
        for number, trial in enumerate(trials, 1):
            heading = f"training {number} of {len(trials)}: {trial.variant}, seed {trial.seed}"
            found, is_new = _result(pipeline, trial, held_out, before, heading)
            done[trial.variant, trial.seed], before = found, trial.dir
            if is_new or number == len(trials):
                table = table_of(ablation, pipeline.curate.size, untrained, done)
                write_json(pipeline.run_path / FOLDER / TABLE, table)
    return table


def _made_student(pipeline: Pipeline) -> Path | None:
    """The untrained student that all trainings start from, where it is cut out of the teacher; None if it is named.

    Which layers stay is decided on records, and each selection would decide for itself.
    """
    from llmdistill.train.fit import weights_dtype
    from llmdistill.train.stage import CALIBRATION, untrained_student

    if pipeline.student.model is not None:
        return None
    teacher = find_weights(pipeline.teacher)
    parts: Parts = {
        **flatten(pipeline.student.digest_view(), "student."),
        **inputs_of(pipeline.run_path, "filter"),
        "teacher.revision": teacher.revision,
        "train.dtype": weights_dtype(pipeline.train),
        "train.max_length": pipeline.train.max_length,
    }
    every = pipeline.run_path / FOLDER / UNTRAINED
    folder = every / digest_of(parts)[:16]
    for other in every.glob("*"):
        if other not in (folder, every / "measure"):
            shutil.rmtree(other)
    make_dir(folder)
    records = sorted(read_all(pipeline.run_path, "filter"), key=lambda record: record.id)[:CALIBRATION]
    if not records:
        raise RejectsError("filter kept no record", where=pipeline.run_path, do="lower filter.judge.min_score")
    return untrained_student(pipeline, folder, records).path


def _untrained(pipeline: Pipeline, made: Path | None, held_out: HeldOut) -> Measurement:
    """The student before training, measured once."""
    student = find_model(str(made) if made else str(pipeline.student.model), pipeline.student.revision)
    source = ModelSource(UNTRAINED, student.path, student.revision, student.trust_remote_code)
    parts = {**held_out.parts, "student": student.revision, "dtype": pipeline.teacher.dtype}
    path = measurement_path(pipeline.run_path / FOLDER / UNTRAINED, parts)
    return read_measurement(path) or measure_student(path, source, held_out, pipeline)


def _result(
    pipeline: Pipeline, trial: Trial, held_out: HeldOut, before: Path, heading: str
) -> tuple[Measurement, bool]:
    """The measurement of one training, and whether it had to be made now.

    Args:
        before: a run directory whose vectors and signatures can be used.
    """
    say(heading)
    share_stages(pipeline.run_path, trial.dir)
    inherit_cache(before, trial.dir)
    # The fresh option: a setting that changed costs a training, but what was measured under the old one stays.
    run_stages(trial.pipeline, ["curate"], fresh=True)
    path = measurement_path(trial.dir, {**held_out.parts, **_training_parts(trial.pipeline)})
    found = read_measurement(path)
    if found:
        say("measured already")
    measured = found or _train_and_measure(trial, path, held_out)
    if not ablation_of(pipeline).keep_students:
        drop_weights(trial.dir)
    return measured, found is None


def _training_parts(pipeline: Pipeline) -> Parts:
    """What a trained student depends on, the held-out prompts apart."""
    student = pipeline.student
    return {
        **flatten(pipeline.train.digest_view(), "train."),
        **(flatten(pipeline.signals.digest_view(), "signals.") if pipeline.signals else {}),
        "train.seed": pipeline.train_seed,
        "student.found": find_model(str(student.model), student.revision).revision,
        "teacher.found": find_weights(pipeline.teacher).revision if pipeline.needs_teacher_weights else None,
        "teacher.dtype": pipeline.teacher.dtype,
        "generate.template_sha256": load_template(pipeline.teacher_template, TeacherTemplate)[1],
        "chosen": _chosen_of(pipeline),
    }


def _chosen_of(pipeline: Pipeline) -> str:
    """What identifies the records that are trained on, and their order; a record's id stands for its prompt."""
    return digest_of({"records": [[record.id, record.reply] for record in read_all(pipeline.run_path, "curate")]})


def _train_and_measure(trial: Trial, path: Path, held_out: HeldOut) -> Measurement:
    names = [name for name in stages_of(trial.pipeline) if name in ("signals", "train")]
    trained = run_stages(trial.pipeline, names, fresh=True)["train"]
    gc.collect()  # a trainer and its model refer to each other
    curated = read_manifest(trial.dir / "curate")
    if curated is None:
        raise StageError("curate is not finished", where=trial.dir, do="run the same command again")
    failpoint("ablate.after_training")
    student = trial.dir / "train" / "student"
    return measure_student(
        path,
        ModelSource("student", student, "student"),
        held_out,
        trial.pipeline,
        chosen=curated.counts.kept,
        trained=trained.counts.kept,
        target_tokens=trained.metrics["target_tokens"],
        seconds=trained.usage.seconds,
    )
