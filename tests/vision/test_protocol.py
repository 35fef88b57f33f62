"""The hash of a protocol stands for everything that changes a number."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Data, Protocol
from tests.vision.images import pattern, patterns, png, save_folder, save_parquet

OTHER_PROTOCOL: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 7,
    "optimiser": "adamw",
    "learning_rate": 0.1,
    "momentum": 0.5,
    "nesterov": True,
    "weight_decay": 0.0,
    "schedule": "steps",
    "milestones": (0.5,),
    "warmup_epochs": 1.0,
    "augment": ("flip",),
    "precision": "bfloat16",
    "seeds": (4,),
}
OTHER_DATA: dict[str, Any] = {
    "validation": 0.3,
    "test": 0.3,
    "limit": 50,
    "size": 6,
    "grey": True,
    "label": "fine",
    "split_seed": 1,
}


def test_every_setting_that_changes_a_number_changes_the_hash():
    plain = Protocol().hash(Data())
    hashes = [Protocol(**{name: value}).hash(Data()) for name, value in OTHER_PROTOCOL.items()]
    hashes += [Protocol().hash(Data(**{name: value})) for name, value in OTHER_DATA.items()]
    assert len({plain, *hashes}) == 1 + len(OTHER_PROTOCOL) + len(OTHER_DATA)
    assert OTHER_PROTOCOL.keys() == Protocol.model_fields.keys() - {"device"}
    assert OTHER_DATA.keys() == Data.model_fields.keys() - {"path", "test_path"}


def test_the_device_is_not_in_the_hash():
    assert Protocol(device="cpu").hash(Data()) == Protocol().hash(Data())


def test_the_order_of_augmentations_and_a_written_out_default_count_as_what_they_are():
    one, other = Protocol(augment=("crop", "flip")), Protocol(augment=("flip", "crop"))
    assert one.hash(Data()) != other.hash(Data())
    assert Protocol(epochs=20, seeds=(0, 1, 2)).hash(Data(path="digits")) == Protocol().hash(Data())


def test_the_hash_is_that_of_what_the_files_hold_wherever_they_lie(tmp_path: Path):
    images, labels = patterns(12)
    path = save_parquet(tmp_path / "가" / "a.parquet", images, labels)
    before = Protocol().hash(Data(path=str(path)))
    copy = tmp_path / "다른 이름.parquet"
    shutil.copy(path, copy)
    assert Protocol().hash(Data(path=str(copy))) == before
    save_parquet(path, images, [*labels[:-1], 0])
    assert Protocol().hash(Data(path=str(path))) != before
    assert Protocol().hash(Data(path=str(copy), test_path=str(path))) != before


def test_a_file_changed_in_place_with_the_same_length_changes_the_hash(tmp_path: Path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"a" * 100)
    one = Protocol().hash(Data(path=str(path)))
    state = path.stat()
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert Protocol().hash(Data(path=str(path))) != one


def test_the_hash_of_a_folder_is_that_of_its_names_and_images(tmp_path: Path):
    classes = {name: [png(pattern(label, row)) for row in range(3)] for label, name in enumerate("가나")}
    folder, other = save_folder(tmp_path / "a", classes), save_folder(tmp_path / "b", classes)
    one = Protocol().hash(Data(path=str(folder)))
    (folder / ".cache").write_bytes(b"x")
    assert Protocol().hash(Data(path=str(other))) == Protocol().hash(Data(path=str(folder))) == one
    (other / "가" / "000.png").rename(other / "나" / "003.png")
    assert Protocol().hash(Data(path=str(other))) != one


def test_a_path_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match=r"없음: there is no such file or folder"):
        Protocol().hash(Data(path="없음"))


@pytest.mark.parametrize(
    "settings",
    [
        {"nesterov": True, "momentum": 0.0},
        {"nesterov": True, "optimiser": "adamw"},
        {"epochs": 2, "warmup_epochs": 2.0},
        {"seeds": (1, 1)},
        {"seeds": ()},
        {"learning_rate": 0.0},
        {"batch_size": True},
    ],
)
def test_a_protocol_that_cannot_be_followed_is_refused(settings: dict[str, Any]):
    with pytest.raises(ValidationError):
        Protocol(**settings)
