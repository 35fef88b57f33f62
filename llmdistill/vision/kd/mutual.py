"""Deep mutual learning: peers that learn from the labels and from one another (Zhang et al., arXiv 1706.00384)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import NotNegative
from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.base import Lesson, Method, Taught
from llmdistill.vision.kd.response import response_loss

PEER_SEED = 1_000_003
"""Between the seeds of two peers, so that a peer is no student of another seed of the protocol."""


def mutual_losses(logits: Sequence[torch.Tensor], temperature: float = 1.0) -> list[torch.Tensor]:
    """For each peer i: 1 / (K - 1) * sum over j != i of T^2 * KL(p_j || p_i), in nats (equation 8).

    The others are detached: the loss of peer i has a gradient for peer i alone.

    Args:
        logits: [N, classes] of each of the K peers.
    """
    return [
        torch.stack(
            [response_loss(own, other.detach(), temperature) for other in (*logits[:i], *logits[i + 1 :])]
        ).mean()
        for i, own in enumerate(logits)
    ]


class Mutual(Method):
    """For each peer cross-entropy + weight * `mutual_losses`. There is no teacher; the first peer is the student.

    The peers step together, each from what the others said before the step. The paper steps them one after the other.

    Attributes:
        num_peers: the student among them.
        peer: network of the other peers, None for the student's own.
    """

    name: Literal["mutual"] = "mutual"
    num_peers: Annotated[int, Field(ge=2)] = 2
    peer: Net | None = None
    weight: NotNegative = 1.0
    temperature: Annotated[float, Field(gt=0.0)] = 1.0

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """Train all peers at once; validation accuracy of each is reported.

        Raises:
            ConfigError: a peer cannot be made.
        """
        others = [self._other(student, lesson, number) for number in range(1, self.num_peers)]
        distiller = MutualDistiller([student, *others], self)
        history = lesson.fit(distiller)
        part = lesson.data.validation
        measures = {f"validation_peer_{i + 1}": accuracy(peer, part) for i, peer in enumerate(distiller.peers())}
        return Taught(distiller.deployed(), history, measures)

    def _other(self, student: nn.Module, lesson: Lesson, number: int) -> nn.Module:
        net = self.peer or lesson.student
        if net is None:
            return redrawn(student)
        if lesson.build is None:
            raise ConfigError("this lesson builds no networks", where="peer", do="give the lesson `build`")
        return lesson.build(net, (lesson.seed + PEER_SEED * number) % 2**32)


class MutualDistiller(Distiller):
    """See `Mutual`."""

    def __init__(self, peers: Sequence[nn.Module], settings: Mutual) -> None:
        super().__init__(peers[0])
        self.others = nn.ModuleList(peers[1:])
        self.settings = settings

    def peers(self) -> list[nn.Module]:
        """All of them, the student first."""
        return [self.student, *self.others]

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hard and mutual, each summed over the peers."""
        logits = [peer(images) for peer in self.peers()]
        hard = torch.stack([nn.functional.cross_entropy(own, labels) for own in logits]).sum()
        mutual = torch.stack(mutual_losses(logits, self.settings.temperature)).sum()
        return {"hard": hard, "mutual": self.settings.weight * mutual}


def redrawn(net: nn.Module) -> nn.Module:
    """A copy of a network with weights drawn anew from the global generator.

    Raises:
        ConfigError: one of its modules has weights and cannot draw them.
    """
    copied = copy.deepcopy(net)
    for name, module in copied.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        reset = getattr(module, "reset_parameters", None)
        if reset is None:
            what = f"{type(module).__name__} has weights and no reset_parameters()"
            raise ConfigError(what, where=name or "student", do="make the peers, and use MutualDistiller")
        reset()
    return copied
