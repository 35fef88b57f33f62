"""The one training loop of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from llmdistill.errors import StageError
from llmdistill.vision.augment import augmented
from llmdistill.vision.config import Protocol
from llmdistill.vision.data import ImageData, Part, batches
from llmdistill.vision.distiller import Distiller


@dataclass
class History:
    """What training was like, epoch by epoch."""

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)


def accuracy(net: nn.Module, part: Part, batch_size: int = 500) -> float:
    """Share of images whose greatest logit is that of their label; the network is in evaluation mode meanwhile."""
    mode = net.training
    net.eval()
    with torch.no_grad():
        right = [(net(batch.images).argmax(-1) == batch.labels).sum() for batch in batches(part, batch_size, None)]
    net.train(mode)
    return float(torch.stack(right).sum() / len(part))


def fit(
    distiller: Distiller,
    data: ImageData,
    protocol: Protocol,
    seed: int,
    after_epoch: Callable[[int], None] | None = None,
) -> History:
    """Train a distiller; what is left is its state after the last epoch, not the best one.

    Raises:
        StageError: a term of the loss is not finite; names the term.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = optimiser_of(distiller, protocol)
    steps = protocol.epochs * -(-len(data.train) // protocol.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_at(step, steps, protocol))
    history = History()
    for epoch in range(protocol.epochs):
        distiller.train()
        sums = []
        for batch in batches(data.train, protocol.batch_size, generator):
            images = augmented(batch.images, protocol.augment, generator)
            terms = distiller.terms(images, batch.labels)
            loss = torch.stack(list(terms.values())).sum()
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            sums.append(loss.detach())
        history.loss.append(float(torch.stack(sums).mean()))
        if not math.isfinite(history.loss[-1]):
            broken = [name for name, value in terms.items() if not torch.isfinite(value)]
            raise StageError(
                f"the loss is not finite in epoch {epoch + 1} ({', '.join(broken) or 'an earlier batch'})",
                do="lower protocol.learning_rate or the method's weights",
            )
        history.validation.append(accuracy(distiller.deployed(), data.validation))
        if after_epoch is not None:
            after_epoch(epoch)
    return history


def optimiser_of(distiller: Distiller, protocol: Protocol) -> torch.optim.Optimizer:
    """The protocol's optimiser over what the distiller trains."""
    parameters = list(distiller.trained())
    if protocol.optimiser == "adamw":
        return torch.optim.AdamW(parameters, protocol.learning_rate, weight_decay=protocol.weight_decay)
    return torch.optim.SGD(
        parameters,
        protocol.learning_rate,
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=protocol.weight_decay,
    )


def learning_rate_at(step: int, steps: int, protocol: Protocol) -> float:
    """Factor of the learning rate before a step."""
    warmup = protocol.warmup_epochs * steps / protocol.epochs
    if step < warmup:
        return (step + 1) / warmup
    if protocol.schedule == "constant":
        return 1.0
    done = step / steps
    if protocol.schedule == "steps":
        return 0.1 ** sum(done >= milestone for milestone in protocol.milestones)
    return 0.5 * (1 + math.cos(math.pi * done))
