"""Feature matching: the student's layers learn to give what the teacher's give, through an adapter.

The general form of hints (arXiv 1412.6550), with any pairs of layers and one of three distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from llmdistill.config.base import NotNegative
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.kd.adapters import (
    FeatureDistiller,
    FeatureMethod,
    Layers,
    Pair,
    adapter,
    example_maps,
    layer_pairs,
    pooled,
    smaller_size,
    unit,
)

Distance = Literal["l2", "cosine", "smooth_l1"]


def feature_loss(student: torch.Tensor, teacher: torch.Tensor, distance: Distance = "l2") -> torch.Tensor:
    """Distance of two maps of the same shape.

    `l2` is the mean of squared differences over all elements, `smooth_l1` the mean of d^2 / 2 where |d| < 1 and
    |d| - 1/2 elsewhere, `cosine` the mean over images and places of 1 - cos of the two vectors of channels; a zero
    vector counts as orthogonal to all others.

    Args:
        student, teacher: [N, C, H, W].
    """
    if distance == "l2":
        return nn.functional.mse_loss(student, teacher)
    if distance == "smooth_l1":
        return nn.functional.smooth_l1_loss(student, teacher)
    return (1 - (unit(student, 1) * unit(teacher, 1)).sum(1)).mean()


class Feature(FeatureMethod):
    """weight * mean of `feature_loss` over the pairs + hard_weight * cross-entropy (+ soft_weight * response).

    Attributes:
        layers: pairs of a student's and a teacher's layer; None pairs the blocks at the same relative depth.
        adapter: a 1x1 convolution from the student's channels to the teacher's, or `none` where they are the same.
            Larger maps are averaged to the size of the smaller.
    """

    name: Literal["feature"] = "feature"
    layers: Layers = None
    distance: Distance = "l2"
    weight: NotNegative = 1.0
    adapter: Literal["linear", "none"] = "linear"

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> Distiller:
        """The student, its teacher, and an adapter for each pair of layers."""
        layers = layer_pairs(student, teacher, self.layers)
        maps = example_maps(student, teacher, layers, example)
        return MatchingDistiller(student, teacher, self, layers, maps)


class MatchingDistiller(FeatureDistiller):
    """See `Feature`."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        settings: Feature,
        layers: Sequence[Pair],
        maps: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        super().__init__(student, teacher, settings, layers)
        self.settings = settings
        shaped = zip(maps, layers, strict=True)
        self.adapters = nn.ModuleList(adapter(own, other, settings.adapter, pair) for (own, other), pair in shaped)

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hard, soft where it has a weight, and the features'."""
        look = self.look(images)
        losses = []
        for adapt, (own, other) in zip(self.adapters, look.maps, strict=True):
            size = smaller_size(own, other)
            losses.append(feature_loss(adapt(pooled(own, size)), pooled(other, size), self.settings.distance))
        return {**self.label_terms(look, labels), "feature": self.settings.weight * torch.stack(losses).mean()}
