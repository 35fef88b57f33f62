"""What a run would train, and about how long that takes on this machine.

The time is measured, not guessed: every method that has trainings left teaches a student for a few steps of each of its
stages, on a few images, with networks of the run's sizes. What a layer name or a shape makes impossible is found here,
before anything is trained.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from llmdistill.run.journal import Journal
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.data import ImageData, Part, load_on
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import History, fit
from llmdistill.vision.kd.base import Method
from llmdistill.vision.kd.jobs import done_in, jobs_of, journal_path
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.plain import PlainDistiller
from llmdistill.vision.kd.trainings import Trainings, taught
from llmdistill.vision.plan import FORWARD_SHARE, Plan, Step

STEPS = 3
"""Steps that are timed."""


def make_plan(trainings: Trainings, done: set[str]) -> Plan:
    """The plan of a run of which the trainings with the keys `done` are done.

    Raises:
        ConfigError: a network or a method does not fit the images or the networks.
    """
    pipeline = trainings.pipeline
    is_trained = trainings.path_of(pipeline.teacher, trainings.teacher_seed).exists()
    steps = [Step("teacher", 1, int(not is_trained), None if is_trained else teacher_seconds(trainings))]
    jobs = list(jobs_of(pipeline))
    for method in pipeline.methods:
        left = sum(job.method is method and job.key not in done for job in jobs)
        seconds = method_seconds(trainings, method) if left else None
        steps.append(Step(method.title, len(pipeline.protocol.seeds), left, seconds))
    protocol = pipeline.protocol.hash(pipeline.data)
    return Plan(pipeline.name, str(pipeline.run_path), protocol, "trainings", steps)


def teacher_seconds(trainings: Trainings) -> float:
    """Of the teacher's training."""
    teacher = trainings.build(trainings.pipeline.teacher, trainings.teacher_seed)
    probe = Probe(trainings.data)
    probe.train(PlainDistiller(teacher), probe.data, trainings.teacher_protocol)
    return probe.seconds


def method_seconds(trainings: Trainings, method: Method) -> float | None:
    """Of one training by a method with an untrained teacher, None where it cannot be told."""
    if not method.can_be_timed:
        return None
    pipeline = trainings.pipeline
    teacher = trainings.build(pipeline.teacher, 0).eval()
    probe = Probe(trainings.data)

    def trained(net: Net, seed: int) -> nn.Module:
        return trainings.build(net, seed).eval()

    lesson = replace(trainings.lesson(0, probe.train, probe.data), trained=trained)
    taught(method, trainings.build(pipeline.student, 0), teacher, lesson)
    return probe.seconds


class Probe:
    """A training loop of a few steps that adds up how long the whole one would take.

    Attributes:
        data: a few batches' worth of images to teach on; times are those of all.
        seconds: of all stages so far.
    """

    def __init__(self, data: ImageData, num_images: int = 512) -> None:
        self._num_train, self._num_validation = len(data.train), len(data.validation)
        train, validation = (_first(part, num_images) for part in (data.train, data.validation))
        self.data = replace(data, train=train, validation=validation, test=_first(data.test, 0))
        self.seconds = 0.0

    def train(self, distiller: Distiller, data: ImageData, protocol: Protocol) -> History:
        """Take a few steps; a `Train`."""
        num_images = self._num_train if len(data.train) == len(self.data.train) else len(data.train)
        seconds = _step_seconds(distiller, data, protocol)
        steps = -(-num_images // protocol.batch_size)
        measured = FORWARD_SHARE * self._num_validation / protocol.batch_size
        self.seconds += protocol.epochs * (steps + measured) * seconds
        return History([0.0] * protocol.epochs, [0.0] * protocol.epochs)


def _first(part: Part, num_images: int) -> Part:
    return Part(part.images[:num_images], part.labels[:num_images])


def _step_seconds(distiller: Distiller, data: ImageData, protocol: Protocol) -> float:
    """Seconds of one step of the training loop; a first round of it warms up."""
    few = replace(data, train=_first(data.train, STEPS * protocol.batch_size), validation=_first(data.validation, 1))
    once = protocol.model_copy(update={"epochs": 1})
    fit(distiller, few, once, 0)
    return fit(distiller, few, once, 0).seconds / -(-len(few.train) // protocol.batch_size)


def plan_only(pipeline: KdPipeline) -> Plan:
    """The plan of a pipeline file; nothing is written."""
    trainings = Trainings(pipeline, load_on(pipeline.data, pipeline.protocol.device))
    path = journal_path(trainings)
    if not path.exists():
        return make_plan(trainings, set())
    with Journal(path) as journal:
        return make_plan(trainings, done_in(trainings, journal))
