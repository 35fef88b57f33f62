"""Differentiable siamese augmentation (DSA, arXiv 2102.08259): one drawn change for real and synthetic images alike.

The operations and their ranges are those of the paper's code. What is drawn is told from how it is applied, so that
the same `Drawn` changes two batches in the same way and gradients reach the images behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import affine_grid, grid_sample, pad

Operation = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]

STRATEGY: tuple[Operation, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""The published one; for digits without `flip`."""


@dataclass(frozen=True)
class Ranges:
    """How far operations go.

    Attributes:
        brightness: width of what is added, around 0.
        saturation: largest factor of the colours' distance from grey, from 0 on.
        contrast: smallest factor of the pixels' distance from the image's mean; the largest is one more.
        crop: largest shift, as a share of the side.
        cutout: side of the square that is set to 0, as a share of the side.
        flip: probability.
        scale: largest factor of height and width by themselves; the smallest is its inverse.
        rotate: largest angle, in degrees.
    """

    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    crop: float = 0.125
    cutout: float = 0.5
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0


PUBLISHED = Ranges()


@dataclass(frozen=True)
class Drawn:
    """One operation and where in its ranges it lies.

    Attributes:
        operation: None changes nothing.
        numbers: [1 or N, 3] in [0, 1), for all images or for each of N.
    """

    operation: Operation | None
    numbers: torch.Tensor
    ranges: Ranges = PUBLISHED


def draw(
    generator: torch.Generator,
    strategy: tuple[Operation, ...],
    number: int | None = None,
    ranges: Ranges = PUBLISHED,
) -> Drawn:
    """One operation of the strategy; numbers for a whole batch together, or for each of `number` images.

    An empty strategy changes nothing and draws nothing.
    """
    if not strategy:
        return Drawn(None, torch.zeros(1, 3), ranges)
    operation = strategy[int(torch.randint(len(strategy), (), generator=generator))]
    return Drawn(operation, torch.rand(number or 1, 3, generator=generator), ranges)


def transformed(images: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """[N, C, H, W] to the same, differentiable in the images. They are normalised: 0 is the mean."""
    if drawn.operation is None:
        return images
    return _OPERATIONS[drawn.operation](images, drawn.numbers, drawn.ranges)


def _color(images: torch.Tensor, numbers: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """Brightness, then saturation, then contrast; one channel has no saturation."""
    first, second, third = numbers.to(images)[:, :, None, None, None].unbind(1)
    images = images + (first - 0.5) * ranges.brightness
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (second * ranges.saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (third + ranges.contrast) + mean


def _crop(images: torch.Tensor, numbers: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """Shifted by whole pixels; zeros come in."""
    num, channels, height, width = images.shape
    down, right = (int(side * ranges.crop + 0.5) for side in (height, width))
    rows = _places(numbers[:, 0], 2 * down + 1)[:, None] + torch.arange(height)
    columns = _places(numbers[:, 1], 2 * right + 1)[:, None] + torch.arange(width)
    padded = pad(images, (right, right, down, down))
    rows, columns = rows[:, None, :, None].to(images.device), columns[:, None, None, :].to(images.device)
    kept = padded.gather(2, rows.expand(num, channels, height, padded.shape[3]))
    return kept.gather(3, columns.expand(num, channels, height, width))


def _cutout(images: torch.Tensor, numbers: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """A rectangle set to 0, its centre anywhere in the image; what lies beyond the image is cut off."""
    inside = []
    for number, side in zip(numbers.unbind(1), images.shape[2:], strict=False):
        size = int(side * ranges.cutout + 0.5)
        start = _places(number, side + 1 - size % 2) - size // 2
        places = torch.arange(side)
        inside.append((places >= start[:, None]) & (places < start[:, None] + size))
    mask = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(mask.to(images.device), 0.0)


def _flip(images: torch.Tensor, numbers: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """Left and right exchanged."""
    chosen = (numbers[:, 0] < ranges.flip).to(images.device)
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def _scale(images: torch.Tensor, numbers: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """Height and width by factors of their own."""
    factors = numbers * (ranges.scale - 1 / ranges.scale) + 1 / ranges.scale
    return _sampled(images, torch.diag_embed(factors[:, :2]))


def _rotate(images: torch.Tensor, numbers: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """Turned around the centre."""
    angle = (numbers[:, 0] * 2 - 1) * math.radians(ranges.rotate)
    cosine, sine = angle.cos(), angle.sin()
    return _sampled(images, torch.stack([cosine, -sine, sine, cosine], 1).reshape(-1, 2, 2))


def _sampled(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """The image at matrix x place for each place (x, y) in -1..1, bilinear, zeros outside; matrices [1 or N, 2, 2]."""
    size = [len(matrices), *images.shape[1:]]
    grid = affine_grid(pad(matrices, (0, 1)).to(images), size, align_corners=False)
    return grid_sample(images, grid.expand(len(images), -1, -1, -1), "bilinear", "zeros", align_corners=False)


def _places(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Whole numbers 0 to count - 1; in float64 because float32 may round the product up to `count`."""
    return (numbers.double() * count).long()


_OPERATIONS = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
