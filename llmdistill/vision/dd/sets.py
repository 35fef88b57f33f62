"""Making sets: one iteration after the other, checked, and kept so that a kill costs half a minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from llmdistill.errors import ConfigError, DamagedError, StageError
from llmdistill.run.failpoint import failpoint
from llmdistill.run.progress import progress, say
from llmdistill.vision.checkpoint import Checkpoint, restore, state_of
from llmdistill.vision.data import ImageData
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.base import Distillation, Task
from llmdistill.vision.dd.jobs import Job, identity_of, made_for, provenance_of
from llmdistill.vision.dd.methods import DdPipeline
from llmdistill.vision.dd.whitening import Whitening

CHECKPOINTS = "checkpoints"
MOST_POINTS = 200

Show = Callable[[Job, DistilledDataset, "Curve", int], None]
"""What is told of a set in the making at each of its checkpoints, with the iterations that are done."""


@dataclass
class Curve:
    """Losses of a distillation in at most twice `MOST_POINTS` points, however many iterations it has.

    Attributes:
        points: each the mean over `stride` iterations.
        waiting: losses of iterations that make no whole point yet.
    """

    points: list[float] = field(default_factory=list)
    stride: int = 1
    waiting: list[float] = field(default_factory=list)

    def add(self, loss: float) -> None:
        """One more iteration's."""
        self.waiting.append(loss)
        if len(self.waiting) == self.stride:
            self.points.append(mean(self.waiting))
            self.waiting = []
        if len(self.points) == 2 * MOST_POINTS:
            self.points = [mean(pair) for pair in list(pairwise(self.points))[::2]]
            self.stride *= 2


@dataclass
class Made:
    """A set, and what making it was like.

    Attributes:
        seconds: in all processes that took part; None where that is not known any more.
    """

    dataset: DistilledDataset
    curve: Curve | None = None
    seconds: float | None = None


class Sets:
    """Makes the sets of a pipeline file.

    Args:
        data: on the device that is distilled on, whitened where the pipeline asks for it.
    """

    def __init__(self, pipeline: DdPipeline, data: ImageData, whitening: Whitening | None) -> None:
        self.pipeline, self.data, self.whitening = pipeline, data, whitening
        self._made_for = made_for(pipeline)

    def task(self, job: Job, folder: Path | None = None) -> Task:
        """What a method is given."""
        return Task(self.data, job.ipc, self.pipeline.net, job.seed, folder, self.whitening)

    def name_of(self, job: Job) -> str:
        """Of a set's folder and of its checkpoint."""
        return f"{job.method.name}-{job.ipc}-{job.seed}-{self.identity_of(job)}"

    def identity_of(self, job: Job) -> str:
        """What changes a set's images, as a hash."""
        return identity_of(self._made_for, job)

    def folder_of(self, job: Job) -> Path:
        """Where a set is, whole or not at all."""
        return self.pipeline.run_path / "sets" / self.name_of(job)

    def check(self) -> None:
        """Raise a `ConfigError` or a `DamagedError` where the data cannot be distilled into so many images."""
        train = self.data.train
        if not train.images.isfinite().all():
            raise DamagedError("there are training images with values that are not finite", where="data")
        numbers = torch.bincount(train.labels.cpu(), minlength=self.data.num_classes).tolist()
        fewest = min(numbers)
        if max(self.pipeline.ipc) > fewest:
            what = f"class {numbers.index(fewest)} has {fewest} training images, fewer than {max(self.pipeline.ipc)}"
            raise ConfigError(what, where="ipc", do=f"set it to {fewest} or less, or use more data")

    def load(self, job: Job) -> DistilledDataset | None:
        """A set that was made before.

        Raises:
            DamagedError: it is there and cannot be read.
        """
        folder = self.folder_of(job)
        return DistilledDataset.load(folder) if folder.exists() else None

    def make(self, job: Job, title: str, show: Show) -> Made:
        """Distil, going on from the checkpoint where there is one. The set is not saved yet.

        Raises:
            StageError: a loss or what is learned is not finite any more.
            DamagedError: the checkpoint is of something else.
        """
        checkpoint = self.checkpoint_of(job)
        distillation = job.method.distillation(self.task(job, self.pipeline.run_path))
        making = _Making(distillation, job, self.identity_of(job))
        making.resume(checkpoint)
        provenance = provenance_of(self._made_for, job)
        with progress(title, job.method.iterations, making.iteration) as bar:
            while making.iteration < job.method.iterations:
                making.iterate()
                bar.advance(note=lambda: f"loss {making.loss:.4g}")
                failpoint("dd.after_iteration")
                if checkpoint.due() and making.iteration < job.method.iterations:
                    making.save(checkpoint)
                    show(job, distillation.result(provenance), making.curve, making.iteration)
        return Made(distillation.result(provenance), making.curve, round(making.elapsed(), 3))

    def checkpoint_of(self, job: Job) -> Checkpoint:
        """Of a set in the making."""
        path = self.pipeline.run_path / CHECKPOINTS / f"{self.name_of(job)}.safetensors"
        return Checkpoint(path, self.pipeline.checkpoint_every)


class _Making:
    """A distillation between two iterations, and what is known of those that are done."""

    def __init__(self, distillation: Distillation, job: Job, identity: str) -> None:
        self.distillation, self.job, self.identity = distillation, job, identity
        self.curve = Curve()
        self.iteration = 0
        self.loss = math.nan
        self._before, self._since = 0.0, time.monotonic()

    def elapsed(self) -> float:
        """Seconds so far, in all processes."""
        return self._before + time.monotonic() - self._since

    def iterate(self) -> None:
        """One iteration."""
        self.loss = self.distillation.iterate()
        self.iteration += 1
        if not math.isfinite(self.loss):
            self._fail(f"the loss is {self.loss}")
        if not all(learned.isfinite().all() for learned in self._learned()):
            self._fail("the images, or what is learned with them, are not finite any more")
        self.curve.add(self.loss)

    def _learned(self) -> list[torch.Tensor]:
        return [tensor for group in self.distillation.optimiser.param_groups for tensor in group["params"]]

    def _fail(self, what: str) -> None:
        place = f"in iteration {self.iteration} of {self.job.title}"
        raise StageError(f"{what} {place}", do=f"lower the learning_rate of {self.job.method.title}")

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep everything that the next iteration depends on."""
        tensors, plain = state_of(self.distillation, self.distillation.optimiser)
        own = {"iteration": self.iteration, "curve": asdict(self.curve), "seconds": self.elapsed()}
        checkpoint.save(tensors, {"identity": self.identity, "own": own, "plain": plain})

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from the last save, if there is one of the same set."""
        saved = checkpoint.load()
        if saved is None:
            return
        tensors, values = saved
        if values["identity"] != self.identity:
            say(f"{checkpoint.path} is passed over: it is of another set")
            return
        distillation = self.distillation
        restore(distillation, distillation.optimiser, tensors, values["plain"], checkpoint.path)
        own: dict[str, Any] = values["own"]
        self.iteration, self.curve, self._before = own["iteration"], Curve(**own["curve"]), own["seconds"]
