"""Dataset distillation by unrolled training (DD, Wang et al., arXiv 1811.10959).

A network is trained on the set by plain gradient descent, one image of every class and a learned step size at a time;
the loss of the trained network on real images is differentiated through that training. The set is made for just these
steps: accuracies of networks that are trained by them are called `own_schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import Fraction, Positive, Seed
from llmdistill.errors import InputError, StageError
from llmdistill.vision.dd.base import Distillation, Method, Presets, Task
from llmdistill.vision.dd.inner import Inner, Parameters, descended, dot
from llmdistill.vision.fit import accuracy
from llmdistill.vision.models import build

if TYPE_CHECKING:
    from llmdistill.vision.config import Net
    from llmdistill.vision.data import ImageData, Part
    from llmdistill.vision.dd.artefact import DistilledDataset


def descent(
    inner: Inner, start: Parameters, images: torch.Tensor, labels: torch.Tensor, rates: torch.Tensor
) -> list[Parameters]:
    """The parameters before, between and after steps of gradient descent, without a graph.

    Args:
        images: [k, N, C, H, W]; step t is on images[t mod k].
        labels: [N], of every step.
        rates: [T] step sizes.
    """
    trajectory = [[some.detach() for some in start]]
    for step, rate in enumerate(rates.tolist()):
        gradient = inner.gradient(trajectory[-1], images[step % len(images)], labels)
        trajectory.append(descended(trajectory[-1], gradient, rate))
    return trajectory


def sweep(
    inner: Inner,
    trajectory: Sequence[Parameters],
    images: torch.Tensor,
    labels: torch.Tensor,
    rates: torch.Tensor,
    cotangent: Parameters,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by images and step sizes, of what has the gradient `cotangent` by the last parameters of a `descent`.

    It goes backwards and makes the graph of one step at a time, so that memory does not grow with the number of steps
    but for the parameters, as in the paper's code.
    """
    by_images, by_rates = torch.zeros_like(images), torch.zeros_like(rates)
    for number, rate in reversed(list(enumerate(rates.tolist()))):
        place = number % len(images)
        step = inner.step(trajectory[number], images[place], labels)
        by_rates[number] = -dot(cotangent, step.gradient)
        by_parameters, by_batch = step.pulled(cotangent)
        by_images[place] -= rate * by_batch
        cotangent = descended(cotangent, by_parameters, rate)
    return by_images, by_rates


def in_steps(images: torch.Tensor, num_classes: int) -> torch.Tensor:
    """[classes * ipc, C, H, W] class by class as [ipc, classes, C, H, W]: one image of every class in each step."""
    return images.reshape(num_classes, -1, *images.shape[1:]).transpose(0, 1)


def train_by_schedule(net: nn.Module, dataset: DistilledDataset, device: torch.device) -> nn.Module:
    """The network after the set's own steps, with the set's own step sizes.

    Raises:
        StageError: the set has no step sizes of its own.
    """
    if dataset.schedule is None:
        raise StageError("the set has no step sizes of its own", do="train on it by a protocol")
    images = in_steps(dataset.images.to(device), dataset.num_classes)
    labels = torch.arange(dataset.num_classes, device=device)
    last = descent(Inner(net), list(net.parameters()), images, labels, dataset.schedule.to(device))[-1]
    with torch.no_grad():
        for parameter, weight in zip(net.parameters(), last, strict=True):
            parameter.copy_(weight)
    return net.eval()


