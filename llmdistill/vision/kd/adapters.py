"""Layers of two networks side by side: which are paired, what they give, and what adapts one to the other.

A feature is a map [N, C, H, W]. A vector [N, C] is taken for a map of one place, a sequence of tokens [N, L, C] for one
of L places in a column, so that a 1x1 convolution adapts all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import NotNegative
from llmdistill.errors import ConfigError
from llmdistill.vision.distiller import Distiller, needed
from llmdistill.vision.kd.base import Method
from llmdistill.vision.kd.response import response_loss
from llmdistill.vision.models import evaluating, feature_names, features_of

Pair = tuple[str, str]
"""A layer of the student and one of the teacher, by the names of their modules."""

Layers = Annotated[tuple[Pair, ...], Field(min_length=1)] | None

MOST_NAMES = 12
"""Layers named in an error."""

MOST_PLACES = 4
"""Rows and columns of a map of which an embedding is made."""

TINY = 1e-8
"""A vector shorter than this has no direction."""


def layer_pairs(student: nn.Module, teacher: nn.Module | None, given: Sequence[Pair] | None = None) -> list[Pair]:
    """The given pairs, or the blocks of both networks at the same relative depth.

    Raises:
        ConfigError: there is no teacher, or a network has no such layer; names the layers it has.
    """
    teacher = needed(teacher)
    if given is None:
        return same_depth(_blocks(student, "student"), _blocks(teacher, "teacher"))
    for own, other in given:
        _check_name(student, own, "student")
        _check_name(teacher, other, "teacher")
    return list(given)


def same_depth(student: Sequence[str], teacher: Sequence[str]) -> list[Pair]:
    """Pairs at the same relative depth, one for each layer of the network that has fewer; the last ones are paired."""
    fewer = min(len(student), len(teacher))

    def at(number: int, names: Sequence[str]) -> str:
        return names[(2 * number * len(names) + fewer) // (2 * fewer) - 1]

    return [(at(number, student), at(number, teacher)) for number in range(1, fewer + 1)]


def _blocks(net: nn.Module, whose: str) -> list[str]:
    names = feature_names(net)
    if not names:
        raise ConfigError(f"the {whose} has no blocks to pair", where="layers", do=f"name its layers: {_there(net)}")
    return names


def _check_name(net: nn.Module, name: str, whose: str) -> None:
    if name not in dict(net.named_modules()) or not name:
        raise ConfigError(f"the {whose} has no layer {name!r}", where="layers", do=f"it has {_there(net)}")


def _there(net: nn.Module) -> str:
    names = feature_names(net) or [name for name, _ in net.named_modules() if name]
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


def as_map(feature: torch.Tensor) -> torch.Tensor:
    """[N, C], [N, L, C] or [N, C, H, W] as [N, C, H, W]."""
    if feature.dim() == 2:
        return feature[:, :, None, None]
    return feature.transpose(1, 2)[..., None] if feature.dim() == 3 else feature


def embedding(feature: torch.Tensor) -> torch.Tensor:
    """A map [N, C, H, W], averaged to at most 4 x 4 places, as one vector for each image: [N, D].

    An average over all places would say little of a narrow network whose classifier sees every place.
    """
    height, width = feature.shape[2:]
    return pooled(feature, (min(height, MOST_PLACES), min(width, MOST_PLACES))).flatten(1)


def unit(vectors: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Vectors of length one; a zero vector stays zero and passes no gradient."""
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return torch.where(length > TINY, vectors / length.clamp_min(TINY), torch.zeros_like(vectors))


def smaller_size(student: torch.Tensor, teacher: torch.Tensor) -> tuple[int, int]:
    """Height and width of the smaller of two maps [N, C, H, W]."""
    return min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])


