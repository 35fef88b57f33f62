"""Encoded images (PNG, JPEG, ...) in Parquet files or in a folder for each class, decoded by several threads."""

from __future__ import annotations

import io
import os
import unicodedata
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.errors import ConfigError, DamagedError, LlmdistillError
from llmdistill.run.progress import progress, say
from llmdistill.vision.fingerprint import visible

MOST_PIXELS = 50_000_000
"""An image of more is taken for a decompression bomb."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Others are refused: Pillow would start Ghostscript for a PostScript file."""

_LABELS = 1 << 31
_SUBTRACTIVE = ("CMYK", "LAB")
_NOT_8_BIT = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_CHUNK = 128


@dataclass(frozen=True)
class Encoded:
    """One image that is not decoded yet; `data` is its bytes or the file they are in."""

    where: str
    data: bytes | Path
    label: int


def parquet_rows(paths: Sequence[Path], label_column: str) -> list[Encoded]:
    """Rows of Parquet files with a column of encoded images (or of structs with a field `bytes`) and one of labels.

    Raises:
        ConfigError: there are no such columns.
        DamagedError: a file cannot be read, or a row is without image or label.
    """
    rows: list[Encoded] = []
    for path in paths:
        images, labels = _columns(path, label_column)
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            data = image.get("bytes") if isinstance(image, dict) else image
            if data is None or label is None:
                raise DamagedError(f"this row has no {'image' if data is None else 'label'}", where=f"{path}:{row}")
            if label >= _LABELS:
                raise DamagedError(f"the label {label} is too large", where=f"{path}:{row}")
            rows.append(Encoded(f"{path}:{row}", data, label))
    return rows


def _columns(path: Path, label_column: str) -> tuple[list[Any], list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        image_column = next((field.name for field in schema if _holds_bytes(field.type)), None)
        if image_column is None or label_column not in schema.names:
            there = ", ".join(schema.names)
            what = f"it needs a column of encoded images and a column {label_column}; it has {there}"
            raise ConfigError(what, where=path, do="name the column of labels in data.label")
        if not pa.types.is_integer(schema.field(label_column).type):
            kind = schema.field(label_column).type
            raise ConfigError(f"the column {label_column} holds {kind}, not whole numbers", where=path)
        table = pq.read_table(path, columns=[image_column, label_column])
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"not readable as Parquet ({error})", where=path, do="fetch the file again") from error
    return table[image_column].to_pylist(), table[label_column].to_pylist()


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def class_names(folder: Path) -> list[str]:
    """The classes of a folder of class folders, in the order of their numbers.

    Raises:
        ConfigError: there are none.
    """
    names = [unicodedata.normalize("NFC", path.name) for path in visible(folder) if path.is_dir()]
    if not names:
        raise ConfigError("there is no folder for each class in it", where=folder)
    return sorted(names)


def folder_rows(folder: Path, classes: Sequence[str]) -> list[Encoded]:
    """Files of each class folder.

    Args:
        classes: those of the training part; a test part may be without some of them, but has no others.

    Raises:
        ConfigError: a class is empty or unknown.
    """
    found: list[Encoded] = []
    for path in (path for path in visible(folder) if path.is_dir()):
        name = unicodedata.normalize("NFC", path.name)
        if name not in classes:
            raise ConfigError("there is no such class in the training part", where=path, do="remove the folder")
        files = [file for file in visible(path) if file.is_file()]
        if not files:
            raise ConfigError("this class has no image", where=path, do="add images or remove the folder")
        found += [Encoded(str(file), file, classes.index(name)) for file in files]
    return found


def decode_all(rows: Sequence[Encoded], size: int | None) -> np.ndarray:
    """All images, [N, H, W, 3] uint8.

    Raises:
        ConfigError: they differ in size and `size` is not given.
        DamagedError: one of them cannot be used; the first one is named.
    """
    if not rows:
        raise ConfigError("there are no images in it", where="data.path")
    first, _ = _decoded(rows[0], size)
    images = np.empty((len(rows), *first.shape), np.uint8)
    subtractive: list[str] = []
    chunks = [range(start, min(start + _CHUNK, len(rows))) for start in range(0, len(rows), _CHUNK)]
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    with warnings.catch_warnings(), progress("decode images", len(rows)) as bar:
        warnings.simplefilter("ignore")  # a large image is refused below, odd metadata does no harm
        try:
            for done in pool.map(partial(_decode_chunk, rows, images, size, subtractive), chunks):
                bar.advance(done)
        finally:
            pool.shutdown(cancel_futures=True)
    if subtractive:
        say(f"{min(subtractive)}: CMYK, converted to RGB without its colour profile, as {len(subtractive):,} in all")
    return images


def _decode_chunk(
    rows: Sequence[Encoded], images: np.ndarray, size: int | None, subtractive: list[str], chunk: range
) -> int:
    for number in chunk:
        image, mode = _decoded(rows[number], size)
        if image.shape != images.shape[1:]:
            height, width = images.shape[1:3]
            what = f"this image is {image.shape[1]} x {image.shape[0]}, the first one {width} x {height}"
            raise ConfigError(what, where=rows[number].where, do="set data.size")
        images[number] = image
        if mode in _SUBTRACTIVE:
            subtractive.append(rows[number].where)
    return len(chunk)


def decode(data: bytes, where: str, size: int | None) -> np.ndarray:
    """An encoded image as [H, W, 3] uint8 in RGB, or resized to `size` x `size`.

    Raises:
        DamagedError: it is no image, one of a single pixel or of too many, or one of more than 8 bits a channel.
    """
    return _decoded(Encoded(where, data, 0), size)[0]


def _decoded(row: Encoded, size: int | None) -> tuple[np.ndarray, str]:
    """The image and the mode in which it was encoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        data = row.data if isinstance(row.data, bytes) else row.data.read_bytes()
        with Image.open(io.BytesIO(data), formats=FORMATS) as encoded:
            _check(encoded.width, encoded.height, encoded.mode, row.where)
            mode = encoded.mode
            image: Image.Image = encoded if mode == "RGB" else encoded.convert("RGB")
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(image), mode
    except LlmdistillError:
        raise
    except UnidentifiedImageError as error:
        what = f"this is no image in one of the formats {', '.join(FORMATS)}"
        raise DamagedError(what, where=row.where, do="remove or replace it") from error
    except Exception as error:  # decoders raise whatever they stumble over in damaged bytes
        raise DamagedError(
            f"this image cannot be read ({error})", where=row.where, do="remove or replace it"
        ) from error


def _check(width: int, height: int, mode: str, where: str) -> None:
    if width * height > MOST_PIXELS:
        raise DamagedError(f"an image of {width:,} x {height:,} pixels", where=where, do="make it smaller or remove it")
    if width * height == 1:
        raise DamagedError("an image of a single pixel", where=where, do="remove or replace it")
    if mode in _NOT_8_BIT:
        raise DamagedError(f"an image of more than 8 bits a channel ({mode})", where=where, do="convert it to 8 bits")
