"""TESLA (arXiv 2211.10586): trajectory matching in memory that does not grow with the number of steps.

Where N steps lead is start - step_size * G, G the sum of their gradients. If what each gradient's own parameters owe
the images is left out, the images of a step enter the loss by that step's gradient alone: a first pass adds up G
without any graph, a second one makes the steps again and differentiates one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from llmdistill.config.base import Positive
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.base import Presets, Task
from llmdistill.vision.dd.experts import Experts
from llmdistill.vision.dd.inner import Inner, descended
from llmdistill.vision.dd.siamese import Drawn, transformed
from llmdistill.vision.dd.trajectory import (
    CI,
    Batch,
    Trajectory,
    TrajectoryDistillation,
    distance,
)


def tesla_match(
    inner: Inner,
    start: torch.Tensor,
    target: torch.Tensor,
    batch_of: Callable[[int], Batch],
    steps: int,
    step_size: float,
    take: Callable[[int, torch.Tensor], None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of trajectory matching, exactly, and its gradient by the step size with every G held fixed.

    Args:
        start, target: [parameters].
        batch_of: a step's images and labels; it is asked twice for each step.
        take: is given the number of a step and the gradient by its images (section 4.1, without the paths through
            parameters), one step at a time.
    """
    at, total = inner.split(start), torch.zeros_like(start)
    for number in range(steps):
        gradient = inner.gradient(at, *batch_of(number))
        total += inner.joined(gradient)
        at = descended(at, gradient, step_size)
    loss, by_end = distance(start - step_size * total, start, target)
    cotangent = inner.split(-step_size * by_end)
    at = inner.split(start)
    for number in range(steps):
        step = inner.step(at, *batch_of(number))
        take(number, step.pulled_to_images(cotangent))
        at = descended(at, step.gradient, step_size)
    return loss, -torch.dot(by_end, total)


class Tesla(Trajectory):
    """As `Trajectory`, in memory that does not grow with `steps`.

    One image a class is published for CIFAR-10, without whitening.

    Attributes:
        soft_labels: an expert at its end labels the images that the set begins as, once; such labels are stored.
    """

    presets: ClassVar[Presets] = {
        "paper": {
            1: {
                "steps": 50, "max_start": 5, "learning_rate": 1000.0,
                "step_size": 0.01, "step_size_learning_rate": 1e-7,
            },
        },
        "ci": CI,
    }  # fmt: skip

    name: Literal["tesla"] = "tesla"  # type: ignore[assignment]
    iterations: Positive = 10_000
    learning_rate: Annotated[float, Field(gt=0.0)] = 1000.0
    soft_labels: bool = False

    def begun(self, task: Task, experts: Experts) -> TeslaDistillation:
        """See `Trajectory`."""
        return TeslaDistillation(task, self, experts)


class TeslaDistillation(TrajectoryDistillation):
    """See `Tesla`."""

    settings: Tesla

    def __init__(self, task: Task, settings: Tesla, experts: Experts) -> None:
        super().__init__(task, settings, experts)
        self.logits: torch.Tensor | None
        self.register_buffer("logits", self._expert_logits() if settings.soft_labels else None)

    @torch.no_grad()
    def _expert_logits(self) -> torch.Tensor:
        """[N, classes]: what an expert says of the images as they begin."""
        number = int(torch.randint(self.settings.experts.number, (), generator=self.generator))
        last = self.experts.parameters(number, self.settings.experts.epochs).to(self.task.device)
        inner = self.inner[0]
        return inner.logits(inner.split(last), self.synthesiser()[0])

    def matched(
        self, start: torch.Tensor, target: torch.Tensor, chosen: list[tuple[torch.Tensor, Drawn]], step_size: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TrajectoryDistillation`."""
        images, labels = self.synthesiser()
        leaf = images.detach().requires_grad_(True)
        all_targets = self.targets(labels)

        def shown(number: int) -> torch.Tensor:
            places, drawn = chosen[number]
            return transformed(leaf[places], drawn)

        def batch_of(number: int) -> Batch:
            return shown(number).detach(), all_targets[chosen[number][0]]

        def take(number: int, by_images: torch.Tensor) -> None:
            torch.autograd.backward(shown(number), by_images)

        found = tesla_match(self.inner[0], start, target, batch_of, len(chosen), step_size, take)
        torch.autograd.backward(images, leaf.grad)
        return found

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """The class numbers, or the expert's probabilities."""
        return labels if self.logits is None else self.logits.softmax(-1)

    def result(self, provenance: dict[str, Any]) -> DistilledDataset:
        """See `TrajectoryDistillation`; soft labels go with it."""
        found = super().result(provenance)
        if self.logits is None:
            return found
        return replace(found, labels=self.logits.detach().clone(), floats=found.floats + self.logits.numel())
