"""What all methods have in common: how a student is taught, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from llmdistill.config.base import Settings
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.data import ImageData
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import History

EXAMPLE = 4
"""Images from which a method learns the shapes of features."""

Train = Callable[[Distiller, ImageData, Protocol], History]
"""The training loop, as a run shows and keeps it."""


@dataclass(frozen=True)
class Lesson:
    """What one training stands on.

    Attributes:
        data: train, validation and test; a method never looks at the test part.
        seed: of the student's weights and of the order of images.
        train: trains a distiller to the end of a protocol.
        student: settings of the student's network, None where the student is the user's own module.
        trained: a network of these settings, trained on the labels by the teacher's protocol with a seed; made once in
            a run, for methods that need more than one teacher.
        build: an untrained network of these settings, its weights drawn from a seed.
    """

    data: ImageData
    protocol: Protocol
    seed: int
    train: Train
    student: Net | None = None
    trained: Callable[[Net, int], nn.Module] | None = None
    build: Callable[[Net, int], nn.Module] | None = None

    @property
    def example(self) -> torch.Tensor:
        """A few images [N, C, H, W]."""
        return self.data.train.images[:EXAMPLE]

    def fit(self, distiller: Distiller, protocol: Protocol | None = None, data: ImageData | None = None) -> History:
        """Train one stage of a method, by the lesson's protocol and on its data where nothing else is given."""
        return self.train(distiller.to(self.data.mean.device), data or self.data, protocol or self.protocol)


@dataclass
class Taught:
    """What a method gives: the network that is measured and kept, and how it came about.

    Attributes:
        measures: what the method reports beside test accuracy (sparsity, validation accuracy of each exit, ...).
    """

    net: nn.Module
    history: History
    measures: dict[str, float] = field(default_factory=dict)


class Method(Settings):
    """Settings of one method. `name` picks it; `label` is its row in the table where one method stands there twice.

    `against` names the row that its gain is over, `plain` where it is None: students that see other images than plain
    ones must be compared with such that see them too.

    `can_be_timed` says whether a few steps tell how long the whole takes.

    A method of one stage gives `distiller`; one of several gives `teach` instead.
    """

    can_be_timed: ClassVar[bool] = True

    name: str
    label: str | None = None
    against: str | None = None

    @property
    def title(self) -> str:
        """Name of its row."""
        return self.label or self.name

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> Distiller:
        """The student with everything the method adds to it.

        Args:
            example: a few images [N, C, H, W], from which the shapes of features are learned.
        """
        raise NotImplementedError

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """Train the student from beginning to end.

        The global generator is seeded by the lesson's seed meanwhile: what a method adds draws its weights from it.
        """
        distiller = self.distiller(student, teacher, lesson.example)
        history = lesson.fit(distiller)
        return Taught(distiller.deployed(), history)
