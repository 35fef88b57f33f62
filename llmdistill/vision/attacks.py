"""Small changes of images that a network takes for something else, and its accuracy under them.

Attacks work on pixels in 0..1; the data's normalisation is undone before and done again inside. A network is in
evaluation mode while it is attacked, and neither its gradients nor its batch statistics change.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import Positive, Settings
from llmdistill.vision.data import ImageData, Part, batches
from llmdistill.vision.models import evaluating


class Attack(Settings):
    """Projected gradient descent within `eps` of each pixel (Madry et al., arXiv 1706.06083), in pixels of 0..1.

    Attributes:
        step: how far one of `steps` goes.
        random_start: begin anywhere within `eps`, not at the image.
    """

    eps: Annotated[float, Field(ge=0.0, le=1.0)] = 8 / 255
    step: Annotated[float, Field(gt=0.0, le=1.0)] = 2 / 255
    steps: Positive = 10
    random_start: bool = True


def fgsm_attack(eps: float) -> Attack:
    """One step as far as it may go: the fast gradient sign method (Goodfellow et al., arXiv 1412.6572, section 4)."""
    return Attack(eps=eps, step=max(eps, 1e-12), steps=1, random_start=False)


class Pixels:
    """Normalised images as pixels in 0..1, and back.

    Args:
        mean, std: [C], as in `ImageData`.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        self.mean, self.std = mean[:, None, None], std[:, None, None]

    def of(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] normalised -> pixels; rounding may leave them outside of 0..1 by a hair, so they are clipped."""
        return (images * self.std + self.mean).clamp(0, 1)

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """The other way round."""
        return (pixels - self.mean) / self.std


def attacked(
    net: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    pixels: Pixels,
    attack: Attack,
    generator: torch.Generator,
) -> torch.Tensor:
    """Images near the given ones on which the network's cross-entropy is high: [N, C, H, W], normalised.

    Args:
        images: [N, C, H, W], normalised.
        labels: [N].
        generator: of random starts, on the CPU.
    """
    clean = pixels.of(images)
    low, high = (clean - attack.eps).clamp_min(0), (clean + attack.eps).clamp_max(1)
    found = clean
    if attack.random_start:
        drawn = torch.rand(clean.shape, generator=generator).to(clean)
        found = (clean + attack.eps * (2 * drawn - 1)).clamp(low, high)
    with evaluating(net):
        for _ in range(attack.steps):
            found = (found + attack.step * _slope(net, found, labels, pixels).sign()).clamp(low, high)
    return pixels.normalised(found)


def _slope(net: nn.Module, found: torch.Tensor, labels: torch.Tensor, pixels: Pixels) -> torch.Tensor:
    """Gradient of the cross-entropy's sum by the pixels; the network's own gradients stay as they are."""
    with torch.enable_grad():
        moving = found.detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(net(pixels.normalised(moving)), labels, reduction="sum")
        return torch.autograd.grad(loss, moving)[0]


def robust_accuracy(
    net: nn.Module, part: Part, data: ImageData, attack: Attack, seed: int = 0, batch_size: int = 500
) -> float:
    """Share of a part's images that are still told right after an attack on this network.

    Args:
        seed: of random starts, so that the same network gives the same number.
    """
    pixels = Pixels(data.mean, data.std)
    generator = torch.Generator().manual_seed(seed)
    right = 0
    for batch in batches(part, batch_size, None):
        images = attacked(net, batch.images, batch.labels, pixels, attack, generator)
        with evaluating(net), torch.no_grad():
            right += int((net(images).argmax(-1) == batch.labels).sum())
    return right / len(part)
