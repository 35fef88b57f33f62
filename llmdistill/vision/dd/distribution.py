"""Distribution matching (DM, arXiv 2110.04181): equal mean features in random networks, class by class."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import Positive
from llmdistill.vision.data import bounds
from llmdistill.vision.dd.base import Distillation, Method, Presets, Task
from llmdistill.vision.dd.blocks import fastest
from llmdistill.vision.dd.redrawn import Redrawn
from llmdistill.vision.dd.siamese import STRATEGY, Operation, draw, transformed
from llmdistill.vision.models import embed

AT_ONCE = {"cpu": 64, "cuda": 2048}
"""Real images in one forward pass: what caches hold on a CPU, what keeps a GPU busy and fits into its memory."""


def distribution_loss(synthetic: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """sum_c || mean_i real[c, i] - mean_j synthetic[c, j] ||^2 (equation 6).

    Args:
        synthetic: [classes, ipc, d] features.
        real: [classes, n, d] features; they get no gradient.
    """
    return (real.detach().mean(1) - synthetic.mean(1)).square().sum()


class Distribution(Method):
    """`batch_real` real images of each class are compared in each iteration, by a newly drawn network.

    Attributes:
        strategy: of the siamese augmentation, one operation for all images of an iteration; empty for none. As
            published; `flip` is to be left out where a mirrored image is another one (digits).
    """

    presets: ClassVar[Presets] = {
        "paper": {ipc: {"learning_rate": 10.0} for ipc in (100, 200, 500, 1000, 1250)},
        "ci": {None: {"iterations": 150, "batch_real": 32, "strategy": ()}},
    }

    name: Literal["dm"] = "dm"
    iterations: Positive = 20_000
    learning_rate: Annotated[float, Field(gt=0.0)] = 1.0
    batch_real: Positive = 256
    strategy: tuple[Operation, ...] = STRATEGY

    def distillation(self, task: Task) -> Distillation:
        """See `Method`."""
        return DistributionDistillation(task, self)


class DistributionDistillation(Distillation):
    """See `Distribution`."""

    settings: Distribution

    def __init__(self, task: Task, settings: Distribution) -> None:
        super().__init__(task, settings)
        self._nets = Redrawn(task)

    def loss(self) -> torch.Tensor:
        """The loss by one random network."""
        net = self._nets.draw()
        drawn = draw(self.generator, self.settings.strategy)
        images, _ = self.synthesiser()
        real = self.task.real(self.settings.batch_real)
        net, form = fastest(net)
        with form:
            target = features_of_real(net, transformed(real.flatten(0, 1), drawn))
            made = embed(net, transformed(images, drawn))
        return distribution_loss(by_class(made, len(real)), by_class(target, len(real)))


def by_class(features: torch.Tensor, num_classes: int) -> torch.Tensor:
    """[classes * n, d] -> [classes, n, d]."""
    return features.reshape(num_classes, -1, features.shape[1])


@torch.no_grad()
def features_of_real(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """[N, d] without a graph: all in one pass where images change each other's features (batch norm), else in parts."""
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        return embed(net, images)
    parts = bounds(len(images), AT_ONCE["cuda" if images.is_cuda else "cpu"])
    return torch.cat([embed(net, images[part]) for part in parts])
