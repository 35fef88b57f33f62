"""What `load` promises of a part, a split and a normalisation, and the arrays it reads."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from llmdistill.errors import ConfigError, DamagedError
from llmdistill.vision.config import Data
from llmdistill.vision.data import ImageData, bounds, load
from tests.vision.images import pattern, png, save_folder


def numbered(num: int, classes: int = 4, size: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Images whose first two bytes are their number."""
    images = np.zeros((num, size, size), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(num) // 256, np.arange(num) % 256
    images[:, 1:] = 100
    return images, (np.arange(num) % classes).astype(np.uint8)


def pixels(part: torch.Tensor, data: ImageData) -> np.ndarray:
    """What was read, from what was normalised."""
    raw = part * data.std[:, None, None] + data.mean[:, None, None]
    return (raw * 255).round().byte().numpy()


def numbers(part: torch.Tensor, data: ImageData) -> list[int]:
    raw = pixels(part, data)[:, 0, 0].astype(int)
    return (raw[:, 0] * 256 + raw[:, 1]).tolist()


def save_npz(path: Path, **arrays: np.ndarray) -> Data:
    np.savez(path, **arrays)
    return Data(path=str(path))


def message(settings: Data) -> str:
    """The one line that reading this data ends with."""
    with pytest.raises((ConfigError, DamagedError)) as error:
        load(settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_image_is_in_exactly_one_part(tmp_path: Path):
    images, labels = numbered(403)
    data = load(save_npz(tmp_path / "한글.npz", train_images=images, train_labels=labels))
    found = [numbers(part.images, data) for part in (data.train, data.validation, data.test)]
    assert sorted(sum(found, [])) == list(range(403))
    for part, rows in zip((data.train, data.validation, data.test), found, strict=True):
        assert part.labels.tolist() == [row % 4 for row in rows]


def test_a_split_takes_its_share_of_each_class_and_depends_on_its_seed_alone(tmp_path: Path):
    images, labels = numbered(400)
    settings = save_npz(tmp_path / "a.npz", train_images=images, train_labels=labels)
    one, again = load(settings), load(settings)
    other = load(settings.model_copy(update={"split_seed": 1}))
    assert torch.bincount(one.test.labels).tolist() == [20] * 4
    assert torch.bincount(one.validation.labels).tolist() == [8] * 4
    assert numbers(one.test.images, one) == numbers(again.test.images, again)
    assert numbers(one.test.images, one) != numbers(other.test.images, other)


def test_the_training_part_has_mean_zero_and_deviation_one_and_the_others_follow_it():
    data = load(Data())
    assert data.train.images.mean().abs() < 1e-5 and (data.train.images.std() - 1).abs() < 1e-4
    raw = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert {bytes(image) for image in pixels(data.test.images, data)[:, 0]} <= {bytes(image) for image in raw}


def test_the_test_part_of_a_file_is_kept_as_it_is(tmp_path: Path):
    images, labels = numbered(100)
    test_images, test_labels = numbered(30)
    arrays = {"x_train": images, "y_train": labels, "x_test": test_images, "y_test": test_labels[:, None]}
    data = load(save_npz(tmp_path / "keras.npz", **arrays))
    assert numbers(data.test.images, data) == list(range(30))


def test_a_limit_takes_the_same_number_of_each_class(tmp_path: Path):
    images, labels = numbered(400)
    settings = save_npz(tmp_path / "a.npz", train_images=images, train_labels=labels)
    data = load(settings.model_copy(update={"limit": 42}))
    assert torch.bincount(data.train.labels).tolist() == [10] * 4


def test_grey_is_the_mean_of_the_channels_and_size_also_scales_arrays(tmp_path: Path):
    images = np.zeros((40, 8, 8, 3), np.uint8)
    images[..., 0], images[..., 1] = 30, 60
    labels = np.arange(40) % 2
    settings = save_npz(tmp_path / "a.npz", train_images=images, train_labels=labels)
    data = load(settings.model_copy(update={"grey": True, "size": 4}))
    assert data.shape == (1, 4, 4)
    assert float(data.mean) == pytest.approx(30 / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"train_labels": np.full(40, 2**63, np.uint64)},
            "train_images[0]: the label here is 9223372036854775807",
        ),
        ({"train_labels": np.arange(40) % 4 - 1}, "a.npz:train_images[0]: the label -1 is below 0"),
        (
            {"train_labels": np.arange(40) % 4 * 2},
            "train_images[3]: the label here is 6, but class 1 has no image",
        ),
        ({"train_labels": np.zeros(40, int)}, "all images are of one class"),
        ({"train_labels": np.zeros(39, int)}, "labels of [39] int64 for the 40 images of train_images"),
        ({"train_labels": np.zeros(40)}, "labels of [40] float64 for the 40 images"),
        ({"train_images": np.zeros((40, 3, 6, 6), np.uint8)}, "train_images is [40, 3, 6, 6] uint8"),
        ({"train_images": np.zeros((40, 6, 6))}, "train_images is [40, 6, 6] float64"),
        ({"train_images": np.zeros((0, 6, 6), np.uint8), "train_labels": np.zeros(0, int)}, "there are no images"),
        ({"test_labels": np.arange(8) + 3}, "a.npz:test_images[1]: the label 4 is none of 0 to 3"),
        ({"test_images": np.zeros((8, 7, 7), np.uint8)}, "test images of [7, 7, 1], training images of [6, 6, 1]"),
        ({"test_labels": None}, "no labels for the 8 images of test_images"),
    ],
)
def test_arrays_that_cannot_be_used_are_told_in_one_line(change: dict, told: str, tmp_path: Path):
    images, labels = numbered(40)
    test_images, test_labels = numbered(8)
    arrays = {"train_images": images, "train_labels": labels, "test_images": test_images, "test_labels": test_labels}
    arrays = {name: array for name, array in {**arrays, **change}.items() if array is not None}
    assert told in message(save_npz(tmp_path / "a.npz", **arrays))


