"""Networks trained on a distilled set by a protocol, and what they reach on the test part.

Everything that is chosen is chosen on the validation part; then the test part is looked at, once for each network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch import nn

from llmdistill.run.progress import say
from llmdistill.vision.config import Net
from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.blocks import swift
from llmdistill.vision.dd.protocol import Evaluation
from llmdistill.vision.dd.training import train_on
from llmdistill.vision.fit import accuracy


@dataclass(frozen=True)
class Judgement:
    """What networks reach that were trained on a set: accuracies, 0 to 1, one for each network.

    Attributes:
        validation: on the images that the learning rate was chosen by.
        learning_rate: the one that was best there, or that was learned with the set.
        tried: mean validation accuracy by learning rate.
        not_finite: networks that training on the set broke; they count as chance, 1 / classes.
    """

    test: list[float]
    validation: list[float]
    learning_rate: float
    tried: dict[str, float]
    not_finite: int = 0

    def row(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def judge(dataset: DistilledDataset, data: ImageData, net: Net, protocol: Evaluation) -> Judgement:
    """Choose a learning rate on the validation part, train `protocol.nets` networks, and look at the test part.

    Raises:
        ConfigError: the network does not go with the images or the protocol.
    """
    rates = rates_of(dataset, protocol)
    seeds = range(protocol.seed, protocol.seed + protocol.nets)
    few = seeds if len(rates) == 1 else seeds[: protocol.grid_nets]
    validation = evenly(data.validation, protocol.validation_images)
    best, tried = _Reached(0.0, [], []), {}
    for rate in rates:
        nets = train_on(dataset, data, net, protocol, rate, few)
        found = _Reached(rate, nets, [reached(each, validation, data.num_classes) for each in nets])
        tried[str(rate)] = mean(found.accuracies)
        best = found if not best.nets or mean(found.accuracies) > mean(best.accuracies) else best
    rest = train_on(dataset, data, net, protocol, best.rate, seeds[len(few) :])
    nets = [*best.nets, *rest]
    accuracies = [*best.accuracies, *(reached(each, validation, data.num_classes) for each in rest)]
    test = [reached(each, data.test, data.num_classes) for each in nets]
    broken = sum(not is_finite(each) for each in nets)
    if broken:
        say(f"{broken} of {len(nets)} networks have values that are not finite: they count as chance")
    return Judgement(test, accuracies, best.rate, tried, broken)


@dataclass
class _Reached:
    """Networks trained with one learning rate, and their validation accuracies."""

    rate: float
    nets: list[nn.Module]
    accuracies: list[float]


def rates_of(dataset: DistilledDataset, protocol: Evaluation) -> tuple[float, ...]:
    """The learning rates to choose from: the learned one alone where the protocol says so and the set has one."""
    learned = dataset.learning_rate
    return (learned,) if protocol.learned_rate and learned is not None else protocol.learning_rates


def evenly(part: Part, most: int) -> Part:
    """At most so many images, evenly spaced, because files may be sorted by class."""
    if len(part) <= most:
        return part
    rows = (torch.arange(most, device=part.labels.device) * len(part)) // most
    return Part(part.images[rows], part.labels[rows])


def reached(net: nn.Module, part: Part, num_classes: int) -> float:
    """Accuracy of a network; that of chance where its weights are not finite."""
    return accuracy(swift(net), part) if is_finite(net) else 1 / num_classes


def is_finite(net: nn.Module) -> bool:
    """Whether all weights and statistics are numbers."""
    return all(bool(value.isfinite().all()) for value in net.state_dict().values())


def full_set(data: ImageData) -> DistilledDataset:
    """The whole training part as if it were a distilled set, to be judged by `protocol.full(...)`."""
    train = data.train
    floats = train.images.numel()
    return DistilledDataset(
        train.images, train.labels, data.mean, data.std, data.num_classes, floats, provenance={"method": "full"}
    )


def with_class_labels(dataset: DistilledDataset) -> DistilledDataset:
    """The set with the most probable class of each image as its label."""
    return replace(dataset, labels=dataset.classes)
