"""Response distillation: the student learns the teacher's softened probabilities (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import NotNegative
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.kd.base import Method


def response_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over images, in nats.

    Summed over the classes, not averaged: `nn.KLDivLoss()` as it comes divides by their number too.

    Args:
        student_logits, teacher_logits: [N, classes].
    """
    teacher = (teacher_logits / temperature).log_softmax(-1)
    student = (student_logits / temperature).log_softmax(-1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1).mean()


class Response(Method):
    """soft_weight * `response_loss` + hard_weight * cross-entropy."""

    name: Literal["response"] = "response"
    soft_weight: NotNegative = 0.9
    hard_weight: NotNegative = 0.1
    temperature: Annotated[float, Field(gt=0.0)] = 4.0

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> Distiller:
        """The student and its teacher; nothing is added."""
        return ResponseDistiller(student, teacher, self)


class ResponseDistiller(Distiller):
    """See `Response`."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None, settings: Response) -> None:
        super().__init__(student, teacher)
        self.settings = settings

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Soft and hard."""
        logits = self.student(images)
        soft = response_loss(logits, self.taught(images), self.settings.temperature)
        hard = nn.functional.cross_entropy(logits, labels)
        return {"soft": self.settings.soft_weight * soft, "hard": self.settings.hard_weight * hard}
