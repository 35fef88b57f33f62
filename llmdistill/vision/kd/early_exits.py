"""Be your own teacher: the deepest exit of a network teaches its earlier exits (Zhang et al., arXiv 1905.08094)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import Fraction, NotNegative
from llmdistill.errors import ConfigError
from llmdistill.vision.data import Part, batches
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.kd.base import Lesson, Method, Taught
from llmdistill.vision.kd.response import response_loss
from llmdistill.vision.models import feature_names, features_of

LEAST_CHANNELS = 16
"""Of a bottleneck, where the deepest features have as many; else a fourth of theirs."""


def hint_loss(features: torch.Tensor, deepest: torch.Tensor) -> torch.Tensor:
    """Squared distance ||F_i - F_C||^2, the mean over images (equation 5); the deepest features are detached.

    Args:
        features, deepest: [N, ...] of one shape.
    """
    return (features - deepest.detach()).pow(2).flatten(1).sum(1).mean()


class EarlyExits(Method):
    """Cross-entropy of the deepest exit, and for every earlier exit (equation 6):

    (1 - soft_weight) * cross-entropy + soft_weight * T^2 * KL(deepest || exit) + hint_weight * `hint_loss`.

    There is no teacher. The deepest exit is the student as it is; it is what is kept.

    Attributes:
        hint_weight: of a mean over images. The authors' code sums over a batch of 128 with 1e-6.
        layers: modules of the student with an exit after each, and last the one whose output they should have; empty
            for all its blocks.
    """

    name: Literal["early_exits"] = "early_exits"
    soft_weight: Fraction = 0.1
    hint_weight: NotNegative = 1e-4
    temperature: Annotated[float, Field(gt=0.0)] = 3.0
    layers: tuple[str, ...] = ()

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> Distiller:
        """The student with a head after each earlier block."""
        return EarlyExitsDistiller(student, self, example)

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """Train all exits at once; validation accuracy of each is reported."""
        distiller = EarlyExitsDistiller(student, self, lesson.example)
        history = lesson.fit(distiller)
        found = exit_accuracies(distiller, lesson.data.validation)
        measures = {f"validation_exit_{number + 1}": value for number, value in enumerate(found)}
        return Taught(distiller.deployed(), history, measures)


class EarlyExitsDistiller(Distiller):
    """See `EarlyExits`.

    Raises:
        ConfigError: the student has no such layers, fewer than two, or one whose output no head can take.
    """

    def __init__(self, student: nn.Module, settings: EarlyExits, example: torch.Tensor) -> None:
        super().__init__(student)
        self.settings = settings
        self.layers = list(settings.layers) or feature_names(student)
        if len(self.layers) < 2:
            raise ConfigError("an early exit needs two layers or more", where="layers", do="name them, or go deeper")
        logits, features = _passed(student, self.layers, example)
        self.heads = nn.ModuleList(
            Head(feature, features[-1], logits.shape[-1]).to(example.device) for feature in features[:-1]
        )

    def exits(self, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Logits [N, classes] and features [N, ...] of every exit, the deepest last."""
        deepest, features = _forward(self.student, self.layers, images)
        found = [head(feature) for head, feature in zip(self.heads, features[:-1], strict=True)]
        return [*(logits for logits, _ in found), deepest], [*(feature for _, feature in found), features[-1]]

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hard, soft and hint, each summed over the exits."""
        (*early, deepest), (*features, last) = self.exits(images)
        share, temperature = self.settings.soft_weight, self.settings.temperature
        shallow = torch.stack([nn.functional.cross_entropy(logits, labels) for logits in early]).sum()
        soft = torch.stack([response_loss(logits, deepest.detach(), temperature) for logits in early]).sum()
        hint = torch.stack([hint_loss(feature, last) for feature in features]).sum()
        hard = nn.functional.cross_entropy(deepest, labels) + (1 - share) * shallow
        return {"hard": hard, "soft": share * soft, "hint": self.settings.hint_weight * hint}


class Head(nn.Module):
    """A bottleneck that gives features the shape of the deepest ones, and a linear layer over their mean.

    The bottleneck is 1x1, 3x3 once for each halving of the size, 1x1. Its norms look at one image at a time, so that a
    last batch of one image can be trained on.

    Args:
        feature, deepest: examples, [N, C, H, W], or [N, D].
    """

    def __init__(self, feature: torch.Tensor, deepest: torch.Tensor, num_classes: int) -> None:
        super().__init__()
        if feature.ndim != deepest.ndim or feature.ndim not in (2, 4):
            shapes = f"{list(feature.shape[1:])} and {list(deepest.shape[1:])}"
            raise ConfigError(f"no early exit for features of shape {shapes} of each image", where="layers")
        before, after = feature.shape[1], deepest.shape[1]
        middle = max(after // 4, min(after, LEAST_CHANNELS))
        if feature.ndim == 2:
            first, second = nn.Linear(before, middle), nn.Linear(middle, after)
            self.bottleneck = nn.Sequential(*_normed(first, middle), *_normed(second, after))
        else:
            self.bottleneck = nn.Sequential(
                *_normed(nn.Conv2d(before, middle, 1), middle),
                *_halvings(middle, feature.shape[2] / deepest.shape[2]),
                nn.AdaptiveAvgPool2d(deepest.shape[2:]),
                *_normed(nn.Conv2d(middle, after, 1), after),
            )
        self.classifier = nn.Linear(after, num_classes)

    def forward(self, feature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, classes] and the features they are of."""
        found = self.bottleneck(feature)
        return self.classifier(found.flatten(2).mean(-1) if found.ndim > 2 else found), found


def _halvings(channels: int, ratio: float) -> list[nn.Module]:
    """3x3 convolutions that make a map smaller by `ratio`; one that keeps its size where it is small already."""
    number = max(0, round(math.log2(ratio)))
    strides = [2] * number or [1]
    return [part for stride in strides for part in _normed(nn.Conv2d(channels, channels, 3, stride, 1), channels)]


def _normed(layer: nn.Module, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return layer, nn.GroupNorm(1, channels), nn.ReLU()


def _forward(net: nn.Module, layers: Sequence[str], images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and features of the layers; the tokens [N, T, D] of a transformer are averaged."""
    with features_of(net, layers) as found:
        logits = net(images)
    features = [found[name] for name in layers]
    return logits, [feature.mean(1) if feature.ndim == 3 else feature for feature in features]


def _passed(net: nn.Module, layers: Sequence[str], example: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`_forward` without a trace in the network: no gradient, no batch statistics."""
    mode = net.training
    net.eval()
    with torch.no_grad():
        passed = _forward(net, layers, example)
    net.train(mode)
    return passed


def exit_accuracies(distiller: EarlyExitsDistiller, part: Part, batch_size: int = 500) -> list[float]:
    """Share of images that each exit has right, the deepest last."""
    distiller.eval()
    right = []
    with torch.no_grad():
        for batch in batches(part, batch_size, None):
            logits, _ = distiller.exits(batch.images)
            right.append(torch.stack([(one.argmax(-1) == batch.labels).sum() for one in logits]))
    return [float(number) / len(part) for number in torch.stack(right).sum(0)]
