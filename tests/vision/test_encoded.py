"""Encoded images: what is read from Parquet and folders, and what is refused."""

from __future__ import annotations

import io
import struct
import time
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llmdistill.errors import ConfigError, DamagedError
from llmdistill.vision.config import Data
from llmdistill.vision.data import load
from llmdistill.vision.encoded import Encoded, decode, decode_all
from tests.vision.images import pattern, patterns, png, save_folder, save_parquet


def message(settings: Data) -> str:
    with pytest.raises((ConfigError, DamagedError)) as error:
        load(settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def bomb(side: int) -> bytes:
    """A small PNG that says it is `side` x `side`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\x00" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def test_threads_give_each_image_its_own_row():
    images, labels = patterns(700)
    rows = [Encoded(str(row), data, label) for row, (data, label) in enumerate(zip(images, labels, strict=True))]
    wanted = np.stack([pattern(label, row) for row, label in enumerate(labels)])
    assert (decode_all(rows, None) == wanted).all()


def test_parquet_with_struct_and_binary_columns_is_the_same_data(tmp_path: Path):
    images, labels = patterns(60)
    plain = save_parquet(tmp_path / "한글" / "plain.parquet", images, labels, "fine")
    structs = [{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(images)]
    pq.write_table(pa.table({"fine": labels, "img": structs}), tmp_path / "structs.parquet")
    one, other = (load(Data(path=str(path), label="fine")) for path in (plain, tmp_path / "structs.parquet"))
    assert (one.train.images == other.train.images).all() and (one.test.labels == other.test.labels).all()


def test_several_files_are_one_part_and_rows_are_named_within_theirs(tmp_path: Path):
    images, labels = patterns(30)
    first = save_parquet(tmp_path / "0.parquet", images, labels)
    second = save_parquet(tmp_path / "1.parquet", [*images[:7], b"no image"], labels[:8])
    data = load(Data(path=(str(first), str(first)), test_path=str(first)))
    assert len(data.train) + len(data.validation) == 60 and len(data.test) == 30
    assert message(Data(path=(str(first), str(second)))).startswith(f"{second}:7: this is no image")


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (png(pattern(0, 0))[:-30], "this image cannot be read"),
        (b"", "this is no image in one of the formats"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n", "this is no image in one of the formats"),
        (png(np.zeros((1, 1, 3), np.uint8)), "an image of a single pixel"),
        (bomb(8000), "an image of 8,000 x 8,000 pixels"),
        (bomb(100_000), "this image cannot be read"),
        (png(pattern(0, 0, size=11)), "this image is 11 x 11, the first one 12 x 12"),
        (encoded(Image.fromarray(np.full((12, 12), 300, np.uint16)), "PNG"), "an image of more than 8 bits"),
        (None, "this row has no image"),
    ],
)
def test_an_image_that_cannot_be_used_is_told_with_file_and_row(image: bytes | None, told: str, tmp_path: Path):
    images, labels = patterns(20)
    path = save_parquet(tmp_path / "그림.parquet", [*images[:13], image, *images[14:]], labels)
    line = message(Data(path=str(path)))
    assert line.startswith(f"{path}:13: ") and told in line


def test_the_first_of_many_damaged_images_is_told(tmp_path: Path):
    good, _ = patterns(1)
    missing = [Encoded(f"later {row}", tmp_path / f"{row}.png", 0) for row in range(2000)]
    rows = [Encoded("first", good[0], 0)] * 100 + [Encoded("여기", b"x", 0)] + missing
    with pytest.raises(DamagedError, match="여기"):
        decode_all(rows, None)


@pytest.mark.parametrize(("label", "told"), [(None, "no label"), (-1, "is below 0"), (2**40, "is too large")])
def test_a_label_that_cannot_be_used_is_told_with_file_and_row(label: int | None, told: str, tmp_path: Path):
    images, labels = patterns(20)
    path = save_parquet(tmp_path / "a.parquet", images, [*labels[:5], label, *labels[6:]])
    line = message(Data(path=str(path)))
    assert line.startswith(f"{path}:5: ") and told in line


def test_columns_that_are_not_there_are_told_with_those_that_are(tmp_path: Path):
    images, labels = patterns(6)
    path = save_parquet(tmp_path / "a.parquet", images, labels, "fine_label")
    assert "a column label; it has image, fine_label" in message(Data(path=str(path)))
    pq.write_table(pa.table({"image": images, "label": ["개"] * 6}), path)
    assert "the column label holds string, not whole numbers" in message(Data(path=str(path)))
    path.write_bytes(path.read_bytes()[:-20])
    assert "not readable as Parquet" in message(Data(path=str(path)))


def test_cmyk_becomes_the_rgb_it_shows_and_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cyan = Image.new("CMYK", (12, 12), (255, 0, 0, 0))
    images, labels = patterns(20)
    path = save_parquet(tmp_path / "a.parquet", [*images[:4], encoded(cyan, "TIFF"), *images[5:]], labels)
    load(Data(path=str(path)))
    said = [line for line in capsys.readouterr().err.splitlines() if "CMYK" in line]
    assert len(said) == 1 and f"{path}:4" in said[0]
    assert decode(encoded(cyan, "TIFF"), "here", None)[3, 3].tolist() == [0, 255, 255]


def test_images_of_every_kind_come_to_one_size_in_rgb():
    image = Image.fromarray(pattern(1, 3))
    kinds = [(image, "JPEG"), (image.convert("L"), "PNG"), (image.convert("P"), "GIF"), (image.convert("RGBA"), "PNG")]
    for source, kind in kinds:
        assert decode(encoded(source.resize((17, 9)), kind), kind, 8).shape == (8, 8, 3)


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path):
    names = {"나": 1, "가": 0, unicodedata.normalize("NFD", "다"): 2}
    classes = {name: [png(pattern(label, row)) for row in range(10)] for name, label in names.items()}
    folder = save_folder(tmp_path / "훈련", classes)
    (folder / "가" / ".DS_Store").write_bytes(b"x")
    (folder / ".cache").mkdir()
    data = load(Data(path=str(folder)))
    raw = ((data.train.images * data.std[:, None, None] + data.mean[:, None, None]) * 255).round().long()
    marks = raw[:, :, :, 0].amax(2)
    assert data.num_classes == 3
    assert all(marks[row, label] >= 60 * (label + 1) for row, label in enumerate(data.train.labels.tolist()))


def test_a_test_folder_is_numbered_as_the_training_folder(tmp_path: Path):
    classes = {name: [png(pattern(label, row)) for row in range(10)] for label, name in enumerate("가나다")}
    path = str(save_folder(tmp_path / "train", classes))
    part = save_folder(tmp_path / "test", {"다": classes["다"]})
    assert load(Data(path=path, test_path=str(part))).test.labels.tolist() == [2] * 10
    other = save_folder(tmp_path / "other", {"라": classes["다"]})
    assert f"{other / '라'}: there is no such class" in message(Data(path=path, test_path=str(other)))


def test_an_empty_class_and_an_empty_folder_are_named(tmp_path: Path):
    folder = save_folder(tmp_path / "a", {"가": [png(pattern(0, 0))], "빈": []})
    assert f"{folder / '빈'}: this class has no image" in message(Data(path=str(folder)))
    (tmp_path / "b").mkdir()
    assert "there is no folder for each class" in message(Data(path=str(tmp_path / "b")))


def test_a_damaged_file_of_a_folder_is_named(tmp_path: Path):
    folder = save_folder(tmp_path / "a", {"가": [png(pattern(0, row)) for row in range(5)], "나": [b"\xff\xd8\xff"]})
    assert message(Data(path=str(folder))).startswith(str(folder / "나" / "000.png"))


def test_cifar_sized_data_is_decoded_in_seconds():
    image = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)), "JPEG")
    started = time.process_time()
    decode_all([Encoded("here", image, 0)] * 1000, None)
    assert (time.process_time() - started) * 50 < 60
