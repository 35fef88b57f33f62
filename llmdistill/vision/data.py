"""Labelled images as tensors, normalised and split once.

The test part is for one look at the end; everything that is chosen is chosen on the validation part.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from llmdistill.errors import ConfigError, DamagedError
from llmdistill.vision.config import Data

MOST_PIXELS = 50_000_000
"""An image of more is taken for a decompression bomb."""

_NAMES = ("train_images", "train_labels", "test_images", "test_labels")


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


Raw = tuple[np.ndarray, np.ndarray]
"""Pixels [N, H, W, C] uint8 and labels [N] int64."""


def load(settings: Data) -> ImageData:
    """Read, split and normalise.

    Raises:
        ConfigError: there is no such file, a class is empty, or the images differ in size and `size` is not set.
        DamagedError: an image or a label cannot be used; names file and row.
    """
    raw, test = _read(settings)
    generator = np.random.default_rng(settings.split_seed)
    if test is None:
        raw, test = _split(raw, settings.test, generator)
    train, validation = _split(raw, settings.validation, generator)
    if settings.limit is not None:
        train = _balanced(train, settings.limit, generator)
    num_classes = _count_classes(train[1], validation[1], test[1])
    pixels = [
        torch.from_numpy(np.ascontiguousarray(part[0])).permute(0, 3, 1, 2).float() / 255
        for part in (train, validation, test)
    ]
    if settings.grey:
        pixels = [part.mean(1, keepdim=True) for part in pixels]
    mean, std = pixels[0].mean((0, 2, 3)), pixels[0].std((0, 2, 3)).clamp_min(1e-6)
    train_part, validation_part, test_part = (
        Part((images - mean[:, None, None]) / std[:, None, None], torch.from_numpy(labels))
        for images, (_, labels) in zip(pixels, (train, validation, test), strict=True)
    )
    return ImageData(train_part, validation_part, test_part, num_classes, mean, std)


def _read(settings: Data) -> tuple[Raw, Raw | None]:
    """What the files hold, and the test part where it is a part of its own."""
    if settings.path == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        return (pixels, digits.target.astype(np.int64)), None
    names = [settings.path] if isinstance(settings.path, str) else list(settings.path)
    paths = [Path(name) for name in names]
    for path in paths:
        if not path.exists():
            raise ConfigError("there is no such file or folder", where=path, do="check data.path")
    if paths[0].suffix == ".npz":
        return _read_npz(paths[0])
    own = _read_files(paths, settings.size)
    return own, None if settings.test_path is None else _read_files([Path(settings.test_path)], settings.size)


def _read_npz(path: Path) -> tuple[Raw, Raw | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in _NAMES if name in file}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DamagedError(f"not readable as .npz ({error})", where=path, do="fetch the file again") from error
    if not {"train_images", "train_labels"} <= set(found):
        raise ConfigError("there are no train_images and train_labels in it", where=path, do="see the names it needs")
    train = _checked(found["train_images"], found["train_labels"], path)
    if "test_images" not in found:
        return train, None
    return train, _checked(found["test_images"], found.get("test_labels", np.zeros(0)), path)


def _checked(images: np.ndarray, labels: np.ndarray, path: Path) -> Raw:
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        what = f"images of shape {images.shape} and type {images.dtype}; they should be [N, H, W] or [N, H, W, C] uint8"
        raise ConfigError(what, where=path)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ConfigError(f"labels of shape {labels.shape} for {len(images):,} images", where=path)
    if (labels < 0).any():
        row = int(np.flatnonzero(labels < 0)[0])
        raise DamagedError(f"the label {labels[row]} is below 0", where=f"{path}:{row}")
    return images.reshape(*images.shape[:3], -1), labels.astype(np.int64)


def _read_files(paths: Sequence[Path], size: int | None) -> Raw:
    if paths[0].is_dir():
        return _stacked(_folder_rows(paths[0]), size)
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[tuple[str, bytes, int]] = []
    for path in paths:
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"not readable as Parquet ({error})", where=path, do="fetch the file again") from error
        column = next((name for name in table.column_names if pa.types.is_binary(table.schema.field(name).type)), None)
        if column is None or "label" not in table.column_names:
            raise ConfigError("it needs a column of encoded images and a column label", where=path)
        pairs = zip(table[column].to_pylist(), table["label"].to_pylist(), strict=True)
        rows += [(f"{path}:{row}", data, label) for row, (data, label) in enumerate(pairs)]
    return _stacked(rows, size)


def _folder_rows(folder: Path) -> list[tuple[str, bytes, int]]:
    """Files of each class folder; classes are numbered in the order of their names."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise ConfigError("there is no folder for each class in it", where=folder)
    found: list[tuple[str, bytes, int]] = []
    for label, path in enumerate(classes):
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        if not files:
            raise ConfigError("this class has no image", where=path, do="add images or remove the folder")
        found += [(str(file), file.read_bytes(), label) for file in files]
    return found


def _stacked(rows: Iterable[tuple[str, bytes, int]], size: int | None) -> Raw:
    images, labels = [], []
    for where, data, label in rows:
        if not isinstance(label, int) or label < 0:
            raise DamagedError(f"the label {label!r} is no number from 0 on", where=where)
        images.append(decode(data, where, size))
        labels.append(label)
        if images[-1].shape != images[0].shape:
            what = f"this image is {images[-1].shape[1]} x {images[-1].shape[0]}, the first one is not"
            raise ConfigError(what, where=where, do="set data.size")
    if not images:
        raise ConfigError("there are no images in it", where="data.path")
    return np.stack(images), np.array(labels, np.int64)


def decode(data: bytes, where: str, size: int | None) -> np.ndarray:
    """An encoded image as [H, W, 3] uint8 in RGB, or resized to `size` x `size`.

    Raises:
        DamagedError: it is no image, or one of too many pixels.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as encoded:
            if encoded.width * encoded.height > MOST_PIXELS:
                raise DamagedError(f"an image of {encoded.width:,} x {encoded.height:,} pixels", where=where)
            image = encoded.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedError(f"this image cannot be read ({error})", where=where, do="remove or replace it") from error
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _split(raw: Raw, share: float, generator: np.random.Generator) -> tuple[Raw, Raw]:
    """What stays and what is taken away, `share` of each class."""
    images, labels = raw
    taken = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        number = min(len(places) - 1, max(1, round(share * len(places))))
        taken[generator.permutation(places)[:number]] = True
    return (images[~taken], labels[~taken]), (images[taken], labels[taken])


def _balanced(raw: Raw, limit: int, generator: np.random.Generator) -> Raw:
    images, labels = raw
    classes = np.unique(labels)
    each = max(1, limit // len(classes))
    chosen = [generator.permutation(np.flatnonzero(labels == label))[:each] for label in classes]
    kept = np.sort(np.concatenate(chosen))
    return images[kept], labels[kept]


def _count_classes(*labels: np.ndarray) -> int:
    number = int(max(part.max(initial=0) for part in labels)) + 1
    counts = np.bincount(labels[0], minlength=number)
    if (counts == 0).any():
        raise ConfigError(f"class {int(np.flatnonzero(counts == 0)[0])} has no image to train on", where="data.path")
    return number


def batches(part: Part, size: int, generator: torch.Generator | None) -> Iterable[Part]:
    """Batches in a drawn order, or in theirs where there is no generator; the last one may be smaller."""
    order = torch.arange(len(part)) if generator is None else torch.randperm(len(part), generator=generator)
    order = order.to(part.labels.device)
    for start in range(0, len(part), size):
        chosen = order[start : start + size]
        yield Part(part.images[chosen], part.labels[chosen])
