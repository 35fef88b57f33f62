"""No distillation: the student learns the labels. Every method is compared with it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from llmdistill.vision.distiller import Distiller
from llmdistill.vision.kd.base import Method


class Plain(Method):
    """Cross-entropy alone."""

    name: Literal["plain"] = "plain"

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> Distiller:
        """The student alone."""
        return PlainDistiller(student)


class PlainDistiller(Distiller):
    """See `Plain`."""

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The cross-entropy."""
        return {"hard": nn.functional.cross_entropy(self.student(images), labels)}
