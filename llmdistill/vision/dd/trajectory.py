"""Trajectory matching (MTT, arXiv 2203.11932): training on the set leads where training on the real data leads.

A network begins where an expert stood after some epochs, makes N steps on the set, and should arrive where the expert
stood M epochs later. The gradient goes back through all N steps: each keeps its own small graph, and a sweep from the
last to the first pulls the cotangent of the parameters through it, which is what differentiating the whole does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from llmdistill.config.base import Positive
from llmdistill.errors import StageError
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.base import Distillation, Method, Presets, Task, seconds_of_iteration
from llmdistill.vision.dd.experts import Experts, ExpertSettings, experts_of, flattened, seconds_of_experts
from llmdistill.vision.dd.inner import Inner, descended, dot
from llmdistill.vision.dd.siamese import STRATEGY, Drawn, Operation, draw, transformed
from llmdistill.vision.models import build

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images [n, C, H, W], and labels: [n] int64, or [n, classes] probabilities."""

STEP_SIZES = (1e-6, 10.0)
"""The learned step size stays between these."""


CI: dict[int | None, dict[str, Any]] = {
    None: {
        "iterations": 100, "learning_rate": 10.0, "steps": 10, "expert_epochs": 1, "max_start": 8,
        "step_size": 0.05, "step_size_learning_rate": 1e-4, "strategy": (),
        "experts": {"number": 4, "epochs": 10, "learning_rate": 0.05, "batch_size": 64, "strategy": ()},
    },
}  # fmt: skip
"""For small grey images and an MLP."""


@dataclass(frozen=True)
class Match:
    """A loss and its gradient.

    Attributes:
        images: for each step the gradient by its images.
        step_size: the gradient by the step size, a scalar.
    """

    loss: torch.Tensor
    images: list[torch.Tensor]
    step_size: torch.Tensor


