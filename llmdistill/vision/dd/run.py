"""Distil by every method of a pipeline file, judge every set under one protocol, and tabulate.

    <run>/sets/METHOD-IPC-SEED-HASH/   the distilled sets
    <run>/journal/sets.jsonl           how each was made, and what networks reach that were trained on it
    <run>/experts/                     trainings on the real data that methods need, each done once
    <run>/checkpoints/                 sets in the making
    <run>/table.json                   the result
    <run>/report/index.html            the same to look at, with pictures; written anew as sets come along

The same command again does what is missing.
"""

from __future__ import annotations

import shutil
from typing import Any

from llmdistill.run.files import make_dir, write_json
from llmdistill.run.journal import Journal
from llmdistill.run.lock import locked
from llmdistill.run.progress import say
from llmdistill.vision.data import load_on
from llmdistill.vision.dd.comparison import JOURNAL, Comparison
from llmdistill.vision.dd.methods import DdPipeline
from llmdistill.vision.dd.plan import make_plan
from llmdistill.vision.dd.sets import CHECKPOINTS, Sets
from llmdistill.vision.dd.whitening import whitened
from llmdistill.vision.plan import Plan


def run(pipeline: DdPipeline) -> dict[str, Any]:
    """Distil and judge what is not done yet, and give the table.

    Raises:
        ConfigError, DamagedError: the data or a network cannot be used.
        StageError: a distillation went wrong; what is done is kept.
    """
    with locked(pipeline.run_path):
        write_json(make_dir(pipeline.run_path) / "config.json", pipeline.model_dump(mode="json"))
        sets = sets_of(pipeline)
        with Journal(pipeline.run_path / JOURNAL) as journal:
            comparison = Comparison(sets, journal)
            for line in (*make_plan(comparison).lines(), *comparison.warnings):
                say(line)
            table = comparison.compared()
        write_json(pipeline.run_path / "table.json", table)
        shutil.rmtree(pipeline.run_path / CHECKPOINTS, ignore_errors=True)
    return table


def plan_only(pipeline: DdPipeline) -> Plan:
    """The plan of a pipeline file; nothing is written."""
    sets, path = sets_of(pipeline), pipeline.run_path / JOURNAL
    if not path.exists():
        return make_plan(Comparison(sets, None))
    with Journal(path) as journal:
        return make_plan(Comparison(sets, journal))


def sets_of(pipeline: DdPipeline) -> Sets:
    """The data read, whitened where that is asked for, and checked.

    Raises:
        ConfigError, DamagedError: the data cannot be used, or a class has fewer images than are asked for.
    """
    data, whitening = load_on(pipeline.data, pipeline.device), None
    if pipeline.zca:
        data, whitening = whitened(data)
    sets = Sets(pipeline, data, whitening)
    sets.check()
    return sets
