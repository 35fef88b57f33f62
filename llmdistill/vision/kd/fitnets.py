"""FitNets (arXiv 1412.6550): the student's lower part learns a hint of the teacher's, then the whole student is taught.

Stage 1 trains the layers up to the guided one together with a regressor, which is thrown away; stage 2 is response
distillation. `joint` is the one-stage form found in most comparisons since.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from llmdistill.config.base import NotNegative, Positive
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.kd.adapters import (
    FeatureDistiller,
    FeatureMethod,
    Pair,
    example_maps,
    layer_pairs,
    pooled,
)
from llmdistill.vision.kd.base import Lesson, Taught
from llmdistill.vision.kd.response import Response


def hint_loss(regressed: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:
    """1/2 * |hint - regressed|^2 (arXiv 1412.6550, eq. 3), divided by the number of elements.

    Args:
        regressed, hint: [N, C, H, W].
    """
    return (hint - regressed).pow(2).mean() / 2


class Regressor(nn.Module):
    """A convolution without padding, its kernel as large as brings the guided map to the hint's size (section 2.2).

    It ends in a ReLU where the hint does; a guided map that is already smaller stays at its size.
    """

    def __init__(self, guided: torch.Tensor, hint: torch.Tensor) -> None:
        super().__init__()
        sizes = zip(guided.shape[2:], hint.shape[2:], strict=True)
        kernel_height, kernel_width = (1 + max(0, ours - theirs) for ours, theirs in sizes)
        self.convolution = nn.Conv2d(guided.shape[1], hint.shape[1], (kernel_height, kernel_width))
        self.relu = nn.ReLU() if bool((hint >= 0).all()) else nn.Identity()

    def forward(self, guided: torch.Tensor) -> torch.Tensor:
        """[N, C of the student, H, W] -> [N, C of the teacher, H of the hint, W of the hint]."""
        return self.relu(self.convolution(guided))


class FitNets(FeatureMethod):
    """Stage 1: `hint_loss` alone. Stage 2: soft_weight * response + hard_weight * cross-entropy.

    Attributes:
        layer: the guided layer of the student and the hint layer of the teacher; None takes the middle blocks.
        hint_epochs: of stage 1, on top of the protocol's and reported; None a third as many.
        joint: one stage, hint_weight * mean of squares + the terms of stage 2.
        hint_weight: for `joint` only; 100 is the published value of mdistiller.
    """

    name: Literal["fitnets"] = "fitnets"
    layer: Pair | None = None
    hint_epochs: Positive | None = None
    joint: bool = False
    hint_weight: NotNegative = 100.0
    hard_weight: NotNegative = 0.1
    soft_weight: NotNegative = 0.9
    temperature: Annotated[float, Field(gt=0.0)] = 4.0

    @model_validator(mode="after")
    def _something_to_learn(self) -> FitNets:
        if self.soft_weight == self.hard_weight == 0:
            raise ValueError("soft_weight and hard_weight are both 0: there is nothing to learn in stage 2")
        return self

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> Distiller:
        """The one-stage form; two stages need `teach`."""
        return self.hints(student, teacher, example, alone=False)

    def hints(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor, alone: bool) -> HintDistiller:
        """The student with its regressor, for stage 1 (`alone`) or for the one-stage form."""
        layers = layer_pairs(student, teacher, None if self.layer is None else [self.layer])
        pair = layers[(len(layers) - 1) // 2]
        ((guided, hint),) = example_maps(student, teacher, [pair], example)
        return HintDistiller(student, teacher, self, pair, Regressor(guided, hint), alone)

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """Both stages, or the one of `joint`."""
        if self.joint:
            return super().teach(student, teacher, lesson)
        epochs = self.hint_epochs or max(1, lesson.protocol.epochs // 3)
        hints = self.hints(student, teacher, lesson.example, alone=True)
        first = lesson.fit(hints, lesson.protocol.model_copy(update={"epochs": epochs}))
        second = Response(
            soft_weight=self.soft_weight, hard_weight=self.hard_weight, temperature=self.temperature
        ).distiller(student, teacher, lesson.example)
        history = lesson.fit(second)
        return Taught(second.deployed(), history, {"hint_epochs": float(epochs), "hint_loss": first.loss[-1]})


class HintDistiller(FeatureDistiller):
    """See `FitNets`. What lies above the guided layer gets no gradient while the hint is `alone`, so it stays."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        settings: FitNets,
        pair: Pair,
        regressor: Regressor,
        alone: bool,
    ) -> None:
        super().__init__(student, teacher, settings, [pair])
        self.settings, self.regressor, self.alone = settings, regressor, alone

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The hint's, and beside it hard and soft in the one-stage form."""
        look = self.look(images)
        ((guided, hint),) = look.maps
        regressed = self.regressor(guided)
        loss = hint_loss(regressed, pooled(hint, (regressed.shape[2], regressed.shape[3])))
        if self.alone:
            return {"hint": loss}
        return {**self.label_terms(look, labels), "hint": self.settings.hint_weight * 2 * loss}
