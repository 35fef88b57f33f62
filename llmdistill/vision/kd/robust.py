"""Adversarially robust distillation: the student answers to attacked images as its teacher does to clean ones.

Goldblum et al., arXiv 1905.09747. The attack is made anew for each batch, on the student in evaluation mode.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import Fraction
from llmdistill.vision.attacks import Attack, Pixels, attacked, robust_accuracy
from llmdistill.vision.distiller import Distiller, needed
from llmdistill.vision.kd.base import Lesson, Method, Taught
from llmdistill.vision.kd.response import response_loss


class Robust(Method):
    """(1 - alpha) * cross-entropy(S(x)) + alpha * `response_loss`(S(x + d), T(x)), with d from PGD on the student.

    The defaults are the paper's for CIFAR-10. A teacher that is robust itself teaches more of it.
    """

    name: Literal["robust"] = "robust"
    alpha: Fraction = 1.0
    temperature: Annotated[float, Field(gt=0.0)] = 30.0
    attack: Attack = Attack()

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """One stage; the measures hold accuracy on attacked validation images, under the attack it was trained with."""
        pixels = Pixels(lesson.data.mean, lesson.data.std)
        distiller = RobustDistiller(student, teacher, self, pixels, lesson.seed)
        history = lesson.fit(distiller)
        robust = robust_accuracy(student, lesson.data.validation, lesson.data, self.attack)
        return Taught(student, history, {"validation_attacked": robust})


class RobustDistiller(Distiller):
    """See `Robust`."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, settings: Robust, pixels: Pixels, seed: int
    ) -> None:
        super().__init__(student, needed(teacher))
        self.settings, self.pixels = settings, pixels
        self.generator = torch.Generator().manual_seed(seed)

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Soft on attacked images, hard on clean ones."""
        settings = self.settings
        found = attacked(self.student, images, labels, self.pixels, settings.attack, self.generator)
        soft = response_loss(self.student(found), self.taught(images), settings.temperature)
        terms = {"soft": settings.alpha * soft}
        if settings.alpha < 1:
            terms["hard"] = (1 - settings.alpha) * nn.functional.cross_entropy(self.student(images), labels)
        return terms
