"""Several teachers: the student learns the mean of their softened probabilities.

You et al. (KDD 2017) average the teachers' probabilities; Zhang et al. (arXiv 2201.00007) weigh them image by image.
Probabilities are averaged, never logits: the softmax of a mean of logits is the normalised geometric mean of the
probabilities, in which one teacher that rules a class out overrules all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import Seed
from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.distiller import needed
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.base import Lesson, Taught
from llmdistill.vision.kd.response import ResponseDistiller, SoftAndHard, precise, response_loss


def log_mean_probabilities(
    logits: torch.Tensor, weights: torch.Tensor | None = None, temperature: float = 1.0
) -> torch.Tensor:
    """Logarithm of sum_k w_k softmax(logits_k / T).

    Args:
        logits: [K, N, classes] of K networks.
        weights: [K, N], not negative, summing to 1 over the networks; None weighs them alike.

    Returns:
        [N, classes]; they are logits of the mean too, since their softmax is the mean itself.
    """
    each = (precise(logits) / temperature).log_softmax(-1)
    if weights is None:
        return each.logsumexp(0) - math.log(len(logits))
    return (each + weights.log()[..., None]).logsumexp(0)


def confidence_weights(teacher_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """w_k = (1 - softmax_k(CE_k)) / (K - 1), CE_k the cross-entropy of teacher k with the label, in nats at T = 1.

    Image by image, the closer to the label the heavier, at most 1 / (K - 1) (arXiv 2201.00007). One teacher
    alone has weight 1.

    Args:
        teacher_logits: [K, N, classes].
        labels: [N].

    Returns:
        [K, N], summing to 1 over the teachers.
    """
    logits = precise(teacher_logits)
    if len(logits) == 1:
        return torch.ones_like(logits[..., 0])
    cross_entropy = -logits.log_softmax(-1).gather(-1, labels.expand(len(logits), -1)[..., None])
    return (1 - cross_entropy.squeeze(-1).softmax(0)) / (len(logits) - 1)


def multi_teacher_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """T^2 * KL(sum_k w_k softmax(teacher_k / T) || softmax(student / T)), the mean over images, in nats.

    Its gradient is that of sum_k w_k KL(teacher_k || student), which differs by a number that the student cannot
    change.

    Args:
        student_logits: [N, classes].
        teacher_logits: [K, N, classes].
        weights: [K, N] as from `confidence_weights`; None weighs the teachers alike.

    Raises:
        ConfigError: student and teachers do not know the same number of classes.
    """
    mean = log_mean_probabilities(teacher_logits, weights, temperature)
    return response_loss(student_logits, temperature * mean, temperature)


class Teachers(nn.Module):
    """Several networks as one, which gives the logits of all."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [K, N, classes].

        Raises:
            ConfigError: the networks do not know the same number of classes.
        """
        logits = [net(images) for net in self.nets]
        if len({each.shape for each in logits}) > 1:
            known = ", ".join(str(each.shape[-1]) for each in logits)
            raise ConfigError(f"the networks know {known} classes", do="use networks with the same classes")
        return torch.stack(logits)


class Ensemble(Teachers):
    """Several networks as one, which gives the logarithm of the mean of their probabilities."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, classes]."""
        return log_mean_probabilities(super().forward(images))


class MultiTeacher(SoftAndHard):
    """soft_weight * `multi_teacher_loss` + hard_weight * cross-entropy.

    From Python a `Teachers` of one's own networks stands for the teacher; `teachers` then adds to them.

    Attributes:
        teachers: networks beside the pipeline's teacher, each trained on the labels by the teacher's protocol.
        seed: of the first of them; the second has the next, and so on. The same for all students.
        weighting: `uniform` or `confidence`, see `confidence_weights`.
    """

    name: Literal["multi_teacher"] = "multi_teacher"
    teachers: tuple[Net, ...] = ()
    seed: Annotated[Seed, Field(le=2**31)] = 1000
    weighting: Literal["uniform", "confidence"] = "uniform"

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> ResponseDistiller:
        """The student and the teachers that are there."""
        return MultiTeacherDistiller(student, _as_teachers(teacher), self)

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """One stage from all teachers; `teachers` in the measures is the validation accuracy of their mean."""
        nets = [*_as_teachers(teacher).nets, *self._further(lesson)]
        if len(nets) == 1:
            raise ConfigError("this method needs more than one teacher", where="teachers", do="name others there")
        distiller = self.distiller(student, Teachers(nets), lesson.example)
        history = lesson.fit(distiller)
        return Taught(distiller.deployed(), history, {"teachers": accuracy(Ensemble(nets), lesson.data.validation)})

    def _further(self, lesson: Lesson) -> list[nn.Module]:
        if not self.teachers:
            return []
        if lesson.trained is None:
            raise ConfigError("there is nothing here to train further teachers", do="give them as `Teachers`")
        return [lesson.trained(net, self.seed + number) for number, net in enumerate(self.teachers)]


def _as_teachers(teacher: nn.Module | None) -> Teachers:
    return teacher if isinstance(teacher, Teachers) else Teachers([needed(teacher)])


class MultiTeacherDistiller(ResponseDistiller):
    """See `MultiTeacher`."""

    settings: MultiTeacher

    def __init__(self, student: nn.Module, teachers: Teachers, settings: MultiTeacher) -> None:
        super().__init__(student, teachers, settings)

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Soft and hard."""
        logits, teacher_logits = self.student(images), self.taught(images)
        weights = confidence_weights(teacher_logits, labels) if self.settings.weighting == "confidence" else None
        soft = multi_teacher_loss(logits, teacher_logits, self.settings.temperature, weights)
        return self.settings.weighted(soft, logits, labels)
