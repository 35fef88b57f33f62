"""Images and labels as the files hold them, checked, before they are split and normalised."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmdistill.errors import ConfigError, DamagedError
from llmdistill.vision.config import Data
from llmdistill.vision.encoded import Encoded, class_names, decode_all, folder_rows, parquet_rows
from llmdistill.vision.fingerprint import existing

_NPZ_NAMES = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)
_IDX = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
_PICKLES = ("cifar-10-batches-py", "cifar-100-python", "data_batch_1", "batches.meta", "meta")


@dataclass(frozen=True)
class Raw:
    """Labelled images as they were read.

    Attributes:
        images: [N, H, W, C] uint8.
        labels: [N] int64.
        where: the place of an image, to be named in an error.
    """

    images: np.ndarray
    labels: np.ndarray
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)


def read(settings: Data) -> tuple[Raw, Raw | None]:
    """What the files hold, and the test part where it is a part of its own.

    Raises:
        ConfigError: there is no such file, it is of no known kind, or a class has no image.
        DamagedError: a file, an image or a label cannot be used.
    """
    if settings.path == "digits":
        own, test = _digits(), None
    else:
        names = [settings.path] if isinstance(settings.path, str) else list(settings.path)
        paths = [existing(name) for name in names]
        own, test = _read(paths, settings, _classes(paths[0]))
        if settings.test_path is not None:
            test = _read_test(existing(settings.test_path), test, settings, _classes(paths[0]))
    own, test = _resized(own, settings.size), None if test is None else _resized(test, settings.size)
    _check(own, test)
    return own, test


def _classes(path: Path) -> list[str]:
    return class_names(path) if path.is_dir() and not _is_dataset(path) else []


def _read_test(path: Path, test: Raw | None, settings: Data, classes: Sequence[str]) -> Raw:
    if test is not None:
        raise ConfigError("data.path has a test part of its own", where=path, do="remove data.test_path")
    if path.is_dir() and not _is_dataset(path):
        class_names(path)
    return _read([path], settings, classes)[0]


def _read(paths: Sequence[Path], settings: Data, classes: Sequence[str]) -> tuple[Raw, Raw | None]:
    path = paths[0]
    if path.suffix == ".parquet":
        return _from_rows(parquet_rows(paths, settings.label), settings.size), None
    if len(paths) > 1:
        raise ConfigError("several files can only be Parquet files", where=path, do="name one in data.path")
    if path.suffix == ".npz":
        return _npz(path)
    if not path.is_dir():
        raise ConfigError("it is no .npz, no .parquet and no folder", where=path, do="convert it to one of these")
    if _is_dataset(path):
        return _dataset(path)
    return _from_rows(folder_rows(path, classes), settings.size), None


def _from_rows(rows: Sequence[Encoded], size: int | None) -> Raw:
    images = decode_all(rows, size)
    return Raw(images, np.array([row.label for row in rows], np.int64), lambda row: rows[row].where)


def _digits() -> Raw:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Raw(pixels, digits.target.astype(np.int64), lambda row: f"digits:{row}")


def _npz(path: Path) -> tuple[Raw, Raw | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = next((names for names in _NPZ_NAMES if set(names[:2]) <= set(file)), None)
            if names is None:
                what = f"there are no train_images and train_labels in it, but {', '.join(file) or 'nothing'}"
                raise ConfigError(what, where=path, do="save the arrays under these names")
            found = [file[name] if name in file else None for name in names]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(f"not readable as .npz ({error})", where=path, do="fetch the file again") from error
    images, labels, test_images, test_labels = found
    train = _arrays(images, labels, path, names[0])
    if test_images is None:
        return train, None
    return train, _arrays(test_images, test_labels, path, names[2])


def _arrays(images: np.ndarray | None, labels: np.ndarray | None, path: Path, name: str) -> Raw:
    """Arrays of the user's own, checked."""
    assert images is not None
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not 1 <= channels <= 4:
        wanted = "[N, H, W], or [N, H, W, C] with up to 4 channels, uint8"
        raise ConfigError(f"{name} is {list(images.shape)} {images.dtype}; it should be {wanted}", where=path)
    if labels is None or labels.size != len(images) or labels.dtype.kind not in "iu":
        shape = "no labels" if labels is None else f"labels of {list(labels.shape)} {labels.dtype}"
        raise ConfigError(f"{shape} for the {len(images):,} images of {name}", where=path)
    return Raw(images.reshape(*images.shape[:3], channels), _int64(labels), lambda row: f"{path}:{name}[{row}]")


def _int64(labels: np.ndarray) -> np.ndarray:
    """Labels; one beyond int64 must not become negative."""
    if labels.dtype == np.uint64:
        labels = np.minimum(labels, np.uint64(np.iinfo(np.int64).max))
    return labels.reshape(-1).astype(np.int64)


def _is_dataset(folder: Path) -> bool:
    """Whether a folder holds files of MNIST or CIFAR as torchvision leaves them, be they readable or not."""
    return any(find(folder) is not None for find in (_idx_folder, _cifar10_folder, _cifar100_folder, _pickle_in))


