"""Relational distillation (arXiv 1904.05068): the student keeps distances and angles between images of a batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from llmdistill.config.base import NotNegative
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.kd.adapters import (
    TINY,
    FeatureDistiller,
    FeatureMethod,
    Pair,
    embedding,
    example_maps,
    layer_pairs,
    unit,
)


def distance_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Huber loss between distances of pairs, each divided by their mean, the mean over pairs.

    The paper sums over the pairs. The numbers of channels may differ. Zero for a single image.

    Args:
        student, teacher: [N, C].
    """
    count = len(student) * (len(student) - 1)
    return _huber(_relative_distances(student) - _relative_distances(teacher)).sum() / max(count, 1)


def angle_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Huber loss between cosines of the angles i-j-k at every image j, the mean over triplets.

    The paper sums over the triplets. The numbers of channels may differ. Zero for fewer than three images; two images
    in one place have an angle of cosine zero with every other.

    Args:
        student, teacher: [N, C].
    """
    num = len(student)
    twice = torch.eye(num, dtype=torch.bool, device=student.device)
    difference = (_cosines(student) - _cosines(teacher)).masked_fill(twice, 0.0)
    return _huber(difference).sum() / max(num * (num - 1) * (num - 2), 1)


def _differences(vectors: torch.Tensor) -> torch.Tensor:
    """[N, C] -> [N, N, C]: what leads from the first image to the second."""
    return vectors[None] - vectors[:, None]


def _relative_distances(vectors: torch.Tensor) -> torch.Tensor:
    """[N, C] -> [N, N]; the diagonal is zero and no part of the mean."""
    distances = torch.linalg.vector_norm(_differences(vectors), dim=-1)
    mean = distances.sum() / max(len(vectors) * (len(vectors) - 1), 1)
    return distances / mean.clamp_min(TINY)


def _cosines(vectors: torch.Tensor) -> torch.Tensor:
    """[N, C] -> [j, i, k]: cosine of the angle at j between i and k."""
    arms = unit(_differences(vectors))
    return arms @ arms.transpose(1, 2)


def _huber(difference: torch.Tensor) -> torch.Tensor:
    return nn.functional.huber_loss(difference, torch.zeros_like(difference), reduction="none")


class Relational(FeatureMethod):
    """distance_weight * `distance_loss` + angle_weight * `angle_loss` + hard_weight * cross-entropy (+ response).

    The weights 25 and 50 are those that comparisons of methods have used since (arXiv 1910.10699, its code).

    Attributes:
        layer: the student's and the teacher's layer whose outputs (as `embedding`) are compared; None takes the
            last blocks.
    """

    name: Literal["relational"] = "relational"
    layer: Pair | None = None
    distance_weight: NotNegative = 25.0
    angle_weight: NotNegative = 50.0

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> Distiller:
        """The student and its teacher; nothing is added."""
        pair = layer_pairs(student, teacher, None if self.layer is None else [self.layer])[-1]
        example_maps(student, teacher, [pair], example)
        return RelationalDistiller(student, teacher, self, pair)


class RelationalDistiller(FeatureDistiller):
    """See `Relational`."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None, settings: Relational, pair: Pair) -> None:
        super().__init__(student, teacher, settings, [pair])
        self.settings = settings

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hard, soft where it has a weight, distances' and angles'."""
        look = self.look(images)
        own, other = (embedding(feature) for feature in look.maps[0])
        terms = self.label_terms(look, labels)
        if self.settings.distance_weight:
            terms["distance"] = self.settings.distance_weight * distance_loss(own, other)
        if self.settings.angle_weight:
            terms["angle"] = self.settings.angle_weight * angle_loss(own, other)
        return terms
