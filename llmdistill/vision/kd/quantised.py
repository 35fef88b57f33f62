"""Quantisation-aware training: the student learns while it is rounded as int8 will round it (arXiv 1712.05877).

The teacher makes up for what rounding costs (arXiv 1711.05852). What is kept and measured is the int8 network itself.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from llmdistill.config.base import Fraction, Positive
from llmdistill.vision.data import batches
from llmdistill.vision.deploy import beside
from llmdistill.vision.fit import accuracy
from llmdistill.vision.int8 import calibrate, converted, fake_quantised, freeze_ranges
from llmdistill.vision.kd.base import Lesson, Taught
from llmdistill.vision.kd.recovery import Recovery, RecoveryDistiller, finished


class Quantised(Recovery):
    """An int8 student: trained in float, its norms folded, its ranges found, then trained as int8 computes.

    With `recover: false` it is quantised after training and no more.

    Attributes:
        calibration_batches: of training images, from which ranges are found at first.
        freeze_after: share of the recovery after which ranges stay as they are, so that weights settle on them.
    """

    name: Literal["quantised"] = "quantised"
    calibration_batches: Positive = 10
    freeze_after: Fraction = 0.5

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """Two stages; the measures hold validation accuracy in float and quantised without training, size and speed."""
        histories = [self.prepared(student, teacher, lesson)]
        validation = lesson.data.validation
        fake = fake_quantised(student)
        calibrate(fake, self._calibration(lesson))
        measures = {
            "validation_float": accuracy(student, validation),
            "validation_before_recovery": accuracy(converted(fake), validation),
        }
        if self.recover:
            distiller = QuantisedDistiller(fake, self.guide_of(student, teacher), self)
            histories.append(lesson.fit(distiller, self.protocol_of(lesson, self.epochs_of(lesson))))
        net = converted(fake)
        return finished(net, lesson, histories, measures | beside(net, student, lesson.data.train.images[:64]))

    def _calibration(self, lesson: Lesson) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(lesson.seed)
        drawn = batches(lesson.data.train, lesson.protocol.batch_size, generator)
        return [batch.images for batch, _ in zip(drawn, range(self.calibration_batches), strict=False)]


class QuantisedDistiller(RecoveryDistiller):
    """See `Quantised`; the student is fake-quantised."""

    def __init__(self, student: nn.Module, guide: nn.Module | None, settings: Quantised) -> None:
        super().__init__(student, guide, settings)
        self.freeze_after = settings.freeze_after

    def before_epoch(self, epoch: int, epochs: int) -> None:
        """Ranges follow the batches at first and stay later."""
        freeze_ranges(self.student, epoch >= self.freeze_after * epochs)
