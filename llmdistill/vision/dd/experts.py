"""Trajectories of networks that were trained on the real data: what trajectory matching matches (arXiv 2203.11932).

    <folder>/experts/KEY/0000.safetensors   [epochs + 1, parameters] float32 of the first expert, one row an epoch

KEY names how they were trained, on what and which network, so that all methods, sizes and seeds of a run share them.
A file appears when its expert has been trained to the end; an expert that is there is not trained again. What each is
trained with follows from its number and the settings' seed alone. A row is read when it is needed, so that memory does
not grow with the number of experts.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from llmdistill.config.base import Fraction, NotNegative, Positive, Seed, Settings
from llmdistill.errors import ConfigError, DamagedError, StageError
from llmdistill.run.digest import digest_of
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import replacing
from llmdistill.run.progress import Progress, progress
from llmdistill.vision.data import batches
from llmdistill.vision.dd.base import Task
from llmdistill.vision.dd.siamese import STRATEGY, Operation, draw, transformed
from llmdistill.vision.dd.training import train_step
from llmdistill.vision.models import build

_ADVICE = "remove this file, then run the same command again"
_SAME = 1e-3


class ExpertSettings(Settings):
    """How experts are trained; the usual values are the published ones.

    Attributes:
        number: more of them later are added to those that are there.
        strategy: one operation of these is drawn for each batch.
    """

    number: Positive = 100
    epochs: Positive = 50
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.01
    momentum: Fraction = 0.0
    weight_decay: NotNegative = 0.0
    batch_size: Positive = 256
    strategy: tuple[Operation, ...] = STRATEGY
    seed: Seed = 0


class Experts:
    """Trajectories in a folder."""

    def __init__(self, folder: Path, identity: dict[str, Any], sketch: list[float]) -> None:
        self.folder, self.identity, self.sketch = folder, identity, sketch
        self._keeper: Any = None

    def path(self, number: int) -> Path:
        """The file of an expert."""
        return self.folder / f"{number:04}.safetensors"

    def parameters(self, number: int, epoch: int) -> torch.Tensor:
        """[parameters] float32 of an expert after so many epochs; only this row is read.

        Raises:
            DamagedError: the file is damaged, or of other experts.
        """
        path = self.path(number)
        try:
            with safe_open(path, "pt") as file:
                row: torch.Tensor = file.get_slice("trajectory")[epoch : epoch + 1]
        except (SafetensorError, OSError) as error:
            raise DamagedError(f"this expert cannot be read ({error})", where=path, do=_ADVICE) from error
        if not row.isfinite().all():
            raise DamagedError("this expert's parameters are not finite", where=path, do=_ADVICE)
        return row[0].clone()

    def save(self, number: int, trajectory: torch.Tensor) -> None:
        """Keep an expert; its file appears whole or not at all."""
        header = {"identity": json.dumps(self.identity), "sketch": json.dumps(self.sketch)}
        with replacing(self.path(number), trajectory.nbytes) as temporary:
            save_file({"trajectory": trajectory}, temporary, header)

    def check(self, number: int) -> None:
        """That an expert's file is whole, and of this network, these data and this training.

        Raises:
            DamagedError: it is not; says in what it differs.
        """
        path = self.path(number)
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                shape = file.get_slice("trajectory").get_shape()
            identity, sketch = json.loads(header["identity"]), json.loads(header["sketch"])
            differs = [name for name, value in self.identity.items() if identity.get(name) != value]
            same_data = len(sketch) == len(self.sketch) and all(
                abs(one - other) <= _SAME for one, other in zip(sketch, self.sketch, strict=True)
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(f"this expert cannot be read ({error})", where=path, do=_ADVICE) from error
        if shape != [self.identity["training"]["epochs"] + 1, self.identity["parameters"]]:
            differs.append("shape")
        if not same_data:
            differs.append("data")
        if differs:
            what = f"this expert is of another run: {', '.join(dict.fromkeys(differs))} differ"
            raise DamagedError(what, where=path, do=_ADVICE)


def experts_of(task: Task, settings: ExpertSettings) -> Experts:
    """The experts of a task; those that are missing are trained now.

    Raises:
        ConfigError: the network has batch norm.
        DamagedError: an expert that is there is damaged, or of another run.
        StageError: a training diverged.
    """
    experts = _place(task, settings)
    missing = [number for number in range(settings.number) if not experts.path(number).exists()]
    for number in range(settings.number):
        if number not in missing:
            experts.check(number)
    epochs = settings.epochs
    with progress("experts", settings.number * epochs, (settings.number - len(missing)) * epochs) as bar:
        for number in missing:
            experts.save(number, train_expert(task, settings, number, bar))
            failpoint("experts.after_save")
    return experts


def seconds_of_experts(task: Task, settings: ExpertSettings) -> float:
    """About how long the missing ones take, by a few steps of one; nothing is kept."""
    keeper = _place(task, settings)
    missing = sum(not keeper.path(number).exists() for number in range(settings.number))
    if not missing:
        return 0.0
    training = _Training(task, settings, 0)
    training.epoch(2)
    started = time.monotonic()
    steps = training.epoch(4)
    per_step = (time.monotonic() - started) / steps
    return missing * settings.epochs * -(-len(task.data.train) // settings.batch_size) * per_step


def train_expert(task: Task, settings: ExpertSettings, number: int, bar: Progress | None = None) -> torch.Tensor:
    """[epochs + 1, parameters] float32 on the CPU: the parameters before the first and after each epoch.

    Raises:
        StageError: the parameters are not finite any more.
    """
    training = _Training(task, settings, number)
    first = flattened(training.net)
    # Rows of a tensor of their own: `detach().cpu()` of a network on the CPU would be the network's memory itself.
    trajectory = torch.empty(settings.epochs + 1, len(first))
    trajectory[0] = first
    for epoch in range(1, settings.epochs + 1):
        training.epoch()
        trajectory[epoch] = flattened(training.net)
        if not trajectory[epoch].isfinite().all():
            what = f"the parameters of expert {number} are not finite any more in epoch {epoch}"
            raise StageError(what, do="lower experts.learning_rate")
        if bar is not None:
            bar.advance()
    return trajectory


class _Training:
    """One expert in the making."""

    def __init__(self, task: Task, settings: ExpertSettings, number: int) -> None:
        drawn = int(digest_of({"seed": settings.seed, "expert": number})[:8], 16)
        self.part, self.settings = task.data.train, settings
        self.generator = torch.Generator().manual_seed(drawn)
        self.net = build(task.net, task.data.shape, task.data.num_classes, drawn).to(task.device)
        self.optimiser = torch.optim.SGD(
            self.net.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
        )

    def epoch(self, most: int | None = None) -> int:
        """An epoch, or `most` steps of it; gives their number."""
        steps = 0
        for batch in batches(self.part, self.settings.batch_size, self.generator):
            drawn = draw(self.generator, self.settings.strategy, len(batch.images))
            train_step(self.net, self.optimiser, transformed(batch.images, drawn), batch.labels)
            steps += 1
            if steps == most:
                break
        return steps


def flattened(net: nn.Module) -> torch.Tensor:
    """[parameters] float32, a copy on the CPU."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()]).float().cpu().clone()


