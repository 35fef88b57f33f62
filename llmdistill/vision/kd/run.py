"""Train every method of a pipeline file under one protocol, and tabulate.

    <run>/teachers/HASH.safetensors   the teacher and others that methods need, each trained once
    <run>/journal/HASH.jsonl          one row for each training that is done, by method and seed
    <run>/students/METHOD-SEED-HASH.safetensors
    <run>/checkpoints/                trainings in progress
    <run>/table.json                  the result
    <run>/report/index.html           the same, to look at

The same command again does what is missing. The test part is measured once for each trained network.
"""

from __future__ import annotations

import shutil
from typing import Any

from torch import nn

from llmdistill.run.digest import digest_of
from llmdistill.run.files import make_dir, write_json
from llmdistill.run.journal import Journal
from llmdistill.run.lock import locked
from llmdistill.run.progress import say
from llmdistill.vision.data import load_on
from llmdistill.vision.deploy import save_net
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.jobs import Job, done_in, identity_of, jobs_of, journal_path, measured_as
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.plan import make_plan
from llmdistill.vision.kd.report import write_report
from llmdistill.vision.kd.table import table_of
from llmdistill.vision.kd.trainings import CHECKPOINTS, Stages, Trainings, num_parameters
from llmdistill.vision.measures import measures_of

Row = dict[str, Any]


def run(pipeline: KdPipeline) -> dict[str, Any]:
    """Train what is not trained yet, and give the table.

    Raises:
        ConfigError, DamagedError: the data or a network cannot be used.
        StageError: a training went wrong; what is done is kept.
    """
    with locked(pipeline.run_path):
        write_json(make_dir(pipeline.run_path) / "config.json", pipeline.model_dump(mode="json"))
        trainings = Trainings(pipeline, load_on(pipeline.data, pipeline.protocol.device))
        with Journal(journal_path(trainings)) as journal:
            for line in make_plan(trainings, done_in(trainings, journal)).lines():
                say(line)
            teacher, teacher_row = _teacher(trainings, journal)
            rows = _students(trainings, teacher, journal)
        table = table_of(pipeline, teacher_row, rows)
        write_json(pipeline.run_path / "table.json", table)
        write_report(pipeline, table, teacher_row, rows)
        shutil.rmtree(pipeline.run_path / CHECKPOINTS, ignore_errors=True)
    return table


def _teacher(trainings: Trainings, journal: Journal) -> tuple[nn.Module, Row]:
    """The teacher and its row: how its training went, and what it was measured for."""
    pipeline = trainings.pipeline
    net, history = trainings.teacher()
    key = f"teacher {digest_of(measured_as(pipeline))[:16]}"
    if key not in journal:
        journal.append(key, **history, **_measured(trainings, net, {}))
        journal.commit()
    return net, journal[key]


def _students(trainings: Trainings, teacher: nn.Module, journal: Journal) -> list[Row]:
    """One row for each method and seed."""
    rows = []
    jobs = list(jobs_of(trainings.pipeline))
    for number, job in enumerate(jobs, 1):
        title = f"{number}/{len(jobs)} {job.method.title}, seed {job.seed}"
        if job.key not in journal:
            key = f"{identity_of(trainings)}-{job.key}"
            stages = Stages(trainings.pipeline, key, title, job.seed)
            journal.append(job.key, **_train(trainings, teacher, job, stages))
            journal.commit()
            stages.forget()
            row = journal[job.key]
            say(f"{title}: {row['seconds']:,.1f} s, validation {row['validation'][-1]:.2%}")
        rows.append({**journal[job.key], "method": job.method.title, "seed": job.seed})
    return rows


def _train(trainings: Trainings, teacher: nn.Module, job: Job, stages: Stages) -> Row:
    taught, seconds = trainings.teach(job.method, teacher, job.seed, stages)
    name = f"{job.method.name}-{job.seed}-{digest_of({'key': stages.key})[:8]}.safetensors"
    save_net(taught.net, trainings.pipeline.run_path / "students" / name)
    return {
        "validation": taught.history.validation,
        "loss": taught.history.loss,
        "parameters": num_parameters(taught.net),
        "seconds": seconds,
        "file": name,
        **_measured(trainings, taught.net, taught.measures),
    }


def _measured(trainings: Trainings, net: nn.Module, measures: dict[str, float]) -> Row:
    """The one look at the test part."""
    pipeline = trainings.pipeline
    more = measures_of(net, trainings.data, pipeline.measure, pipeline.attack)
    return {"test": accuracy(net, trainings.data.test), "measures": {**measures, **more}}
