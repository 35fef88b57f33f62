"""Digits, small networks and lessons for the methods that learn a teacher's probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from pydantic import TypeAdapter
from torch import nn

from llmdistill.vision.config import Data, Net, Protocol
from llmdistill.vision.data import ImageData, load
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import History, fit
from llmdistill.vision.kd.base import Lesson, Method
from llmdistill.vision.kd.methods import AnyMethod
from llmdistill.vision.kd.plain import PlainDistiller
from llmdistill.vision.kd.response import response_loss
from llmdistill.vision.models import build

STUDENT = Net(arch="mlp", width=24, depth=1)
TEACHER = Net(arch="mlp", width=128, depth=1)
PROTOCOL = Protocol(epochs=15, learning_rate=0.05, seeds=(0,))


@cache
def digits() -> ImageData:
    return load(Data(limit=500))


def net(settings: Net = STUDENT, seed: int = 0) -> nn.Module:
    return build(settings, (1, 8, 8), 10, seed)


@cache
def trained(settings: Net = TEACHER, seed: int = 0) -> nn.Module:
    """A network that has learned the labels."""
    learner = net(settings, seed)
    fit(PlainDistiller(learner), digits(), PROTOCOL, seed)
    return learner.eval()


class Recorded:
    """A lesson, and every distiller that was trained in it, with its first weight before and its student after."""

    def __init__(self, epochs: int = PROTOCOL.epochs, seed: int = 0, **given: object) -> None:
        self.distillers: list[Distiller] = []
        self.first_weights: list[torch.Tensor] = []
        self.after: list[list[torch.Tensor]] = []
        settings: dict[str, object] = {"student": STUDENT, "trained": trained, "build": net, **given}
        protocol = PROTOCOL.model_copy(update={"epochs": epochs})
        self.lesson = Lesson(digits(), protocol, seed, self.train, **settings)

    def train(self, distiller: Distiller, data: ImageData, protocol: Protocol) -> History:
        self.distillers.append(distiller)
        self.first_weights.append(next(distiller.student.parameters()).detach().clone())
        history = fit(distiller, data, protocol, self.lesson.seed)
        self.after.append(state(distiller.student))
        return history


def named(**settings: object) -> Method:
    """A method as a pipeline file names it."""
    return TypeAdapter(AnyMethod).validate_python(settings)


def two(seed: int, *shape: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a student and of a teacher in float64."""
    generator = torch.Generator().manual_seed(seed)
    one, other = scale * torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    return one, other


def gradient(loss: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    wanted = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(wanted), wanted)[0]


def distance(student: nn.Module, teacher: nn.Module) -> float:
    """KL of the student from the teacher on images neither was trained on."""
    images = digits().test.images
    with torch.no_grad():
        return float(response_loss(student.eval()(images), teacher.eval()(images), 1.0))


def plain_student(seed: int = 0) -> nn.Module:
    return trained(STUDENT, seed)


def state(module: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