def refuse_running_statistics(net: nn.Module) -> None:
    """Raise a ConfigError where a network's state is more than its parameters: a trajectory is of those alone."""
    name = next((name for name, _ in net.named_buffers() if "running" in name), None)
    if name is not None:
        what = f"trajectories do not hold batch statistics, which this network has ({name})"
        raise ConfigError(what, where="net.norm", do="set it to instance or group")


def _place(task: Task, settings: ExpertSettings) -> Experts:
    """Where the experts of a task are, or shall be: a folder for the time being where the task has none."""
    net = build(task.net, task.data.shape, task.data.num_classes, 0)
    refuse_running_statistics(net)
    training = {name: value for name, value in settings.digest_view().items() if name != "number"}
    train = task.data.train
    identity = {
        "net": task.net.digest_view(),
        "training": training,
        "shape": list(train.images.shape),
        "classes": task.data.num_classes,
        "whitened": task.whitening is not None,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }
    if task.folder is not None:
        return Experts(task.folder / "experts" / digest_of(identity)[:12], identity, _sketch(task))
    keeper = tempfile.TemporaryDirectory(prefix="experts-")
    experts = Experts(Path(keeper.name), identity, _sketch(task))
    experts._keeper = keeper
    return experts


def _sketch(task: Task) -> list[float]:
    """A few numbers that other training data would not give, but the same ones on another device would."""
    images, labels = task.data.train.images, task.data.train.labels
    flat = images.flatten(1)
    wave = torch.cos(torch.arange(flat.shape[1], device=flat.device)).to(flat) / flat.shape[1] ** 0.5
    found = flat @ wave * (labels + 1)
    return [float(some.double().sum()) / len(some) ** 0.5 for some in found.chunk(16)]