def pooled(feature: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A map averaged to `size`, or as it is where it has that size."""
    if tuple(feature.shape[2:]) == size:
        return feature
    return nn.functional.adaptive_avg_pool2d(feature, size)


def example_maps(
    student: nn.Module, teacher: nn.Module | None, layers: Sequence[Pair], example: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the paired layers give for a few images, from which adapters learn their shapes.

    Batch statistics stay as they were.

    Raises:
        ConfigError: a layer gives no feature, or one of a kind that the other cannot be compared with.
    """
    assert teacher is not None
    ours = _example_features(student, [own for own, _ in layers], example)
    theirs = _example_features(teacher, [other for _, other in layers], example)
    maps = []
    for (own, other), one, two in zip(layers, ours, theirs, strict=True):
        if {one.dim(), two.dim()} == {3, 4}:
            what = f"{own} gives {_shape(one)} and {other} gives {_shape(two)}: a sequence does not match a map"
            raise ConfigError(what, where="layers", do="pair layers of one kind")
        maps.append((as_map(one), as_map(two)))
    return maps


def _example_features(net: nn.Module, names: Sequence[str], example: torch.Tensor) -> list[torch.Tensor]:
    with evaluating(net), torch.no_grad(), features_of(net, names) as found:
        net(example)
    for name in names:
        feature = found.get(name)
        if not isinstance(feature, torch.Tensor) or feature.dim() not in (2, 3, 4):
            what = f"the layer {name} gives no feature of 2 to 4 dimensions"
            raise ConfigError(what, where="layers", do=f"there are {_there(net)}")
    return [found[name] for name in names]


def _shape(feature: torch.Tensor) -> str:
    return " x ".join(str(size) for size in feature.shape[1:])


def adapter(own: torch.Tensor, other: torch.Tensor, kind: str, layers: Pair) -> nn.Module:
    """A 1x1 convolution from the student's channels to the teacher's, or nothing where `kind` is `none`.

    Raises:
        ConfigError: nothing is to adapt layers of different numbers of channels.
    """
    if kind == "linear":
        return nn.Conv2d(own.shape[1], other.shape[1], 1)
    if own.shape[1] != other.shape[1]:
        what = f"{layers[0]} gives {_shape(own)} and {layers[1]} gives {_shape(other)}: the channels differ"
        raise ConfigError(what, where="layers", do="set adapter: linear, or pair other layers")
    return nn.Identity()


class FeatureMethod(Method):
    """What all methods on features have: the labels' term, and the soft one of `response` where it has a weight."""

    hard_weight: NotNegative = 1.0
    soft_weight: NotNegative = 0.0
    temperature: Annotated[float, Field(gt=0.0)] = 4.0


@dataclass(frozen=True)
class Look:
    """What one batch gives: logits [N, classes] of both, and the paired maps; the teacher's without gradient."""

    student_logits: torch.Tensor
    teacher_logits: torch.Tensor
    maps: list[tuple[torch.Tensor, torch.Tensor]]


class FeatureDistiller(Distiller):
    """A student and a teacher, both looked into. Adapters are modules of it: trained with the student, not deployed."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, settings: FeatureMethod, layers: Sequence[Pair]
    ) -> None:
        super().__init__(student, teacher)
        self.base, self.layers = settings, tuple(layers)

    def look(self, images: torch.Tensor) -> Look:
        """One forward pass of both networks."""
        assert self.teacher is not None
        with features_of(self.student, [own for own, _ in self.layers]) as found:
            student_logits = self.student(images)
        with features_of(self.teacher, [other for _, other in self.layers]) as known:
            teacher_logits = self.taught(images)
        maps = [(as_map(found[own]), as_map(known[other])) for own, other in self.layers]
        return Look(student_logits, teacher_logits, maps)

    def label_terms(self, look: Look, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The hard term, and the soft one where it has a weight."""
        terms = {"hard": self.base.hard_weight * nn.functional.cross_entropy(look.student_logits, labels)}
        if self.base.soft_weight:
            soft = response_loss(look.student_logits, look.teacher_logits, self.base.temperature)
            terms["soft"] = self.base.soft_weight * soft
        return terms
