"""Small lessons on scikit-learn's digits."""

from __future__ import annotations

import copy
from functools import cache

import torch

from llmdistill.vision.config import Data, Net, Protocol
from llmdistill.vision.data import ImageData, load
from llmdistill.vision.fit import fit
from llmdistill.vision.kd.base import Lesson, Method, Taught
from llmdistill.vision.kd.plain import PlainDistiller
from llmdistill.vision.models import build

SMALL = Net(arch="convnet", width=8, depth=2)


@cache
def digits() -> ImageData:
    return load(Data(path="digits"))


def built(net: Net, seed: int = 0) -> torch.nn.Module:
    return build(net, digits().shape, digits().num_classes, seed)


def trained(net: Net, epochs: int = 8) -> torch.nn.Module:
    """A network trained on the labels; a copy, for a distiller freezes its teacher."""
    return copy.deepcopy(_trained(net, epochs))


@cache
def _trained(net: Net, epochs: int) -> torch.nn.Module:
    teacher = built(net)
    fit(PlainDistiller(teacher), digits(), Protocol(epochs=epochs), 0)
    return teacher.eval()


def lesson(protocol: Protocol, student: Net | None = SMALL, data: ImageData | None = None, seed: int = 0) -> Lesson:
    def train(distiller, images, its_protocol):
        return fit(distiller, images, its_protocol, seed)

    return Lesson(data or digits(), protocol, seed, train, student, trained=None, build=built)


def taught(method: Method, teacher: torch.nn.Module | None, given: Lesson, net: Net = SMALL) -> Taught:
    with torch.random.fork_rng():
        torch.manual_seed(given.seed)
        return method.teach(built(net, given.seed), teacher, given)


def weights(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    """By its definition."""
    from math import exp

    powers = [exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def divergence(p: list[float], q: list[float]) -> float:
    """KL(p || q) in nats, by its definition."""
    from math import log

    return sum(one * log(one / other) for one, other in zip(p, q, strict=True))
