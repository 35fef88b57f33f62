"""Sets made of small data, for the tests of methods."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from llmdistill.vision.checkpoint import restore, state_of
from llmdistill.vision.config import Data, Net
from llmdistill.vision.data import ImageData, Part, load
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.base import Distillation, Method, Task

MLP = Net(arch="mlp", width=64, depth=2)


@cache
def digits() -> ImageData:
    """Scikit-learn's, all of them; not to be changed."""
    return load(Data())


def task_of(data: ImageData, ipc: int, seed: int = 0, net: Net = MLP) -> Task:
    return Task(data, ipc, net, seed)


def iterated(distillation: Distillation, iterations: int) -> Distillation:
    for _ in range(iterations):
        distillation.iterate()
    return distillation


def made(method: Method, data: ImageData, ipc: int, seed: int = 0, net: Net = MLP) -> DistilledDataset:
    """A method's set after all of its iterations."""
    return iterated(method.distillation(task_of(data, ipc, seed, net)), method.iterations).result(
        {"이름": method.title}
    )


def without_class(data: ImageData, label: int) -> ImageData:
    """The data without a training image of one class."""
    kept = data.train.labels != label
    return replace(data, train=Part(data.train.images[kept], data.train.labels[kept]))


def goes_on_bit_equal(method: Method, data: ImageData, ipc: int, before: int = 2, after: int = 2) -> bool:
    """Whether a distillation that takes over another one's state goes on as that one does."""
    one = iterated(method.distillation(task_of(data, ipc)), before)
    other = method.distillation(task_of(data, ipc))
    tensors, values = state_of(one, one.optimiser)
    restore(other, other.optimiser, {name: tensor.clone() for name, tensor in tensors.items()}, values, Path("상태"))
    losses = [[each.iterate() for _ in range(after)] for each in (one, other)]
    sets = [each.result({}) for each in (one, other)]
    same = [torch.equal(getattr(sets[0], name), getattr(sets[1], name)) for name in ("images", "labels")]
    return losses[0] == losses[1] and all(same)
