"""Trainings of one pipeline file: networks on the labels, trained once in a run, and students by a method."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from llmdistill.errors import DamagedError
from llmdistill.run.digest import digest_of
from llmdistill.run.files import read_json, write_json
from llmdistill.run.progress import progress
from llmdistill.vision.checkpoint import Checkpoints
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.data import ImageData
from llmdistill.vision.deploy import save_net
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import History, fit
from llmdistill.vision.kd.base import Lesson, Method, Taught, Train
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.plain import PlainDistiller
from llmdistill.vision.models import build

CHECKPOINTS = "checkpoints"

AfterEpoch = Callable[[float], None]
"""What is told the validation accuracy after each epoch; what it raises ends the training."""


class Trainings:
    """Trains what a pipeline file asks for.

    Args:
        data: on the device that is trained on.
    """

    def __init__(self, pipeline: KdPipeline, data: ImageData) -> None:
        self.pipeline, self.data = pipeline, data
        self.device = data.mean.device
        self._others = 0.0

    @property
    def teacher_protocol(self) -> Protocol:
        """How networks are trained on the labels."""
        return self.pipeline.teacher_protocol or self.pipeline.protocol

    @property
    def teacher_seed(self) -> int:
        """Seed of the teacher's training."""
        return self.teacher_protocol.seeds[0]

    def identity(self, net: Net, seed: int) -> str:
        """What identifies a network that was trained on the labels."""
        protocol = self.teacher_protocol.hash(self.pipeline.data)
        return digest_of({"net": net.digest_view(), "protocol": protocol, "seed": seed})[:12]

    def path_of(self, net: Net, seed: int) -> Path:
        """Where it is kept; a `.json` beside it holds its history."""
        return self.pipeline.run_path / "teachers" / f"{self.identity(net, seed)}.safetensors"

    def build(self, net: Net, seed: int) -> nn.Module:
        """An untrained network for the images."""
        return build(net, self.data.shape, self.data.num_classes, seed).to(self.device)

    def teacher(self) -> tuple[nn.Module, dict[str, Any]]:
        """The teacher and how its training went: `validation`, `loss`, `seconds`, `parameters`."""
        net = self.trained(self.pipeline.teacher, self.teacher_seed)
        history = self.path_of(self.pipeline.teacher, self.teacher_seed).with_suffix(".json")
        return net, read_json(history)

    def trained(self, net: Net, seed: int) -> nn.Module:
        """A network trained on the labels by the teacher's protocol, once in a run.

        Raises:
            DamagedError: it was trained before, and its file cannot be read.
        """
        started = time.monotonic()
        try:
            return self._trained(net, seed)
        finally:
            self._others += time.monotonic() - started

    def _trained(self, net: Net, seed: int) -> nn.Module:
        path, built = self.path_of(net, seed), self.build(net, seed)
        if path.exists():
            try:
                built.load_state_dict(load_file(path))
            except (SafetensorError, RuntimeError, OSError) as error:
                advice = "remove it; the same command trains it again"
                raise DamagedError("the weights of this network cannot be read", where=path, do=advice) from error
            return built.eval()
        what = f"on labels: {net.timm or net.arch}, seed {seed}"
        stages = Stages(self.pipeline, f"teacher-{path.stem}", what, seed)
        history = stages.fit(PlainDistiller(built), self.data, self.teacher_protocol)
        row = {"validation": history.validation, "loss": history.loss, "seconds": round(stages.seconds, 2)}
        write_json(path.with_suffix(".json"), {**row, "parameters": num_parameters(built)})
        save_net(built, path)
        stages.forget()
        return built.eval()

    def lesson(self, seed: int, train: Train, data: ImageData | None = None) -> Lesson:
        """What one training stands on."""
        return Lesson(
            data or self.data,
            self.pipeline.protocol,
            seed,
            train,
            self.pipeline.student,
            trained=self.trained,
            build=self.build,
        )

    def teach(self, method: Method, teacher: nn.Module, seed: int, stages: Stages) -> tuple[Taught, float]:
        """A student taught by a method, and its seconds, without those of other networks trained on the labels."""
        started, others = time.monotonic(), self._others
        result = taught(method, self.build(self.pipeline.student, seed), teacher, self.lesson(seed, stages.fit))
        beside = time.monotonic() - started - (self._others - others) - stages.clock
        return result, round(stages.seconds + max(beside, 0.0), 3)


def taught(method: Method, student: nn.Module, teacher: nn.Module, lesson: Lesson) -> Taught:
    """Let a method teach, with the global generator seeded meanwhile."""
    devices = [lesson.data.mean.device] if lesson.data.mean.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(lesson.seed)
        return method.teach(student, teacher, lesson)


class Stages:
    """The stages of one training through the one loop: shown, timed, and kept so that a kill costs half a minute.

    Args:
        key: names the training in the run directory.
        what: names it to the person who waits.

    Attributes:
        seconds: that the loop has taken in all stages so far, in all processes together.
        clock: that this process has spent in it.
    """

    def __init__(
        self, pipeline: KdPipeline, key: str, what: str, seed: int, after_epoch: AfterEpoch | None = None
    ) -> None:
        self.key, self.what, self.seed = key, what, seed
        self.seconds = self.clock = 0.0
        self._after_epoch = after_epoch
        self._num = 0
        self._checkpoints = Checkpoints(pipeline.run_path / CHECKPOINTS / key)

    def fit(self, distiller: Distiller, data: ImageData, protocol: Protocol) -> History:
        """Train one stage; a `Train`."""
        self._num += 1
        started = time.monotonic()
        what = self.what if self._num == 1 else f"{self.what}, stage {self._num}"
        with progress(what, protocol.epochs) as bar:

            def after_epoch(history: History) -> None:
                bar.advance()
                if self._after_epoch is not None:
                    self._after_epoch(history.validation[-1])

            history = fit(distiller, data, protocol, self.seed, after_epoch, self._checkpoints.next())
        self.seconds += history.seconds
        self.clock += time.monotonic() - started
        return history

    def forget(self) -> None:
        """Remove what was kept for going on in the middle."""
        self._checkpoints.remove()


def num_parameters(net: nn.Module) -> int:
    """Number of a network's parameters."""
    return sum(parameter.numel() for parameter in net.parameters())
