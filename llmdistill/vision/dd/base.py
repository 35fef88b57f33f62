"""What all methods of dataset distillation have in common.

A method is three things that vary by themselves: a `Synthesiser` makes images of what is learned, a `Distillation`
compares them with real ones and improves them, one iteration after the other, and a schedule says how many.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import nn

from llmdistill.config.base import Fraction, Positive, Settings
from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.synthesis import Pixels
from llmdistill.vision.models import build

if TYPE_CHECKING:
    from llmdistill.vision.dd.whitening import Whitening


class Task:
    """What is distilled, into how much, for which network, and the one source of chance.

    Attributes:
        data: train, validation and test; a method looks at the training part alone.
        ipc: images for each class.
        net: the network that the set is made for.
        generator: everything that is drawn is drawn from it; its state is part of a checkpoint.
        folder: the run directory, where what several sets need is kept (experts); None keeps nothing.
        whitening: what has been applied to the data, None where nothing has.

    Raises:
        ConfigError: a class has no image.
    """

    def __init__(
        self,
        data: ImageData,
        ipc: int,
        net: Net,
        seed: int,
        folder: Path | None = None,
        whitening: Whitening | None = None,
    ) -> None:
        self.data, self.ipc, self.net, self.seed = data, ipc, net, seed
        self.folder, self.whitening = folder, whitening
        self.generator = torch.Generator().manual_seed(seed)
        labels = data.train.labels.cpu()
        self._places = [torch.nonzero(labels == label).flatten() for label in range(data.num_classes)]
        empty = next((label for label, places in enumerate(self._places) if not len(places)), None)
        if empty is not None:
            raise ConfigError(f"class {empty} has no training image", where="data", do="add images or leave it out")

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.data.mean.device

    def real(self, number: int) -> torch.Tensor:
        """[classes, number, C, H, W]: real images of every class, each once while there are enough."""
        rows = torch.stack([self._draw(places, number) for places in self._places])
        return self.data.train.images[rows.to(self.device)]

    def _draw(self, places: torch.Tensor, number: int) -> torch.Tensor:
        order = torch.randperm(len(places), generator=self.generator)
        return places[order.repeat(-(-number // len(order)))[:number]]

    def fresh_net(self) -> nn.Module:
        """The network with newly drawn weights."""
        drawn = int(torch.randint(2**31, (), generator=self.generator))
        return build(self.net, self.data.shape, self.data.num_classes, drawn).to(self.device)


Presets = dict[str, dict[int | None, dict[str, Any]]]
"""Settings by the preset's name, then by images a class, None for every number of them."""


class Method(Settings):
    """Settings of one method. `name` picks it, `label` is its row where it stands there twice.

    The usual values are the published ones. A class gives what its presets change as data: `presets = {"ci": {None:
    {"iterations": 100}, 10: {"learning_rate": 0.5}}}`; what holds for a number of images a class wins over what holds
    for every number, and what the user writes wins over both. A method without a `paper` preset is published with its
    usual values whatever the number of images.

    Attributes:
        preset: `paper` for the published settings at each number of images, `cpu` for a set in less than an hour on
            two cores with the papers' networks, `ci` for small data in minutes.
        start: pixels begin as noise, as real images, or as the mean of each class.
        learning_rate, momentum: of the images' optimiser, plain SGD as in the papers.
        milestones: iterations after which the images' learning rate is halved.
    """

    presets: ClassVar[Presets] = {}

    name: str
    label: str | None = None
    preset: Literal["paper", "cpu", "ci"] | None = None
    iterations: Positive = 1000
    start: Literal["noise", "real", "mean"] = "real"
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.1
    momentum: Fraction = 0.5
    milestones: tuple[Positive, ...] = ()

    @model_validator(mode="after")
    def _has_the_preset(self) -> Self:
        if self.preset not in (None, "paper", *self.presets):
            raise ValueError(f"{self.name} has no preset {self.preset}")
        return self

    @property
    def title(self) -> str:
        """Name of its row."""
        return self.label or self.name

    def resolved(self, ipc: int) -> Self:
        """The settings for so many images a class, with the preset's values where the user has written none.

        Raises:
            ValueError: what the user has written does not go with the preset.
        """
        preset = self.presets.get(self.preset or "", {})
        written = {name: getattr(self, name) for name in self.model_fields_set}
        try:
            return type(self).model_validate({**preset.get(None, {}), **preset.get(ipc, {}), **written})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{self.title} with preset {self.preset} and ipc {ipc}: {reason}") from None

    def distillation(self, task: Task) -> Distillation:
        """A set before its first iteration."""
        raise NotImplementedError

    def seconds(self, task: Task) -> float | None:
        """About how long one set takes, by a few iterations; None where that cannot be told.

        A method that has to train something before its first iteration overrides this: nothing may be written here.
        """
        return self.iterations * seconds_of_iteration(self.distillation(task))

    def measures(
        self, dataset: DistilledDataset, data: ImageData, net: Net, part: Part, seed: int
    ) -> dict[str, list[float]]:
        """Accuracies on a part, 0 to 1, that are no network's under the common protocol, by name."""
        return {}


class Distillation(nn.Module):
    """One set in the making.

    What it remembers from one iteration to the next is parameters, buffers, `optimiser` and the task's generator, so
    that a checkpoint between two iterations holds all of it.

    Attributes:
        optimiser: its first group has the images.
        done: iterations so far.
    """

    done: torch.Tensor

    def __init__(self, task: Task, settings: Method) -> None:
        super().__init__()
        self.task, self.settings = task, settings
        self.generator = task.generator
        self.synthesiser = Pixels(task, settings.start)
        self.optimiser: torch.optim.Optimizer = torch.optim.SGD(
            self.synthesiser.parameters(), settings.learning_rate, momentum=settings.momentum
        )
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def iterate(self) -> float:
        """One iteration; gives its loss."""
        self.optimiser.param_groups[0]["lr"] = self.rate()
        loss = self.improve()
        self.done += 1
        return loss

    def rate(self) -> float:
        """The images' learning rate in this iteration."""
        passed = sum(int(self.done) >= milestone for milestone in self.settings.milestones)
        return float(self.settings.learning_rate * 0.5**passed)

    def improve(self) -> float:
        """What an iteration does to the set; gives its loss."""
        loss = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimiser.step()
        return float(loss.detach())

    def loss(self) -> torch.Tensor:
        """A scalar, differentiable in the synthesiser's parameters. Methods of several steps override `improve`."""
        raise NotImplementedError

    def result(self, provenance: dict[str, Any]) -> DistilledDataset:
        """The set as it is now."""
        images, labels = self.synthesiser()
        data = self.task.data
        floats = self.synthesiser.floats()
        return DistilledDataset(
            images.detach().clone(), labels.detach().clone(), data.mean, data.std, data.num_classes, floats,
            provenance=provenance, whitening=self.task.whitening,
        )  # fmt: skip


def seconds_of_iteration(distillation: Distillation, iterations: int = 4, most: float = 3.0) -> float:
    """Measured: the fastest of a few iterations, of those that begin within `most` seconds.

    The set is another one afterwards: this is for one that is thrown away.
    """
    started = time.monotonic()
    found: list[float] = []
    while not found or (len(found) < iterations and time.monotonic() - started < most):
        before = time.monotonic()
        distillation.iterate()
        found.append(time.monotonic() - before)
    return min(found)
