"""A student that is taught: the student, its teacher, and terms of a loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from llmdistill.errors import ConfigError


def needed(teacher: nn.Module | None) -> nn.Module:
    """The teacher, where a method cannot do without.

    Raises:
        ConfigError: there is none.
    """
    if teacher is None:
        raise ConfigError("this method needs a teacher", where="teacher")
    return teacher


class Distiller(nn.Module):
    """A student that is taught. What is trained is the student and what the method adds, never the teacher.

    Subclasses give `terms`. The teacher stays in evaluation mode whatever mode the rest is in, and its outputs have
    no gradient. What changes from step to step must be a parameter, a buffer or a `torch.Generator` that is an
    attribute: these are in a checkpoint, a Python number is not.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        if teacher is not None:
            teacher.requires_grad_(False)
            teacher.eval()

    def train(self, mode: bool = True) -> Distiller:
        """The teacher's batch statistics must not move."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def trained(self) -> Iterator[nn.Parameter]:
        """Parameters of the student and of adapters."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def taught(self, images: torch.Tensor) -> torch.Tensor:
        """The teacher's logits, without gradient.

        Raises:
            ConfigError: there is no teacher.
        """
        with torch.no_grad():
            return needed(self.teacher)(images)

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weighted terms of the loss, scalars whose sum is trained on.

        Args:
            images: [N, C, H, W].
            labels: [N].
        """
        raise NotImplementedError

    def before_epoch(self, epoch: int, epochs: int) -> None:
        """Called before the first step of epoch `epoch` (from 0) of `epochs`.

        A training with one of its own is saved between epochs only, so that this is never called twice for one.
        """

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Called after each step of the optimiser, for what must hold whatever the step did (masks)."""

    def deployed(self) -> nn.Module:
        """What is measured and kept in the end."""
        return self.student
