"""Aligning features of all layers (CAFE, arXiv 2203.01531), in networks that are trained on the set in between.

Written from the paper, with the published code's settings. Unlike that code each accuracy that the schedule looks at is
that of one moment, both loops end for certain, and no term is constant in the images.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import NotNegative, Positive
from llmdistill.vision.dd.base import Distillation, Method, Presets, Task
from llmdistill.vision.dd.blocks import swift
from llmdistill.vision.dd.siamese import Operation, draw, transformed
from llmdistill.vision.dd.training import train_step
from llmdistill.vision.models import ConvNet, feature_names, features_of

Features = Sequence[torch.Tensor]
"""[classes * n, ...] of each layer from the input on, class by class."""


def alignment_loss(synthetic: Features, real: Features, num_classes: int, weights: Sequence[float]) -> torch.Tensor:
    """sum_l weight_l sum_c || mean f_l(real of c) - mean f_l(synthetic of c) ||^2 (equation 2); real ones detached."""
    terms = [
        weight * (_centres(mine, num_classes) - _centres(its.detach(), num_classes)).square().sum()
        for weight, mine, its in zip(weights, synthetic, real, strict=True)
    ]
    return torch.stack(terms).sum()


def discrimination_loss(synthetic: torch.Tensor, real: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Cross-entropy, summed over real images, of scores feature . centre of the synthetic class (equations 4 to 6).

    Args:
        synthetic, real: [classes * n, ...] features of the last layer, class by class; real ones are detached.
    """
    real = real.detach().flatten(1)
    scores = real @ _centres(synthetic, num_classes).T
    labels = torch.arange(num_classes, device=real.device).repeat_interleave(len(real) // num_classes)
    return nn.functional.cross_entropy(scores, labels, reduction="sum")


def _centres(features: torch.Tensor, num_classes: int) -> torch.Tensor:
    """[classes, d] mean features."""
    return features.reshape(num_classes, len(features) // num_classes, -1).mean(1)


def layers_of(net: nn.Module) -> list[str]:
    """The layers that are compared: each block, and of a ConvNet as published each block before its pooling."""
    blocks = feature_names(net)
    if isinstance(net, ConvNet):
        return [*(f"{name}.2" for name in blocks), blocks[-1]]
    return blocks


def weights_of(num_layers: int, from_last: Sequence[float]) -> list[float]:
    """Weights from the input on, of weights from the last layer back; further layers have the weight of the last."""
    return [from_last[min(number, len(from_last) - 1)] for number in reversed(range(num_layers))]


class Window:
    """The last accuracies that were measured in one loop."""

    def __init__(self, size: int) -> None:
        self._last: deque[float] = deque(maxlen=size)

    def spread(self, accuracy: float) -> float | None:
        """Greatest less smallest once there is one more; None while there are too few."""
        self._last.append(accuracy)
        return max(self._last) - min(self._last) if len(self._last) == self._last.maxlen else None


class Cafe(Method):
    """Each iteration draws a network, and matches features and trains it in turn until its accuracy stays the same.

    Attributes:
        layer_weights: from the last layer back; layers further from it have the weight of the last one given.
        centre_weight: of the last feature's centres, which the published code compares once more.
        discrimination_weight: of real images that are classified by the centres of synthetic ones.
        strategy: of the siamese augmentation; empty for none.
        probe_images: of each class, from the training part, for each measurement of the network's accuracy.
        window: accuracies that the schedule looks at.
        matched_spread: an iteration ends when the accuracies after matchings differ by less (lambda 1).
        trained_spread: training between matchings ends when the accuracies after epochs differ by more (lambda 2).
        most_matchings, most_epochs: where both loops end for certain; the paper has no such bounds.
    """

    presets: ClassVar[Presets] = {
        "ci": {
            None: {
                "iterations": 5,
                "batch_real": 32,
                "start": "real",
                "probe_images": 16,
                "window": 4,
                "most_matchings": 10,
                "most_epochs": 4,
                "milestones": (3, 4),
            }
        }
    }

    name: Literal["cafe"] = "cafe"
    iterations: Positive = 2000
    start: Literal["noise", "real", "mean"] = "noise"
    batch_real: Positive = 256
    layer_weights: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (1.0, 1.0, 0.1, 0.1)
    centre_weight: NotNegative = 1.0
    discrimination_weight: NotNegative = 0.01
    strategy: tuple[Operation, ...] = ()
    net_learning_rate: Annotated[float, Field(gt=0.0)] = 0.01
    batch_train: Positive = 256
    probe_images: Positive = 128
    window: Positive = 10
    matched_spread: NotNegative = 0.04
    trained_spread: NotNegative = 0.03
    most_matchings: Positive = 100
    most_epochs: Positive = 100
    milestones: tuple[Positive, ...] = (1200, 1600, 1800)

    def distillation(self, task: Task) -> Distillation:
        """See `Method`."""
        return CafeDistillation(task, self)


class CafeDistillation(Distillation):
    """See `Cafe`. A network lives for one iteration, so that a checkpoint between two holds none."""

    settings: Cafe

    def improve(self) -> float:
        """One network: match, improve the images and train the network in turn; gives the mean loss."""
        net = self.task.fresh_net()
        window, losses = Window(self.settings.window), []
        for _ in range(self.settings.most_matchings):
            loss = self.matching(net)
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self.optimiser.step()
            losses.append(float(loss.detach()))
            spread = window.spread(self.probe(net))
            if spread is not None and spread < self.settings.matched_spread:
                break
            self.train_net(net)
        return sum(losses) / len(losses)

    def matching(self, net: nn.Module) -> torch.Tensor:
        """The loss over all layers and classes."""
        settings, num_classes = self.settings, self.task.data.num_classes
        images, _ = self.synthesiser()
        drawn = draw(self.generator, settings.strategy)
        net.requires_grad_(False)
        with torch.no_grad():
            real = features(net, transformed(self.task.real(settings.batch_real).flatten(0, 1), drawn))
        made = features(net, transformed(images, drawn))
        weights = weights_of(len(made), settings.layer_weights)
        weights[-1] += settings.centre_weight
        discrimination = discrimination_loss(made[-1], real[-1], num_classes)
        return alignment_loss(made, real, num_classes, weights) + settings.discrimination_weight * discrimination

    def train_net(self, net: nn.Module) -> None:
        """Train the network on the set as it is, until that has changed what it knows."""
        optimiser = torch.optim.SGD(net.requires_grad_(True).parameters(), self.settings.net_learning_rate)
        window = Window(self.settings.window)
        for _ in range(self.settings.most_epochs):
            self._epoch(net, optimiser)
            spread = window.spread(self.probe(net))
            if spread is not None and spread > self.settings.trained_spread:
                return

    def _epoch(self, net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        images, labels = (each.detach() for each in self.synthesiser())
        order = torch.randperm(len(images), generator=self.generator).to(images.device)
        for start in range(0, len(order), self.settings.batch_train):
            chosen = order[start : start + self.settings.batch_train]
            drawn = draw(self.generator, self.settings.strategy, len(chosen))
            train_step(net, optimiser, transformed(images[chosen], drawn), labels[chosen])

    @torch.no_grad()
    def probe(self, net: nn.Module) -> float:
        """Accuracy, 0 to 1, on newly drawn training images, the same number of each class."""
        images = self.task.real(self.settings.probe_images)
        labels = torch.arange(len(images), device=images.device)[:, None]
        guesses = swift(net)(images.flatten(0, 1)).argmax(1).reshape(len(images), -1)
        return float((guesses == labels).float().mean())


def features(net: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Of each layer that is compared, from the input on."""
    names = layers_of(net)
    with features_of(net, names) as found:
        net(images)
    return [found[name] for name in names]
