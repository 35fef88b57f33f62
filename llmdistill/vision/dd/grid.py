"""A distilled set as one picture."""

from __future__ import annotations

import io

import torch

_GAP = 1
_SMALLEST = 32
"""Side in pixels that smaller images are enlarged to, each pixel to a square."""


def png(pixels: torch.Tensor, classes: torch.Tensor, num_classes: int) -> bytes:
    """A PNG with a row for each class, its images from left to right, white where there are fewer.

    Args:
        pixels: [N, C, H, W] in 0..1. Three and more channels are shown by their first three, fewer by their first.
        classes: [N] int64.
    """
    from PIL import Image

    shown = (pixels.detach().cpu() * 255).round().byte()
    shown = shown[:, : 3 if shown.shape[1] >= 3 else 1]
    factor = max(1, -(-_SMALLEST // min(shown.shape[2:])))
    shown = shown.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    rows = [shown[classes.cpu() == label] for label in range(num_classes)]
    _, channels, height, width = shown.shape
    columns = max(len(row) for row in rows)
    canvas = torch.full(
        (channels, num_classes * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP), 255, dtype=torch.uint8
    )
    for number, row in enumerate(rows):
        top = _GAP + number * (height + _GAP)
        for column, image in enumerate(row):
            left = _GAP + column * (width + _GAP)
            canvas[:, top : top + height, left : left + width] = image
    array = canvas[0].numpy() if channels == 1 else canvas.permute(1, 2, 0).contiguous().numpy()
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()
