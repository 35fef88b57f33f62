"""Matchers of distributions by their definitions: one class after the other, slow and plain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from llmdistill.vision.dd.base import Task
from llmdistill.vision.dd.siamese import Drawn, draw, transformed
from llmdistill.vision.models import embed


def loss_by_class(net: nn.Module, images: torch.Tensor, real: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """DM's loss (arXiv 2110.04181, equation 6): images [classes * ipc, C, H, W], real [classes, n, C, H, W]."""
    loss = images.new_zeros(())
    for some, its in zip(images.chunk(len(real)), real, strict=True):
        target = embed(net, transformed(its, drawn)).detach()
        made = embed(net, transformed(some, drawn))
        loss = loss + ((target.mean(0) - made.mean(0)) ** 2).sum()
    return loss


def iterations_by_class(
    task: Task, images: torch.Tensor, iterations: int, batch_real: int, strategy: tuple[str, ...], rate: float = 1.0
) -> tuple[torch.Tensor, list[float]]:
    """The images after so many iterations of SGD with momentum 0.5, each with a network that is built, and the losses.

    Draws from the task's generator what `DistributionDistillation` draws.
    """
    images = nn.Parameter(images.detach().clone())
    optimiser = torch.optim.SGD([images], rate, momentum=0.5)
    losses = []
    for _ in range(iterations):
        net = task.fresh_net()
        drawn = draw(task.generator, strategy)
        loss = loss_by_class(net, images, task.real(batch_real), drawn)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return images.detach(), losses


def cafe_by_class(
    made: Sequence[torch.Tensor],
    real: Sequence[torch.Tensor],
    num_classes: int,
    weights: Sequence[float],
    discrimination: float,
    centre: float,
) -> torch.Tensor:
    """CAFE's loss (arXiv 2203.01531, equations 1 to 6) of features [classes * n, ...] by layer, class by class."""
    loss = made[0].new_zeros(())
    for weight, mine, its in zip(weights, made, real, strict=True):
        for some, others in zip(mine.chunk(num_classes), its.chunk(num_classes), strict=True):
            loss = loss + weight * ((some.mean(0) - others.mean(0)) ** 2).sum()
    last, target = made[-1].flatten(1), real[-1].flatten(1)
    centres = [some.mean(0) for some in last.chunk(num_classes)]
    for label, (mine, some) in enumerate(zip(centres, target.chunk(num_classes), strict=True)):
        loss = loss + centre * ((mine - some.mean(0)) ** 2).sum()
        for feature in some:
            scores = torch.stack([(feature * one).sum() for one in centres])
            loss = loss - discrimination * scores.log_softmax(0)[label]
    return loss