def _dataset(folder: Path) -> tuple[Raw, Raw | None]:
    idx, cifar10, cifar100 = _idx_folder(folder), _cifar10_folder(folder), _cifar100_folder(folder)
    if idx is not None:
        return _idx(idx, "train"), _idx(idx, "t10k") if _idx_file(idx, _IDX[0].format("t10k")) else None
    if cifar10 is not None:
        train = [_cifar(cifar10 / f"data_batch_{number}.bin", 1) for number in range(1, 6)]
        return _joined(train), _cifar(cifar10 / "test_batch.bin", 1)
    if cifar100 is not None:
        return _cifar(cifar100 / "train.bin", 2), _cifar(cifar100 / "test.bin", 2)
    advice = "fetch the binary version of CIFAR (cifar-10-batches-bin, cifar-100-binary)"
    raise ConfigError("these are pickles, which can run code and are not opened", where=_pickle_in(folder), do=advice)


def _idx_folder(folder: Path) -> Path | None:
    places = (folder, folder / "raw")
    return next((place for place in places if _idx_file(place, _IDX[0].format("train"))), None)


def _cifar10_folder(folder: Path) -> Path | None:
    places = (folder, folder / "cifar-10-batches-bin")
    return next((place for place in places if (place / "data_batch_1.bin").is_file()), None)


def _cifar100_folder(folder: Path) -> Path | None:
    places = (folder, folder / "cifar-100-binary")
    return next((place for place in places if (place / "train.bin").is_file()), None)


def _pickle_in(folder: Path) -> Path | None:
    return next((folder / name for name in _PICKLES if (folder / name / "batches.meta").is_file()), None) or next(
        (folder / name for name in _PICKLES if (folder / name).is_file() or (folder / name / "meta").is_file()), None
    )


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _idx(folder: Path, part: str) -> Raw:
    """One part of MNIST in its own format: a header of big-endian numbers, then bytes."""
    arrays = []
    for pattern in _IDX:
        path = _idx_file(folder, pattern.format(part))
        if path is None:
            raise ConfigError("this file is missing", where=folder / pattern.format(part), do="fetch it")
        arrays.append(_idx_array(path))
    images, labels = arrays
    name = str(folder / _IDX[0].format(part))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DamagedError(f"{list(labels.shape)} labels for images of {list(images.shape)}", where=name)
    return Raw(images[..., None], labels.astype(np.int64), lambda row: f"{name}:{row}")


def _idx_array(path: Path) -> np.ndarray:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        num_dims = data[3]
        shape = struct.unpack(f">{num_dims}I", data[4 : 4 + 4 * num_dims])
        if data[:3] != b"\x00\x00\x08":
            raise ValueError("it does not begin as such a file does")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims).reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError, struct.error, zlib.error) as error:
        raise DamagedError(f"not readable as idx ({error})", where=path, do="fetch the file again") from error


def _cifar(path: Path, num_labels: int) -> Raw:
    """A binary file of CIFAR: rows of a label (CIFAR-100: a coarse and a fine one) and 32 x 32 bytes a channel."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DamagedError(f"not readable ({error.strerror})", where=path, do="fetch it again") from error
    length = num_labels + 3 * 32 * 32
    if len(data) == 0 or len(data) % length:
        raise DamagedError(f"{len(data):,} bytes are no rows of {length:,}", where=path, do="fetch it again")
    rows = data.reshape(-1, length)
    pixels = rows[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Raw(pixels, rows[:, num_labels - 1].astype(np.int64), lambda row: f"{path}:{row}")


def _joined(parts: Sequence[Raw]) -> Raw:
    starts = np.cumsum([0, *map(len, parts)])

    def where(row: int) -> str:
        number = int(np.searchsorted(starts, row, "right")) - 1
        return parts[number].where(row - int(starts[number]))

    return Raw(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]), where)


def _resized(raw: Raw, size: int | None) -> Raw:
    """Arrays in another size; encoded images have it already."""
    if size is None or raw.images.shape[1:3] == (size, size) or not len(raw):
        return raw
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(raw.images)).permute(0, 3, 1, 2).float()
    scaled = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    images = scaled.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return Raw(images, raw.labels, raw.where)


def _check(own: Raw, test: Raw | None) -> None:
    """That there are images of every class, labels that name them, and one shape."""
    for part in (own, test):
        if part is not None:
            _check_part(part)
    classes = np.unique(own.labels)
    largest = int(own.labels.argmax())
    if len(classes) != int(classes[-1]) + 1:
        empty = int(np.flatnonzero(classes != np.arange(len(classes)))[0])
        what = f"the label here is {classes[-1]}, but class {empty} has no image"
        raise ConfigError(what, where=own.where(largest), do="number the classes from 0 without a gap")
    if len(classes) == 1:
        raise ConfigError("all images are of one class", where=own.where(0), do="check data.path")
    if test is None:
        return
    if test.images.shape[1:] != own.images.shape[1:]:
        what = f"test images of {list(test.images.shape[1:])}, training images of {list(own.images.shape[1:])}"
        raise ConfigError(what, where=test.where(0), do="set data.size")
    unknown = np.flatnonzero(test.labels >= len(classes))
    if len(unknown):
        row = int(unknown[0])
        raise DamagedError(f"the label {test.labels[row]} is none of 0 to {len(classes) - 1}", where=test.where(row))


def _check_part(part: Raw) -> None:
    if not part.images.size:
        raise ConfigError("there are no images in it", where="data.path")
    below = np.flatnonzero(part.labels < 0)
    if len(below):
        row = int(below[0])
        raise DamagedError(f"the label {part.labels[row]} is below 0", where=part.where(row))