class Unrolled(Method):
    """Adam on images and step sizes; its rate is multiplied by `decay` every `decay_every` iterations.

    The usual values are those of the paper's code on MNIST, where 400 passes over the real images are 23,600
    iterations. Networks are drawn as everywhere here, not by Xavier's rule.

    Attributes:
        momentum: Adam's first beta.
        epochs: how often training goes through the set; with `ipc` images of a class it has ipc * epochs steps.
        rate: what step sizes begin as.
        init: networks begin as any, or all as the one of `net_seed`: easier, and good for that one alone.
        nets: how many networks `own_schedule` is measured with, where they are random.
    """

    presets: ClassVar[Presets] = {
        "ci": {
            None: {
                "iterations": 60,
                "start": "real",
                "learning_rate": 0.05,
                "decay_every": 30,
                "batch_real": 256,
                "epochs": 1,
                "rate": 0.1,
            },
            1: {"epochs": 10},
        }
    }

    name: Literal["dd"] = "dd"
    iterations: Positive = 23_600
    start: Literal["noise", "real", "mean"] = "noise"
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.01
    momentum: Fraction = 0.5
    batch_real: Positive = 1024
    epochs: Positive = 3
    rate: Annotated[float, Field(gt=0.0)] = 0.02
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    decay_every: Positive = 2360
    init: Literal["random", "fixed"] = "random"
    net_seed: Seed = 0
    nets: Positive = 5

    def distillation(self, task: Task) -> Distillation:
        """See `Method`."""
        return UnrolledDistillation(task, self)

    def measures(
        self, dataset: DistilledDataset, data: ImageData, net: Net, part: Part, seed: int
    ) -> dict[str, list[float]]:
        """See `Method`: the accuracy of networks trained by the set's own steps.

        Raises:
            InputError: there is no image in the part.
            StageError: see `train_by_schedule`.
        """
        if not len(part):
            raise InputError("there is no image to measure on", where="data", do="add images")
        seeds = [self.net_seed] if self.init == "fixed" else [seed + number for number in range(self.nets)]
        device = part.images.device
        nets = (build(net, data.shape, data.num_classes, each).to(device) for each in seeds)
        return {"own_schedule": [accuracy(train_by_schedule(each, dataset, device), part) for each in nets]}


class UnrolledDistillation(Distillation):
    """See `Unrolled`."""

    settings: Unrolled

    def __init__(self, task: Task, settings: Unrolled) -> None:
        super().__init__(task, settings)
        raw = torch.full((task.ipc * settings.epochs,), settings.rate, dtype=torch.float64).expm1().log()
        self.raw_rates = nn.Parameter(raw.float().to(task.device))
        learned = [*self.synthesiser.parameters(), self.raw_rates]
        self.optimiser = torch.optim.Adam(learned, settings.learning_rate, (settings.momentum, 0.999))

    @property
    def rates(self) -> torch.Tensor:
        """[steps] step sizes; never negative."""
        return nn.functional.softplus(self.raw_rates)

    def rate(self) -> float:
        """See `Distillation`; it decays as published, beside `milestones`."""
        return super().rate() * self.settings.decay ** (int(self.done) // self.settings.decay_every)

    def improve(self) -> float:
        """One network: train it on the set, and improve the set by its loss on real images."""
        images, rates = in_steps(self.synthesiser()[0], self.task.data.num_classes), self.rates
        value, slopes = self._slopes(images, rates)
        if not (math.isfinite(value) and all(slope.isfinite().all() for slope in slopes)):
            what = f"training on the set gave a loss or gradient that is not finite after {int(self.done)} iterations"
            raise StageError(what, where=self.settings.title, do="lower rate or learning_rate")
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward([images, rates], slopes)
        self.optimiser.step()
        return value

    def _slopes(self, images: torch.Tensor, rates: torch.Tensor) -> tuple[float, tuple[torch.Tensor, torch.Tensor]]:
        """The trained network's loss on real images, and its gradients by the set's images and step sizes."""
        net = self._net()
        inner, labels = Inner(net), torch.arange(self.task.data.num_classes, device=images.device)
        images, rates = images.detach(), rates.detach()
        trajectory = descent(inner, list(net.parameters()), images, labels, rates)
        last = [some.requires_grad_() for some in trajectory[-1]]
        value = inner.loss(last, *self._real())
        slopes = torch.autograd.grad(value, last, materialize_grads=True)
        return float(value.detach()), sweep(inner, trajectory, images, labels, rates, list(slopes))

    def _net(self) -> nn.Module:
        task = self.task
        if self.settings.init == "random":
            return task.fresh_net()
        return build(task.net, task.data.shape, task.data.num_classes, self.settings.net_seed).to(task.device)

    def _real(self) -> tuple[torch.Tensor, torch.Tensor]:
        train = self.task.data.train
        rows = torch.randperm(len(train), generator=self.task.generator)[: self.settings.batch_real]
        rows = rows.to(self.task.device)
        return train.images[rows], train.labels[rows]

    def result(self, provenance: dict[str, Any]) -> DistilledDataset:
        """See `Distillation`."""
        made, schedule = super().result(provenance), self.rates.detach().clone()
        return replace(made, schedule=schedule, floats=made.floats + schedule.numel())