def distance(end: torch.Tensor, start: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """|| end - target ||^2 / || start - target ||^2 (equation 2), and its gradient by `end`.

    Args:
        end, start, target: [parameters].

    Raises:
        StageError: start and target are the same, so that there is nothing to match.
    """
    normaliser = (start - target).square().sum()
    if not normaliser > 0:
        what = "an expert's parameters are the same before and after expert_epochs"
        raise StageError(what, do="raise experts.learning_rate or lower max_start: these experts do not learn")
    off = end - target
    return off.square().sum() / normaliser, 2 * off / normaliser


def trajectory_match(
    inner: Inner, start: torch.Tensor, target: torch.Tensor, batches: Sequence[Batch], step_size: float
) -> Match:
    """N steps of gradient descent from `start`, and the exact gradient of the distance from where they should lead.

    Args:
        start, target: [parameters].
        batches: one for each step.
    """
    at, kept = inner.split(start), []
    for images, labels in batches:
        kept.append(inner.step(at, images, labels))
        at = descended(at, kept[-1].gradient, step_size)
    loss, by_end = distance(inner.joined(at), start, target)
    cotangent = inner.split(by_end)
    by_images: list[torch.Tensor] = []
    by_step_size = torch.zeros_like(loss)
    while kept:
        step = kept.pop()
        by_step_size = by_step_size - dot(cotangent, step.gradient)
        by_parameters, its_images = step.pulled(cotangent)
        by_images.append(-step_size * its_images)
        cotangent = descended(cotangent, by_parameters, step_size)
    return Match(loss, by_images[::-1], by_step_size)


class Trajectory(Method):
    """Each iteration draws an expert and an epoch, and improves images and step size by one matching.

    The step size is exp(u) of a learned u, which cannot become negative. Its published learning rate is one of the step
    size itself; the rate of u is that divided by the square of the step size at the beginning, which makes the first
    step the same to first order.

    The published settings are those for CIFAR-10 with ConvNet-3; at 1 and 10 images a class with `zca: true`, at 50
    without.

    Attributes:
        steps: N, on the set.
        expert_epochs: M, of the expert.
        max_start: a start is one of the expert's first so many epochs.
        step_size, step_size_learning_rate: where the learned step size begins, and how fast it changes.
        batch_size: images of a step; None takes all of them.
        strategy: one operation of these is drawn for each step.
    """

    presets: ClassVar[Presets] = {
        "paper": {
            1: {
                "steps": 50, "max_start": 2, "learning_rate": 100.0,
                "step_size": 0.01, "step_size_learning_rate": 1e-7,
            },
            10: {
                "steps": 30, "max_start": 20, "learning_rate": 100.0,
                "step_size": 0.001, "step_size_learning_rate": 1e-5,
            },
            50: {
                "steps": 30, "max_start": 40, "learning_rate": 1000.0,
                "step_size": 0.001, "step_size_learning_rate": 1e-5,
            },
        },
        "ci": CI,
    }  # fmt: skip

    name: Literal["mtt"] = "mtt"
    iterations: Positive = 5000
    learning_rate: Annotated[float, Field(gt=0.0)] = 100.0
    steps: Positive = 30
    expert_epochs: Positive = 2
    max_start: Positive = 20
    step_size: Annotated[float, Field(ge=STEP_SIZES[0], le=STEP_SIZES[1])] = 0.001
    step_size_learning_rate: Annotated[float, Field(ge=0.0)] = 1e-5
    batch_size: Positive | None = None
    strategy: tuple[Operation, ...] = STRATEGY
    experts: ExpertSettings = ExpertSettings()

    @model_validator(mode="after")
    def _experts_are_long_enough(self) -> Self:
        needed = self.max_start - 1 + self.expert_epochs
        if needed > self.experts.epochs:
            raise ValueError(f"max_start and expert_epochs need experts of {needed} epochs, not {self.experts.epochs}")
        return self

    def distillation(self, task: Task) -> Distillation:
        """See `Method`. Experts that are missing are trained."""
        return self.begun(task, experts_of(task, self.experts))

    def seconds(self, task: Task) -> float:
        """See `Method`; that of experts which are missing is in it."""
        one = seconds_of_iteration(self.begun(task, Untrained(task)))
        return seconds_of_experts(task, self.experts) + self.iterations * one

    def begun(self, task: Task, experts: Experts) -> TrajectoryDistillation:
        """A set before its first iteration, with these experts."""
        return TrajectoryDistillation(task, self, experts)


class Untrained(Experts):
    """Parameters of untrained networks, for a measurement of time."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def parameters(self, number: int, epoch: int) -> torch.Tensor:
        """See `Experts`."""
        data = self.task.data
        return flattened(build(self.task.net, data.shape, data.num_classes, 1000 * number + epoch))


class TrajectoryDistillation(Distillation):
    """See `Trajectory`."""

    settings: Trajectory

    def __init__(self, task: Task, settings: Trajectory, experts: Experts) -> None:
        super().__init__(task, settings)
        self.experts = experts
        net = build(task.net, task.data.shape, task.data.num_classes, 0).to(task.device)
        self.inner = [Inner(net)]  # in a list: it is no part of what is learned
        self.log_step_size = nn.Parameter(torch.tensor(math.log(settings.step_size), device=task.device))
        own = {"params": [self.log_step_size], "lr": settings.step_size_learning_rate / settings.step_size**2}
        self.optimiser.add_param_group(own)

    def improve(self) -> float:
        """One matching."""
        start, target = self.ends()
        chosen = self.chosen()
        step_size = self.step_size
        self.optimiser.zero_grad(set_to_none=True)
        loss, by_step_size = self.matched(start, target, chosen, step_size)
        self.log_step_size.grad = (by_step_size * step_size).to(self.log_step_size)
        self.optimiser.step()
        with torch.no_grad():
            self.log_step_size.clamp_(*map(math.log, STEP_SIZES))
        return self._checked(loss)

    @property
    def step_size(self) -> float:
        """The one that is learned."""
        return float(self.log_step_size.detach().exp())

    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[parameters] each: where an expert stood, and where it stood `expert_epochs` later."""
        settings = self.settings
        number = int(torch.randint(settings.experts.number, (), generator=self.generator))
        epoch = int(torch.randint(settings.max_start, (), generator=self.generator))
        start, target = (self.experts.parameters(number, at) for at in (epoch, epoch + settings.expert_epochs))
        return start.to(self.task.device), target.to(self.task.device)

    def chosen(self) -> list[tuple[torch.Tensor, Drawn]]:
        """For each step its images' places and their change. One drawn order of the set follows on another."""
        places: list[torch.Tensor] = []
        number = len(self.synthesiser()[0])
        while len(places) < self.settings.steps:
            order = torch.randperm(number, generator=self.generator)
            places += torch.split(order, self.settings.batch_size or number)
        places = places[: self.settings.steps]
        draws = [draw(self.generator, self.settings.strategy, len(some)) for some in places]
        return list(zip([some.to(self.task.device) for some in places], draws, strict=True))

    def matched(
        self, start: torch.Tensor, target: torch.Tensor, chosen: list[tuple[torch.Tensor, Drawn]], step_size: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and its gradient by the step size; that by the images is added to theirs."""
        images, labels = self.synthesiser()
        shown = [transformed(images[places], drawn) for places, drawn in chosen]
        targets = self.targets(labels)
        batches = [(some.detach(), targets[places]) for some, (places, _) in zip(shown, chosen, strict=True)]
        match = trajectory_match(self.inner[0], start, target, batches, step_size)
        torch.autograd.backward(shown, match.images)
        return match.loss, match.step_size

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """What a network is trained towards, for all images."""
        return labels

    def result(self, provenance: dict[str, Any]) -> DistilledDataset:
        """See `Distillation`; the step size goes with it."""
        found = super().result(provenance)
        return replace(found, learning_rate=self.step_size, floats=found.floats + 1)

    def _checked(self, loss: torch.Tensor) -> float:
        learned = (loss, self.synthesiser()[0], self.log_step_size)
        if not all(each.isfinite().all() for each in learned):
            what = f"{self.settings.title}: the loss is {float(loss)}, or what is learned is not finite any more"
            raise StageError(what, do="lower learning_rate or step_size")
        return float(loss)
