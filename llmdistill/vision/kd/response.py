"""Response distillation: the student learns the teacher's softened probabilities (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from llmdistill.config.base import NotNegative
from llmdistill.errors import ConfigError
from llmdistill.vision.distiller import Distiller, needed
from llmdistill.vision.kd.base import Method


def response_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over images, in nats.

    Summed over the classes, not averaged: `nn.KLDivLoss()` as it comes divides by their number too.

    Args:
        student_logits, teacher_logits: [N, classes].

    Raises:
        ConfigError: student and teacher do not know the same number of classes.
    """
    check_classes(student_logits, teacher_logits)
    teacher = (precise(teacher_logits) / temperature).log_softmax(-1)
    student = (precise(student_logits) / temperature).log_softmax(-1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1).mean()


def precise(logits: torch.Tensor) -> torch.Tensor:
    """The logits in float32 at least: in bfloat16 the differences of which T^2 makes much are lost."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_classes(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> None:
    """One class would pass for all of them by broadcasting.

    Raises:
        ConfigError: the logits differ in shape.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ConfigError(
            f"the student gives logits of shape {list(student_logits.shape)}, its teacher {list(teacher_logits.shape)}",
            do="use networks with the same classes",
        )


class SoftAndHard(Method):
    """Settings of the methods whose loss is soft_weight * `response_loss` + hard_weight * cross-entropy."""

    soft_weight: NotNegative = 0.9
    hard_weight: NotNegative = 0.1
    temperature: Annotated[float, Field(gt=0.0)] = 4.0

    @model_validator(mode="after")
    def _something_to_learn(self) -> SoftAndHard:
        if self.soft_weight == self.hard_weight == 0:
            raise ValueError("soft_weight and hard_weight are both 0: there is nothing to learn")
        return self

    def weighted(self, soft: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """A soft term and the cross-entropy with the labels, each with its weight."""
        hard = nn.functional.cross_entropy(precise(logits), labels)
        return {"soft": self.soft_weight * soft, "hard": self.hard_weight * hard}


class Response(SoftAndHard):
    """The student learns the teacher's probabilities and the labels."""

    name: Literal["response"] = "response"

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> Distiller:
        """The student and its teacher; nothing is added."""
        return ResponseDistiller(student, teacher, self)


class ResponseDistiller(Distiller):
    """See `SoftAndHard`."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None, settings: SoftAndHard) -> None:
        super().__init__(student, needed(teacher))
        self.settings = settings

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Soft and hard."""
        logits = self.student(images)
        soft = response_loss(logits, self.taught(images), self.settings.temperature)
        return self.settings.weighted(soft, logits, labels)
