"""Attention transfer (arXiv 1612.03928): the student looks where the teacher looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import NotNegative
from llmdistill.errors import ConfigError
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.kd.adapters import (
    FeatureDistiller,
    FeatureMethod,
    Layers,
    Pair,
    example_maps,
    layer_pairs,
    pooled,
    smaller_size,
    unit,
)

Form = Literal["paper", "code"]

WEIGHTS: dict[Form, float] = {"paper": 1.0, "code": 1000.0}
"""Weight where none is set: that of the authors' code, and for the norm one of its effect on maps of 32 x 32."""


def attention_map(feature: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    """Sum over channels of |feature|^power, as a vector of length one: [N, C, H, W] -> [N, H * W].

    A map of zeros stays zero.
    """
    return unit(feature.abs().pow(power).sum(1).flatten(1))


def attention_loss(
    student: torch.Tensor, teacher: torch.Tensor, power: float = 2.0, form: Form = "paper"
) -> torch.Tensor:
    """Difference of two attention maps q of length one, the larger one averaged to the smaller size before.

    `paper` is the term of one layer in eq. 2, 1/2 * |q_student - q_teacher|, the mean over images; `code`, as the
    authors' code has it, the mean of (q_student - q_teacher)^2 over images and places.

    Args:
        student, teacher: [N, C, H, W]; the numbers of channels may differ.
    """
    size = smaller_size(student, teacher)
    difference = attention_map(pooled(student, size), power) - attention_map(pooled(teacher, size), power)
    if form == "code":
        return difference.pow(2).mean()
    return torch.linalg.vector_norm(difference, dim=1).mean() / 2


class Attention(FeatureMethod):
    """weight * sum of `attention_loss` over the pairs + hard_weight * cross-entropy (+ soft_weight * response).

    Attributes:
        layers: pairs of a student's and a teacher's layer; None pairs the blocks at the same relative depth that
            have more than one place.
        power: of the absolute values.
        weight: None is 1,000 for `code`, as published for maps of 32 x 32 to 8 x 8, and 1 for `paper`. A mean over few
            places is large: on maps of 4 x 4 and less, 1,000 is far too much.
    """

    name: Literal["attention"] = "attention"
    layers: Layers = None
    power: Annotated[float, Field(ge=1.0)] = 2.0
    form: Form = "paper"
    weight: NotNegative | None = None

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> Distiller:
        """The student and its teacher; nothing is added."""
        layers = layer_pairs(student, teacher, self.layers)
        maps = example_maps(student, teacher, layers, example)
        wide = [pair for pair, (own, other) in zip(layers, maps, strict=True) if smaller_size(own, other) != (1, 1)]
        if not wide or (self.layers and len(wide) < len(layers)):
            own, other = next(pair for pair in layers if pair not in wide)
            what = f"there is no attention in a single place ({own} of the student, {other} of the teacher)"
            raise ConfigError(what, where="layers", do="name layers whose maps are larger, or take another method")
        return AttentionDistiller(student, teacher, self, wide)


class AttentionDistiller(FeatureDistiller):
    """See `Attention`."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, settings: Attention, layers: Sequence[Pair]
    ) -> None:
        super().__init__(student, teacher, settings, layers)
        self.settings = settings
        self.weight = WEIGHTS[settings.form] if settings.weight is None else settings.weight

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hard, soft where it has a weight, and the attention's."""
        look = self.look(images)
        losses = [attention_loss(own, other, self.settings.power, self.settings.form) for own, other in look.maps]
        return {**self.label_terms(look, labels), "attention": self.weight * torch.stack(losses).sum()}
