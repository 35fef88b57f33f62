"""Small tasks of dataset distillation, and how their sets are taken apart and judged."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from llmdistill.vision.checkpoint import Checkpoint, restore, state_of
from llmdistill.vision.config import Data, Net
from llmdistill.vision.data import ImageData, Part, load
from llmdistill.vision.dd.base import Distillation, Method, Task
from llmdistill.vision.fit import accuracy
from llmdistill.vision.models import build
from tests.vision.images import small_data

TINY = Net(arch="convnet", width=4, depth=2)
MLP = Net(arch="mlp", width=64, depth=2)


@cache
def digits() -> ImageData:
    return load(Data(path="digits"))


def task(ipc: int = 2, net: Net = TINY, seed: int = 0, data: ImageData | None = None) -> Task:
    return Task(data or small_data(), ipc, net, seed)


def images_of(distillation: Distillation) -> torch.Tensor:
    return distillation.synthesiser()[0].detach().clone()


def distilled(method: Method, its_task: Task) -> Distillation:
    """After all its iterations."""
    distillation = method.distillation(its_task)
    for _ in range(method.iterations):
        distillation.iterate()
    return distillation


def resumed(method: Method, its_task: Task, before: int, after: int, path: Path) -> torch.Tensor:
    """Images of a set that is kept after some iterations and goes on in new objects of another seed's chance."""
    first = method.distillation(its_task)
    for _ in range(before):
        first.iterate()
    checkpoint = Checkpoint(path)
    checkpoint.save(*state_of(first, first.optimiser))
    second = method.distillation(Task(its_task.data, its_task.ipc, its_task.net, its_task.seed))
    second.generator.manual_seed(99)
    tensors, values = checkpoint.load() or ({}, {})
    restore(second, second.optimiser, tensors, values, path)
    for _ in range(after):
        second.iterate()
    return images_of(second)


def learned_from(images: torch.Tensor, data: ImageData, net: Net, nets: int = 2, epochs: int = 100) -> float:
    """Mean test accuracy of networks trained on images that stand class by class."""
    labels = torch.arange(data.num_classes).repeat_interleave(len(images) // data.num_classes)
    return sum(_trained(Part(images, labels), data, net, seed, epochs) for seed in range(nets)) / nets


def _trained(part: Part, data: ImageData, net: Net, seed: int, epochs: int) -> float:
    trained = build(net, data.shape, data.num_classes, seed)
    optimiser = torch.optim.SGD(trained.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(trained(part.images), part.labels).backward()
        optimiser.step()
    return accuracy(trained, data.test)
