"""Labelled images as tensors, normalised and split once.

The test part is for one look at the end; everything that is chosen is chosen on the validation part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from llmdistill.engines.models import choose_device
from llmdistill.errors import ConfigError
from llmdistill.vision.config import Data
from llmdistill.vision.reading import Raw, read


@dataclass(frozen=True)
class Part:
    """Images of one part of the data.

    Attributes:
        images: [N, C, H, W] float32, normalised channel by channel with the training part's mean and deviation.
        labels: [N] int64.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> Part:
        """The part on another device."""
        return Part(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageData:
    """Train, validation and test, and what was subtracted and divided by: [C] each, of pixels in 0..1."""

    train: Part
    validation: Part
    test: Part
    num_classes: int
    mean: torch.Tensor
    std: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: str | torch.device) -> ImageData:
        """All parts on another device."""
        parts = {name: getattr(self, name).to(device) for name in ("train", "validation", "test", "mean", "std")}
        return replace(self, **parts)


def load_on(settings: Data, device: str) -> ImageData:
    """`load`, on a device as the user names it, `auto` among them."""
    return load(settings).to(choose_device(device))


def load(settings: Data) -> ImageData:
    """Read, split and normalise.

    Raises:
        ConfigError: there is no such file, a class is empty, a part would be, or the images differ in size and `size`
            is not set.
        DamagedError: an image or a label cannot be used; names file and row.
    """
    raw, test = read(settings)
    num_classes = int(raw.labels.max()) + 1
    generator = np.random.default_rng(settings.split_seed)
    if test is None:
        raw, test = _split(raw, settings.test, generator, "test")
    train, validation = _split(raw, settings.validation, generator, "validation")
    if settings.limit is not None:
        train = _balanced(train, settings.limit, num_classes, generator)
    pixels = [_pixels(part.images, settings.grey) for part in (train, validation, test)]
    mean, std = pixels[0].mean((0, 2, 3)), pixels[0].std((0, 2, 3)).clamp_min(1e-6)
    train_part, validation_part, test_part = (
        Part(images.sub_(mean[:, None, None]).div_(std[:, None, None]), torch.from_numpy(part.labels))
        for images, part in zip(pixels, (train, validation, test), strict=True)
    )
    return ImageData(train_part, validation_part, test_part, num_classes, mean, std)


def _pixels(images: np.ndarray, grey: bool) -> torch.Tensor:
    """[N, H, W, C] uint8 as [N, C, H, W] in 0..1."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(255)
    return pixels.mean(1, keepdim=True) if grey else pixels


def _split(raw: Raw, share: float, generator: np.random.Generator, what: str) -> tuple[Raw, Raw]:
    """What stays and what is taken away, `share` of each class; at least one image of each stays."""
    taken = np.zeros(len(raw), bool)
    for label in np.unique(raw.labels):
        places = np.flatnonzero(raw.labels == label)
        number = min(len(places) - 1, max(1, round(share * len(places))))
        taken[generator.permutation(places)[:number]] = True
    if not taken.any():
        raise ConfigError(f"there are too few images for a {what} part", where=raw.where(0), do="add images")
    return _chosen(raw, ~taken), _chosen(raw, taken)


def _balanced(raw: Raw, limit: int, num_classes: int, generator: np.random.Generator) -> Raw:
    if limit < num_classes:
        what = f"{limit} images are too few for {num_classes} classes"
        raise ConfigError(what, where="data.limit", do=f"set it to {num_classes} or more")
    each = limit // num_classes
    chosen = [generator.permutation(np.flatnonzero(raw.labels == label))[:each] for label in range(num_classes)]
    return _chosen(raw, np.sort(np.concatenate(chosen)))


def _chosen(raw: Raw, chosen: np.ndarray) -> Raw:
    return Raw(raw.images[chosen], raw.labels[chosen], lambda row: str(row))


def bounds(num_images: int, size: int) -> list[slice]:
    """Where batches begin and end. A single image at the end joins the batch before: it has no batch statistics."""
    starts = list(range(0, num_images, size))
    if size > 1 and len(starts) > 1 and num_images - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], num_images], strict=True)]


def batches(part: Part, size: int, generator: torch.Generator | None) -> Iterator[Part]:
    """Batches in a drawn order, or in theirs where there is no generator; the last one may differ in size."""
    order = torch.arange(len(part)) if generator is None else torch.randperm(len(part), generator=generator)
    order = order.to(part.labels.device)
    for chosen in bounds(len(part), size):
        yield Part(part.images[order[chosen]], part.labels[order[chosen]])
