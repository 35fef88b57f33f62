"""Random changes of training images, drawn from a generator of their own; the global one is never touched."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def augmented(images: torch.Tensor, operations: Sequence[str], generator: torch.Generator) -> torch.Tensor:
    """Each image changed by itself: [N, C, H, W] to the same."""
    for name in operations:
        images = _OPERATIONS[name](images, generator)
    return images


def crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A window of the image's own size out of the image with an eighth of its height padded on each side."""
    num, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    top, left = (torch.randint(0, 2 * pad + 1, (num,), generator=generator).to(images.device) for _ in range(2))
    return windows[torch.arange(num, device=images.device), :, top, left]


def flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Left and right exchanged in half of the images."""
    chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def cutout(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A square of half the height set to the mean, its centre anywhere in the image (arXiv 1708.04552)."""
    num, _, height, width = images.shape
    half = height // 4
    centre = [torch.randint(0, side, (num, 1), generator=generator).to(images.device) for side in (height, width)]
    near = [
        (torch.arange(side, device=images.device) - at).abs() < half
        for side, at in zip((height, width), centre, strict=True)
    ]
    return images.masked_fill((near[0][:, :, None] & near[1][:, None, :])[:, None], 0.0)


_OPERATIONS = {"crop": crop, "flip": flip, "cutout": cutout}
