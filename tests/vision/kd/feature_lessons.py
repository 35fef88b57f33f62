"""Small networks and scikit-learn's digits for the methods that look into both networks."""

from functools import cache

import torch

from llmdistill.vision.config import Data, Net, Protocol
from llmdistill.vision.data import ImageData, load
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import fit
from llmdistill.vision.kd.base import Lesson, Taught
from llmdistill.vision.kd.plain import PlainDistiller
from llmdistill.vision.models import build

PROTOCOL = Protocol(epochs=5, batch_size=32, learning_rate=0.1)
STUDENT = Net(arch="convnet", width=8, depth=2)
TEACHER = Net(arch="resnet", width=8, depth=8)


@cache
def digits() -> ImageData:
    return load(Data(limit=300))


@cache
def taught_teacher() -> torch.nn.Module:
    teacher = net(TEACHER)
    fit(PlainDistiller(teacher), digits(), Protocol(epochs=6, batch_size=32, learning_rate=0.1), 0)
    return teacher.eval()


def net(settings: Net, seed: int = 0) -> torch.nn.Module:
    return build(settings, (1, 8, 8), 10, seed)


def images(num: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def lesson(protocol: Protocol = PROTOCOL, data: ImageData | None = None) -> Lesson:
    def train(distiller: Distiller, its_data: ImageData, its_protocol: Protocol) -> object:
        return fit(distiller, its_data, its_protocol, 0)

    return Lesson(data or digits(), protocol, 0, train, STUDENT)


def teach(method, protocol: Protocol = PROTOCOL) -> Taught:
    """A small ConvNet taught by a small ResNet."""
    torch.manual_seed(0)
    return method.teach(net(STUDENT), taught_teacher(), lesson(protocol))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient_checked(loss, *students: torch.Tensor) -> bool:
    """The loss of each student's tensor against finite differences."""
    return all(torch.autograd.gradcheck(loss, (student.clone().requires_grad_(),)) for student in students)
