"""How images are made of what is learned. Here: of their own pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from llmdistill.vision.dd.base import Task


class Synthesiser(nn.Module):
    """Makes images and their labels of its parameters."""

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """([classes * ipc, C, H, W] images class by class, [classes * ipc] labels)."""
        raise NotImplementedError

    def floats(self) -> int:
        """Numbers that must be stored for the images."""
        return sum(parameter.numel() for parameter in self.parameters())


class Pixels(Synthesiser):
    """Every pixel is a parameter. They begin as noise N(0, 1), as real images, or as the mean image of the class."""

    def __init__(self, task: Task, start: str) -> None:
        super().__init__()
        num_classes, shape = task.data.num_classes, task.data.shape
        if start == "noise":
            images = torch.randn(num_classes * task.ipc, *shape, generator=task.generator).to(task.device)
        elif start == "real":
            images = task.real(task.ipc).flatten(0, 1)
        else:
            train = task.data.train
            means = [train.images[train.labels == label].mean(0) for label in range(num_classes)]
            images = torch.stack(means).repeat_interleave(task.ipc, 0)
        self.images = nn.Parameter(images.contiguous().clone())
        self.labels: torch.Tensor
        self.register_buffer("labels", torch.arange(num_classes, device=task.device).repeat_interleave(task.ipc))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Synthesiser`."""
        return self.images, self.labels
