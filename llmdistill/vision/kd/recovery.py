"""What quantisation and pruning have in common: a trained network is changed, and then trained again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import Positive
from llmdistill.vision.config import Protocol
from llmdistill.vision.distiller import Distiller, needed
from llmdistill.vision.fit import History, accuracy
from llmdistill.vision.kd.base import Lesson, Taught
from llmdistill.vision.kd.plain import PlainDistiller
from llmdistill.vision.kd.response import ResponseDistiller, SoftAndHard, response_loss


class Recovery(SoftAndHard):
    """Settings of a network's training before and after it is changed.

    With `soft_weight: 0` it recovers on the labels alone, with `recover: false` not at all: rows to compare with.

    Attributes:
        start: what the network learns from before; `given` is one that is trained already.
        guide: whose probabilities it learns from afterwards: the teacher's or its own from before.
        recovery_epochs: trained afterwards; None is a quarter of the protocol's.
        learning_rate_share: of the protocol's learning rate, for these epochs.
    """

    start: Literal["labels", "teacher", "given"] = "labels"
    guide: Literal["teacher", "original"] = "teacher"
    recover: bool = True
    recovery_epochs: Positive | None = None
    learning_rate_share: Annotated[float, Field(gt=0.0)] = 0.1

    def prepared(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> History:
        """Train the network before it is changed; the history is empty where it is given."""
        if self.start == "given":
            return History()
        if self.start == "teacher":
            return lesson.fit(ResponseDistiller(student, teacher, self))
        return lesson.fit(PlainDistiller(student))

    def guide_of(self, original: nn.Module, teacher: nn.Module | None) -> nn.Module | None:
        """Who it learns from afterwards: None where it is the labels alone."""
        if not self.recover or self.soft_weight == 0:
            return None
        return copy.deepcopy(original) if self.guide == "original" else needed(teacher)

    def protocol_of(self, lesson: Lesson, epochs: int) -> Protocol:
        """The lesson's protocol, shorter and with smaller steps."""
        rate = lesson.protocol.learning_rate * self.learning_rate_share
        return lesson.protocol.model_copy(update={"epochs": epochs, "learning_rate": rate, "warmup_epochs": 0.0})

    def epochs_of(self, lesson: Lesson) -> int:
        """Epochs of recovery in all, at least one."""
        return self.recovery_epochs or max(1, lesson.protocol.epochs // 4)


class RecoveryDistiller(Distiller):
    """Soft and hard terms as `SoftAndHard` weighs them; without a guide the cross-entropy alone, with weight 1."""

    def __init__(self, student: nn.Module, guide: nn.Module | None, settings: SoftAndHard) -> None:
        super().__init__(student, guide)
        self.settings = settings

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Soft and hard, or hard."""
        logits = self.student(images)
        if self.teacher is None:
            return {"hard": nn.functional.cross_entropy(logits, labels)}
        soft = response_loss(logits, self.taught(images), self.settings.temperature)
        return self.settings.weighted(soft, logits, labels)


def finished(net: nn.Module, lesson: Lesson, histories: Sequence[History], measures: dict[str, float]) -> Taught:
    """What came of it: all stages in one history, whose last validation accuracy is the kept network's."""
    whole = History(seconds=sum(history.seconds for history in histories))
    for history in histories:
        for epoch, validation in enumerate(history.validation):
            whole.add(list(history.terms), [means[epoch] for means in history.terms.values()], validation)
    whole.validation[-1:] = [accuracy(net, lesson.data.validation)]
    return Taught(net, whole, measures)