def test_an_npz_that_is_torn_or_holds_objects_is_refused_unopened(tmp_path: Path):
    images, labels = numbered(40)
    path = tmp_path / "손상.npz"
    settings = save_npz(path, train_images=images, train_labels=np.array([[]] * 40, object))
    assert "손상.npz: not readable as .npz" in message(settings)
    np.savez(path, train_images=images, train_labels=labels)
    path.write_bytes(path.read_bytes()[:-60])
    assert "손상.npz: not readable as .npz" in message(settings)
    np.savez(path, pictures=images)
    assert "no train_images and train_labels in it, but pictures" in message(settings)


def test_what_cannot_be_split_or_is_not_there_is_told(tmp_path: Path):
    images, labels = numbered(40)
    settings = save_npz(tmp_path / "a.npz", train_images=images, train_labels=labels)
    assert "3 images are too few for 4 classes" in message(settings.model_copy(update={"limit": 3}))
    assert "없음.npz: there is no such file" in message(Data(path=str(tmp_path / "없음.npz")))
    few = save_npz(tmp_path / "few.npz", train_images=images[:4], train_labels=labels[:4])
    assert "too few images for a test part" in message(few)
    assert "several files can only be Parquet" in message(Data(path=(few.path, few.path)))
    assert "has a test part of its own" in message(with_test(tmp_path, settings))


def with_test(tmp_path: Path, settings: Data) -> Data:
    images, labels = numbered(40)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    own = save_npz(tmp_path / "b.npz", **arrays)
    return own.model_copy(update={"test_path": settings.path})


def save_idx(folder: Path, part: str, num: int, zipped: bool) -> None:
    images, labels = numbered(num, size=28)
    files = {
        f"{part}-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, num, 28, 28) + images.tobytes(),
        f"{part}-labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, num) + labels.tobytes(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_read_as_torchvision_leaves_it(zipped: bool, tmp_path: Path):
    save_idx(tmp_path / "MNIST" / "raw", "train", 300, zipped)
    save_idx(tmp_path / "MNIST" / "raw", "t10k", 20, zipped)
    data = load(Data(path=str(tmp_path / "MNIST")))
    rows = numbers(data.train.images, data) + numbers(data.validation.images, data)
    assert sorted(rows) == list(range(300)) and numbers(data.test.images, data) == list(range(20))
    assert data.train.labels.tolist() == [row % 4 for row in numbers(data.train.images, data)]


def test_a_torn_idx_file_is_named(tmp_path: Path):
    save_idx(tmp_path, "train", 30, False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path}: not readable as idx" in message(Data(path=str(tmp_path)))
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    save_idx(tmp_path / "other", "train", 30, False)
    path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    assert "train-labels-idx1-ubyte: this file is missing" in message(Data(path=str(tmp_path)))


def cifar_rows(num: int, labels: int) -> bytes:
    """Rows whose red channel is 10, green 20, blue the row's number; the last label is the row's number modulo 3."""
    rows = np.zeros((num, labels + 3072), np.uint8)
    rows[:, 0], rows[:, labels - 1] = 7, np.arange(num) % 3
    rows[:, labels:].reshape(num, 3, 1024)[:, :2] = [[[10], [20]]]
    rows[:, labels + 2048 :] = np.arange(num)[:, None]
    return rows.tobytes()


def test_cifar_is_read_from_its_binary_version(tmp_path: Path):
    ten, hundred = tmp_path / "cifar-10-batches-bin", tmp_path / "cifar-100-binary"
    for folder, labels, names in (
        (ten, 1, [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]),
        (hundred, 2, ["train", "test"]),
    ):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.bin").write_bytes(cifar_rows(20, labels))
    for folder, num in ((ten, 100), (hundred, 20)):
        data = load(Data(path=str(folder)))
        found = pixels(data.train.images, data)
        assert data.shape == (3, 32, 32) and len(data.train) + len(data.validation) == num and len(data.test) == 20
        assert (found[:, 0] == 10).all() and (found[:, 1] == 20).all()
        assert data.train.labels.tolist() == (found[:, 2, 0, 0] % 3).tolist()
    (ten / "data_batch_3.bin").write_bytes(b"\x00" * 3072)
    assert "data_batch_3.bin: 3,072 bytes are no rows of 3,073" in message(Data(path=str(ten)))


@pytest.mark.parametrize("inside", ["cifar-10-batches-py", "."])
def test_the_pickles_of_cifar_are_never_opened(inside: str, tmp_path: Path):
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    mark = tmp_path / "opened"
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    told = message(Data(path=str(tmp_path)))
    assert "pickles" in told and "binary version" in told
    assert not mark.exists()


def test_a_class_of_one_image_is_trained_on(tmp_path: Path):
    classes = {"고양이": [png(pattern(0, row)) for row in range(9)], "새": [png(pattern(1, 0))]}
    data = load(Data(path=str(save_folder(tmp_path / "사진", classes))))
    assert data.num_classes == 2 and 1 in data.train.labels.tolist()


@pytest.mark.parametrize(("num", "size", "sizes"), [(64, 32, [32, 32]), (65, 32, [32, 33]), (66, 32, [32, 32, 2])])
def test_no_batch_is_a_single_image(num: int, size: int, sizes: list[int]):
    found = bounds(num, size)
    assert [piece.stop - piece.start for piece in found] == sizes
    assert [row for piece in found for row in range(num)[piece]] == list(range(num))


def test_batches_of_one_are_left_as_asked():
    assert len(bounds(3, 1)) == 3 and len(bounds(1, 8)) == 1
