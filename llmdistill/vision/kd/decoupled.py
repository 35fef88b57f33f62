"""Decoupled distillation: what the teacher says of the label and of the other classes, weighed apart.

Zhao et al., arXiv 2203.08679.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from llmdistill.config.base import Fraction, NotNegative
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.kd.response import ResponseDistiller, SoftAndHard, check_classes, precise


def target_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """TCKD: KL between (p_label, 1 - p_label) of teacher and student, in nats (arXiv 2203.08679).

    p = softmax(logits / T) over all classes.

    Args:
        student_logits, teacher_logits: [N, classes].
        labels: [N].

    Returns:
        [N]; no T^2.
    """
    teacher = _label_or_not(precise(teacher_logits) / temperature, labels)
    student = _label_or_not(precise(student_logits) / temperature, labels)
    return (teacher.exp() * (teacher - student)).sum(-1)


def other_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """NCKD: KL between teacher and student over the classes other than the label, in nats (arXiv 2203.08679).

    Both are softmax(logits / T) over those classes alone. Shapes as in `target_kl`.

    Returns:
        [N]; no T^2.
    """
    teacher = (_others(precise(teacher_logits), labels) / temperature).log_softmax(-1)
    student = (_others(precise(student_logits), labels) / temperature).log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1)


def decoupled_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> torch.Tensor:
    """T^2 * (alpha * `target_kl` + beta * `other_kl`), the mean over images, in nats (arXiv 2203.08679).

    With alpha = 1 and, image by image, beta = 1 - teacher's p_label it is `response_loss` (section 3 there): plain
    distillation weighs what is said of the other classes the less the surer the teacher is.

    Args:
        student_logits, teacher_logits: [N, classes], two classes at least.
        labels: [N].

    Raises:
        ConfigError: student and teacher do not know the same number of classes.
    """
    check_classes(student_logits, teacher_logits)
    target = target_kl(student_logits, teacher_logits, labels, temperature)
    other = other_kl(student_logits, teacher_logits, labels, temperature)
    return temperature**2 * (alpha * target + beta * other).mean()


def _others(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits without the label's: [N, classes - 1]."""
    keep = nn.functional.one_hot(labels, logits.shape[-1]) == 0
    return logits[keep].view(len(logits), -1)


def _label_or_not(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the label and of any other class: [N, 2]; not by 1 - p, which is 0 for a sure network."""
    label = logits.gather(-1, labels[:, None])
    other = _others(logits, labels).logsumexp(-1, keepdim=True)
    return torch.cat([label, other], -1).log_softmax(-1)


class Decoupled(SoftAndHard):
    """warm-up * soft_weight * `decoupled_loss` + hard_weight * cross-entropy.

    Which beta suits depends on teacher and student: the authors (github.com/megvii-research/mdistiller, configs) take
    0.5 for ImageNet and 2 to 8 for CIFAR-100. A large one multiplies the gradient: a student without batch norm may
    not learn unless the learning rate is lowered with it.

    Attributes:
        warmup: share of the training in which the soft term's weight grows epoch by epoch, linearly, to its full value;
            the authors' is 20 of 240 epochs.
    """

    name: Literal["decoupled"] = "decoupled"
    soft_weight: NotNegative = 1.0
    hard_weight: NotNegative = 1.0
    alpha: NotNegative = 1.0
    beta: NotNegative = 1.0
    warmup: Fraction = 20 / 240

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> Distiller:
        """The student and its teacher; nothing is added."""
        return DecoupledDistiller(student, teacher, self)


class DecoupledDistiller(ResponseDistiller):
    """See `Decoupled`.

    Attributes:
        warmed: share of its weight that the soft term has in this epoch, 0 to 1.
    """

    settings: Decoupled

    def __init__(self, student: nn.Module, teacher: nn.Module | None, settings: Decoupled) -> None:
        super().__init__(student, teacher, settings)
        self.warmed = 1.0

    def before_epoch(self, epoch: int, epochs: int) -> None:
        """A step of the warm-up."""
        warmup = self.settings.warmup * epochs
        self.warmed = min((epoch + 1) / warmup, 1.0) if warmup else 1.0

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Soft and hard."""
        settings, logits = self.settings, self.student(images)
        soft = decoupled_loss(logits, self.taught(images), labels, settings.alpha, settings.beta, settings.temperature)
        return settings.weighted(self.warmed * soft, logits, labels)
