"""Gradient matching: training on the set moves a network as real images do.

DC (arXiv 2006.05929), and DSA (arXiv 2102.08259), which changes real and synthetic images of a class by one drawn
operation before their gradients are compared.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import cosine_similarity

from llmdistill.config.base import Fraction, NotNegative, Positive
from llmdistill.vision.dd.base import Distillation, Method, Presets, Task
from llmdistill.vision.dd.grouped import Tensors, class_gradients, real_gradients
from llmdistill.vision.dd.siamese import STRATEGY, Operation, draw, transformed
from llmdistill.vision.dd.training import train_step

SCHEDULE = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Matchings in an iteration and epochs of training between them, by images for each class, as published."""

STATISTICS_IMAGES = 16
"""Of each class, for the statistics of batch norms, as in the papers' code."""


def gradient_loss(synthetic: Tensors, real: Tensors) -> torch.Tensor:
    """Sum over classes, weights and their output rows of 1 - cos(synthetic row, real row) (equation 10 of DC).

    A row is what leads to one output: a filter of a convolution, a row of a linear layer's matrix. A row of zeros
    counts 1 and gives no gradient.

    Args:
        synthetic, real: {name: [classes, rows, ...]} of the same weights; those of `real` get no gradient.
    """
    terms = [
        1 - cosine_similarity(mine.flatten(2), real[name].detach().flatten(2), dim=2, eps=1e-8)
        for name, mine in synthetic.items()
    ]
    return torch.cat(terms, 1).sum()


class Matching(Method):
    """Each iteration draws a network and matches gradients class by class, training the network on the set in between.

    Attributes:
        batch_real: real images of each class.
        batch_train: synthetic images in a step of the network's training.
        matchings, inner_epochs: in an iteration; None takes the published ones for the number of images.
        net_learning_rate, net_momentum, net_weight_decay: of the network's training on the set.
    """

    presets: ClassVar[Presets] = {
        "ci": {
            None: {
                "start": "real",
                "learning_rate": 0.4,
                "batch_real": 64,
                "iterations": 10,
                "matchings": 4,
                "inner_epochs": 5,
            },
            1: {"iterations": 60, "matchings": 1, "inner_epochs": 1},
        }
    }

    batch_real: Positive = 256
    batch_train: Positive = 256
    matchings: Positive | None = None
    inner_epochs: Positive | None = None
    net_learning_rate: Annotated[float, Field(gt=0.0)] = 0.01
    net_momentum: Fraction = 0.5
    net_weight_decay: NotNegative = 0.0

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Siamese operations."""
        return ()

    def distillation(self, task: Task) -> Distillation:
        """See `Method`."""
        return GradientDistillation(task, self)


class Gradient(Matching):
    """DC."""

    presets: ClassVar[Presets] = {
        **Matching.presets,
        "cpu": {
            None: {"start": "real", "batch_real": 64, "iterations": 24, "inner_epochs": 10, "net_learning_rate": 0.05},
            1: {"start": "noise", "iterations": 600, "inner_epochs": None, "net_learning_rate": 0.01},
        },
    }

    name: Literal["dc"] = "dc"
    start: Literal["noise", "real", "mean"] = "noise"


class SiameseGradient(Matching):
    """DSA: DC with one operation of `strategy` for each class and matching; digits are better without `flip`.

    The network is trained with them too, by numbers for each image, and without momentum, as in the paper's code.
    """

    presets: ClassVar[Presets] = {
        **Matching.presets,
        "cpu": {
            None: {
                "learning_rate": 0.3,
                "batch_real": 32,
                "iterations": 40,
                "milestones": (28, 32, 36),
                "matchings": 20,
                "inner_epochs": 2,
                "net_learning_rate": 0.1,
            },
            1: {
                "learning_rate": 0.1,
                "batch_real": 64,
                "iterations": 300,
                "milestones": (),
                "matchings": None,
                "inner_epochs": None,
                "net_learning_rate": 0.01,
            },
        },
    }

    name: Literal["dsa"] = "dsa"
    net_momentum: Fraction = 0.0
    strategy: Annotated[tuple[Operation, ...], Field(min_length=1)] = STRATEGY

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Siamese operations."""
        return self.strategy


class GradientDistillation(Distillation):
    """See `Matching`."""

    settings: Matching

    def improve(self) -> float:
        """One network: match, improve the images, train the network on them, and again."""
        matchings, epochs = self.schedule()
        net = self.task.fresh_net()
        trainer = self.trainer(net)
        losses = []
        for number in range(matchings):
            loss = self.matching(net)
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss, inputs=list(self.synthesiser.parameters()))
            self.optimiser.step()
            losses.append(loss.detach())
            if number < matchings - 1:
                self.train_net(net, trainer, epochs)
        return float(torch.stack(losses).mean())

    def schedule(self) -> tuple[int, int]:
        """Matchings and inner epochs; between the published sizes as many of both as there."""
        ipc = self.task.ipc
        matchings, epochs = SCHEDULE.get(ipc, (ipc, max(1, 500 // ipc)))
        return self.settings.matchings or matchings, self.settings.inner_epochs or epochs

    def matching(self, net: nn.Module) -> torch.Tensor:
        """The loss over all classes."""
        fix_statistics(net, self.task)
        images, labels = self.synthesiser()
        real = self.task.real(self.settings.batch_real)
        num_classes, shape = len(real), images.shape[1:]
        synthetic, labels = images.reshape(num_classes, -1, *shape), labels.reshape(num_classes, -1)
        synthetic, real = self.changed(synthetic, real)
        target = real_gradients(net, real, labels[:, :1].expand(real.shape[:2]))
        return gradient_loss(class_gradients(net, synthetic, labels), target)

    def changed(self, synthetic: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both [classes, n, C, H, W], each class by an operation of its own."""
        operations = self.settings.operations
        if not operations:
            return synthetic, real
        drawn = [draw(self.task.generator, operations) for _ in real]
        synthetic, real = (
            torch.stack([transformed(some, one) for some, one in zip(images, drawn, strict=True)])
            for images in (synthetic, real)
        )
        return synthetic, real

    def trainer(self, net: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a network's training on the set."""
        settings = self.settings
        rate, momentum = settings.net_learning_rate, settings.net_momentum
        return torch.optim.SGD(net.parameters(), rate, momentum, weight_decay=settings.net_weight_decay)

    def train_net(self, net: nn.Module, trainer: torch.optim.Optimizer, epochs: int) -> None:
        """Train the network on the set as it is."""
        net.train()
        images, labels = (each.detach() for each in self.synthesiser())
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=self.task.generator).to(images.device)
            for chosen in torch.split(order, self.settings.batch_train):
                change = draw(self.task.generator, self.settings.operations, len(chosen))
                train_step(net, trainer, transformed(images[chosen], change), labels[chosen])


def fix_statistics(net: nn.Module, task: Task) -> None:
    """Give batch norms the statistics of real images of all classes together, and keep them from there on.

    A batch of one class, or of one image, would be normalised by itself, which hides what makes the class differ.
    The papers' code leaves nine tenths of what the statistics were before; these are the images' own.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    net.train()
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net(task.real(STATISTICS_IMAGES).flatten(0, 1))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
        norm.eval()
