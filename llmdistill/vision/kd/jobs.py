"""The trainings of a run, and by which keys its journal knows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.run.digest import digest_of
from llmdistill.run.journal import Journal
from llmdistill.vision.kd.base import Method
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.trainings import Trainings


def journal_path(trainings: Trainings) -> Path:
    """One journal for each protocol, data, student and teacher."""
    return trainings.pipeline.run_path / "journal" / f"{identity_of(trainings)}.jsonl"


def identity_of(trainings: Trainings) -> str:
    """What all students of a run have in common."""
    pipeline = trainings.pipeline
    parts = {
        "student": pipeline.student.digest_view(),
        "teacher": trainings.identity(pipeline.teacher, trainings.teacher_seed),
        "protocol": pipeline.protocol.hash(pipeline.data),
    }
    return digest_of(parts)[:16]


@dataclass(frozen=True)
class Job:
    """One training: a method and a seed. `key` is its row's in the journal."""

    method: Method
    seed: int
    key: str


def jobs_of(pipeline: KdPipeline) -> Iterator[Job]:
    """All trainings in the order they are done: every method once, then again with the next seed."""
    for seed in pipeline.protocol.seeds:
        for method in pipeline.methods:
            yield Job(method, seed, _key(method, seed, measured_as(pipeline)))


def settings_of(method: Method) -> dict[str, Any]:
    """What of a method's settings changes its students: all but what is about the table."""
    return {name: value for name, value in method.digest_view().items() if name not in ("label", "against")}


def measured_as(pipeline: KdPipeline) -> dict[str, Any]:
    """What the measures of every network depend on."""
    attacked = {"attack": pipeline.attack.digest_view()} if {"fgsm", "pgd"} & set(pipeline.measure) else {}
    return {"measure": sorted(pipeline.measure), **attacked}


def _key(method: Method, seed: int, measured: dict[str, Any]) -> str:
    return digest_of({"method": settings_of(method), "seed": seed, **measured})[:16]


def done_in(trainings: Trainings, journal: Journal) -> set[str]:
    """Keys of trainings that need not be done."""
    return {job.key for job in jobs_of(trainings.pipeline) if job.key in journal}
