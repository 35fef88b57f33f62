"""Pruning with recovery: weights or channels of a trained student go, a few at a time, and it learns what they did."""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import Positive
from llmdistill.vision.deploy import beside
from llmdistill.vision.fit import History, accuracy
from llmdistill.vision.kd.base import Lesson, Taught
from llmdistill.vision.kd.recovery import Recovery, RecoveryDistiller, finished
from llmdistill.vision.pruning import (
    Masks,
    channels_of,
    chosen,
    enforce,
    magnitude_masks,
    sparsity_at,
    sparsity_of,
    take_out,
)


class Pruned(Recovery):
    """A student with fewer weights, recovered from what it was before.

    Attributes:
        structure: `weights` holds the smallest of all weights at zero (arXiv 1506.02626); the file and the time that a
            dense kernel takes stay as they were. `channels` takes the channels with the least L1 norm out of each layer
            (arXiv 1608.08710), which makes both smaller; where channels are added to others they stay.
        sparsity: share of the weights or of each layer's channels that goes.
        rounds: of pruning and recovery; more goes in the first ones.
    """

    name: Literal["pruned"] = "pruned"
    guide: Literal["teacher", "original"] = "original"
    structure: Literal["weights", "channels"] = "weights"
    sparsity: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    rounds: Positive = 3

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """A stage before and one for each round; the measures hold sparsity, accuracies between, size and speed."""
        histories = [self.prepared(student, teacher, lesson)]
        net, at_once = copy.deepcopy(student), copy.deepcopy(student)
        Pruner(at_once, self).prune(self.sparsity)
        measures = {
            "validation_dense": accuracy(student, lesson.data.validation),
            "validation_before_recovery": accuracy(at_once, lesson.data.validation),
        }
        if self.recover:
            histories += self._rounds(net, self.guide_of(student, teacher), lesson)
        else:
            net = at_once
        weights = num_weights(student)
        measures |= {"sparsity": sparsity_of(net), "weights_ratio": num_weights(net) / weights}
        return finished(net, lesson, histories, measures | beside(net, student, lesson.data.train.images[:64]))

    def _rounds(self, net: nn.Module, guide: nn.Module | None, lesson: Lesson) -> list[History]:
        pruner, epochs = Pruner(net, self), self.epochs_of(lesson)
        histories = []
        for number in range(1, self.rounds + 1):
            masks = pruner.prune(sparsity_at(number, self.rounds, self.sparsity))
            share = max(1, epochs * number // self.rounds - epochs * (number - 1) // self.rounds)
            distiller = PrunedDistiller(net, guide, self, masks)
            histories.append(lesson.fit(distiller, self.protocol_of(lesson, share)))
        return histories


class Pruner:
    """Prunes one network further and further."""

    def __init__(self, net: nn.Module, settings: Pruned) -> None:
        self.net, self.structure = net, settings.structure
        found = channels_of(net) if self.structure == "channels" else []
        self._originals = {channels.name: len(channels) for channels in found}

    def prune(self, sparsity: float) -> Masks:
        """Prune up to a share of what was there at first; gives the masks that must hold from now on."""
        if self.structure == "weights":
            masks = magnitude_masks(self.net, sparsity)
            enforce(self.net, masks)
            return masks
        for channels, kept in chosen(self.net, sparsity, self._originals):
            take_out(channels, kept)
        return {}


class PrunedDistiller(RecoveryDistiller):
    """See `Pruned`; masked weights are zero after each step whatever momentum or weight decay would do."""

    def __init__(self, student: nn.Module, guide: nn.Module | None, settings: Pruned, masks: Masks) -> None:
        super().__init__(student, guide, settings)
        self.masks = masks

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Hold the masks."""
        enforce(self.student, self.masks, optimiser)


def num_weights(net: nn.Module) -> int:
    """Parameters that are not zero."""
    return sum(int(parameter.count_nonzero()) for parameter in net.parameters())
