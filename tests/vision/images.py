"""Small real image files and data for the tests of images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from llmdistill.vision.data import ImageData, Part


def pattern(label: int, row: int, size: int = 12) -> np.ndarray:
    """An image [H, W, 3] uint8 that tells its label and its row."""
    image = np.zeros((size, size, 3), np.uint8)
    image[:, :, label % 3] = 60 * (label + 1)
    image[row % size, :, 2] = 200
    return image


def png(image: np.ndarray, **options: object) -> bytes:
    """An image as PNG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", **options)
    return out.getvalue()


def patterns(num: int, classes: int = 3) -> tuple[list[bytes], list[int]]:
    """Encoded images and their labels, in turn."""
    labels = [row % classes for row in range(num)]
    return [png(pattern(label, row)) for row, label in enumerate(labels)], labels


def save_parquet(path: Path, images: list[bytes | None], labels: list[int | None], column: str = "label") -> Path:
    """A Parquet file as datasets of images come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), column: pa.array(labels, pa.int64())}), path)
    return path


def save_folder(folder: Path, classes: dict[str, list[bytes]]) -> Path:
    """A folder for each class."""
    for name, images in classes.items():
        (folder / name).mkdir(parents=True)
        for row, data in enumerate(images):
            (folder / name / f"{row:03}.png").write_bytes(data)
    return folder


def small_data(num: int = 65, classes: int = 3, size: int = 8, seed: int = 0) -> ImageData:
    """Noise with a mark of its class in it; fast to learn."""
    generator = torch.Generator().manual_seed(seed)

    def part(number: int) -> Part:
        labels = torch.arange(number) % classes
        images = torch.randn(number, 3, size, size, generator=generator)
        images[torch.arange(number), 0, labels] += 3
        return Part(images.contiguous(memory_format=torch.channels_last), labels)

    return ImageData(part(num), part(20), part(20), classes, torch.zeros(3), torch.ones(3))
