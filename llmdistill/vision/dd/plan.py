"""What a run would distil, and about how long that takes on this machine.

The time is measured, not guessed: a few iterations of every method that has sets left, and an epoch of every network
that is trained on them. What a shape or a setting makes impossible is found here, before anything is distilled.
"""

from __future__ import annotations

import time
from dataclasses import replace

from llmdistill.vision.config import Net
from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.baselines import Random
from llmdistill.vision.dd.comparison import Comparison
from llmdistill.vision.dd.evaluate import full_set, judge
from llmdistill.vision.dd.jobs import Job
from llmdistill.vision.dd.protocol import Evaluation
from llmdistill.vision.plan import FORWARD_SHARE, Plan, Step

EPOCHS = 6
"""Epochs that are timed."""


def make_plan(comparison: Comparison) -> Plan:
    """The plan of a run, of what is not done of it.

    Raises:
        ConfigError: a network or a method does not fit the images.
    """
    pipeline = comparison.pipeline
    judging: dict[int, float] = {}
    steps = []
    for ipc in pipeline.ipc:
        for method in pipeline.compared:
            jobs = [job for job in comparison.jobs if (job.method.title, job.ipc) == (method.title, ipc)]
            left = [job for job in jobs if not comparison.is_done(job)]
            if left and ipc not in judging:
                judging[ipc] = judging_seconds(comparison, left[0])
            making = left[0].method.seconds(comparison.sets.task(left[0])) if left else None
            seconds = None if making is None else making + judging[ipc]
            steps.append(Step(f"{method.title}, {ipc}", len(jobs), len(left), seconds))
    if pipeline.baselines:
        steps.append(_full_step(comparison))
    protocol = pipeline.evaluation.hash(pipeline.data, pipeline.net, pipeline.zca)
    return Plan(pipeline.name, str(pipeline.run_path), protocol, "sets", steps)


def _full_step(comparison: Comparison) -> Step:
    if comparison.is_full_done():
        return Step("full", 1, 0, None)
    data, pipeline = comparison.data, comparison.pipeline
    few = full_set(replace(data, train=_first(data.train, pipeline.evaluation.batch_size)))
    step = _epoch_seconds(data, few, pipeline.net, pipeline.evaluation)
    protocol = pipeline.evaluation.full(len(data.train))
    epochs = protocol.epochs * len(data.train) / len(few.images)
    return Step("full", 1, 1, _all_seconds(step, epochs, data, len(few.images), protocol))


def judging_seconds(comparison: Comparison, job: Job) -> float:
    """Of training all kinds of networks on a set of that size, and of measuring them."""
    data, pipeline = comparison.data, comparison.pipeline
    dataset = Random().distillation(comparison.sets.task(job)).result({})
    total = 0.0
    trained = [(net, pipeline.evaluation.others()) for net in comparison.others.nets.values()]
    treated = [(pipeline.net, pipeline.evaluation.others())] * pipeline.fairness
    for net, protocol in ((pipeline.net, pipeline.evaluation), *treated, *trained):
        epoch = _epoch_seconds(data, dataset, net, protocol)
        total += _all_seconds(epoch, protocol.epochs, data, len(dataset.images), protocol)
    return total


def _epoch_seconds(data: ImageData, dataset: DistilledDataset, net: Net, protocol: Evaluation) -> float:
    """Of one network: of a few, after one that warms up."""
    few = replace(data, validation=_first(data.validation, 1), test=_first(data.test, 1))
    once = protocol.model_copy(update={"epochs": 1, "nets": 1, "learning_rates": protocol.learning_rates[:1]})
    judge(dataset, few, net, once)
    started = time.monotonic()
    judge(dataset, few, net, once.model_copy(update={"epochs": EPOCHS}))
    return (time.monotonic() - started) / EPOCHS


def _all_seconds(epoch: float, epochs: float, data: ImageData, num_images: int, protocol: Evaluation) -> float:
    """Of all networks: those that a learning rate is chosen by, and those that are measured."""
    tried = len(protocol.learning_rates) - 1
    trainings = protocol.nets + tried * min(protocol.nets, protocol.grid_nets)
    measured = trainings * min(len(data.validation), protocol.validation_images) + protocol.nets * len(data.test)
    return epoch * (trainings * epochs + FORWARD_SHARE * measured / num_images)


def _first(part: Part, number: int) -> Part:
    return Part(part.images[:number], part.labels[:number])
