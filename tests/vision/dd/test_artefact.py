"""A distilled set comes back as it was saved, whole, or not at all."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llmdistill.errors import DamagedError, DiskError
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.whitening import whitened
from tests.vision.images import small_data

DATA, WHITENING = whitened(small_data())


def distilled(**changes: object) -> DistilledDataset:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    provenance = {"method": {"name": "mtt", "label": "궤적"}, "seed": 3, "parts": [1, None, 0.5]}
    found = DistilledDataset(DATA.train.images[:6], labels, mean, std, 3, 6 * 192 + 1, 0.02, provenance, WHITENING)
    return replace(found, **changes)  # type: ignore[arg-type]


def same(one: DistilledDataset, other: DistilledDataset) -> bool:
    mine, its = one._tensors(), other._tensors()
    plain = ("num_classes", "floats", "learning_rate", "provenance")
    return (
        mine.keys() == its.keys()
        and all(torch.equal(mine[name], its[name]) for name in mine)
        and all(getattr(one, name) == getattr(other, name) for name in plain)
    )


@pytest.mark.parametrize(
    "changes", [{}, {"whitening": None}, {"learning_rate": None}, {"labels": torch.randn(6, 3)}, {"provenance": {}}]
)
def test_what_is_saved_comes_back(changes: dict[str, object], tmp_path: Path):
    distilled(**changes).save(tmp_path / "집합")
    assert same(DistilledDataset.load(tmp_path / "집합"), distilled(**changes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["집합"]


def test_the_whitening_is_released_with_the_images_and_undone_in_pixels(tmp_path: Path):
    distilled().save(tmp_path / "a")
    found = DistilledDataset.load(tmp_path / "a")
    normalised = small_data().train.images[:6]
    wanted = (normalised * found.std[:, None, None] + found.mean[:, None, None]).clamp(0, 1)
    torch.testing.assert_close(found.pixels(), wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(replace(found, whitening=None).pixels(), wanted, atol=0.05)


def test_a_set_takes_the_place_of_the_one_before(tmp_path: Path):
    distilled().save(tmp_path / "a")
    distilled(learning_rate=0.5).save(tmp_path / "a")
    assert DistilledDataset.load(tmp_path / "a").learning_rate == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("point", ["files.before_replace:1", "files.before_replace:2", "artefact.before_rename"])
def test_a_kill_leaves_the_old_set_or_none_and_the_next_save_works(point: str, tmp_path: Path):
    for name in ("new", "old"):
        if name == "old":
            distilled(learning_rate=0.5).save(tmp_path / name)
        pid = os.fork()
        if not pid:
            os.environ["LLMDISTILL_FAILPOINT"] = point
            distilled().save(tmp_path / name)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 137
    assert not (tmp_path / "new").exists()
    assert DistilledDataset.load(tmp_path / "old").learning_rate == 0.5
    distilled().save(tmp_path / "new")
    assert same(DistilledDataset.load(tmp_path / "new"), distilled())


def rewritten(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        facts = json.loads((folder / "distilled.json").read_text())
        facts.update(changes)
        (folder / "distilled.json").write_text(json.dumps(facts))

    return change


def retensored(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    """Other tensors, with the right hash: someone's own doing, not damage."""

    def change(folder: Path) -> None:
        import hashlib

        path = folder / "images.safetensors"
        tensors = {**load_file(path), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
        rewritten(sha256=hashlib.sha256(path.read_bytes()).hexdigest())(folder)

    return change


def content(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tensors": (lambda folder: (folder / "images.safetensors").unlink(), "images.safetensors: No such file"),
    "no facts": (lambda folder: (folder / "distilled.json").unlink(), "distilled.json: No such file"),
    "torn tensors": (lambda folder: os.truncate(folder / "images.safetensors", 900), "not the one that distilled.json"),
    "torn facts": (lambda folder: os.truncate(folder / "distilled.json", 40), "Unterminated|Expecting|delimiter"),
    "nested facts": (content("distilled.json", "[" * 200_000), "recursion|nested|too deep|no object"),
    "a list": (content("distilled.json", "[1]"), "holds no object"),
    "not utf-8": (lambda folder: (folder / "distilled.json").write_bytes(b'{"a": "\xff"}'), "decode"),
    "version": (rewritten(version=2), "version 2 of the format, this program reads 1"),
    "version true": (rewritten(version="1"), "version 1 of the format"),
    "unknown key": (rewritten(__class__="os.system"), "__class__: Extra inputs are not permitted"),
    "rate": (rewritten(learning_rate=-0.1), "learning_rate: Input should be greater than 0"),
    "endless rate": (rewritten(learning_rate=float("inf")), "learning_rate: Input should be a finite number"),
    "floats": (rewritten(floats="many"), "floats: Input should be a valid integer"),
    "classes": (rewritten(num_classes=2), "a label that is none of 0 to 1"),
    "provenance": (rewritten(provenance=[1]), "provenance: Input should be a valid dictionary"),
    "fewer labels": (retensored(labels=torch.zeros(5, dtype=torch.int64)), r"labels of shape \[5\] for 6 images"),
    "label": (retensored(labels=torch.full((6,), -1)), "a label that is none of 0 to 2"),
    "kind of labels": (retensored(labels=torch.zeros(6)), "labels is .* torch.float32, not"),
    "images": (retensored(images=torch.zeros(6, 3)), r"images of shape \[6, 3\]"),
    "no images": (retensored(images=None), "images of shape"),
    "nan": (retensored(images=torch.full((6, 3, 8, 8), float("nan"))), "images is not finite"),
    "mean": (retensored(mean=torch.zeros(1)), r"mean is \[1\] torch.float32, not \[3\]"),
    "extra": (retensored(other=torch.zeros(1)), "tensors .*other"),
    "half a whitening": (retensored(whitening__mean=None), "tensors "),
    "whitening": (retensored(whitening__matrix=torch.zeros(2, 2)), r"whitening.matrix is \[2, 2\]"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_set_that_is_not_what_it_should_be_is_refused_in_one_line(name: str, tmp_path: Path):
    distilled().save(tmp_path / "a")
    damage, said = BROKEN[name]
    damage(tmp_path / "a")
    with pytest.raises(DamagedError, match=said) as caught:
        DistilledDataset.load(tmp_path / "a")
    assert "\n" not in str(caught.value) and str(tmp_path / "a") in str(caught.value) and len(str(caught.value)) < 600


def test_a_flipped_bit_is_found(tmp_path: Path):
    distilled().save(tmp_path / "a")
    path = tmp_path / "a" / "images.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="not the one that distilled.json belongs to"):
        DistilledDataset.load(tmp_path / "a")


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="a file stands where a directory is needed"):
        distilled().save(tmp_path / "file" / "a")


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB")])
def test_the_picture_has_a_row_for_each_class(channels: int, mode: str, tmp_path: Path):
    images = torch.zeros(5, channels, 8, 8)
    images[1] = 1.0
    labels, one = torch.tensor([2, 0, 2, 2, 0]), torch.ones(channels)
    found = DistilledDataset(images, labels, 0 * one, one, 3, 1)
    found.grid_png(tmp_path / "그림.png")
    picture = Image.open(io.BytesIO((tmp_path / "그림.png").read_bytes()))
    assert picture.mode == mode and picture.size == (3 * 33 + 1, 3 * 33 + 1)
    pixels = np.asarray(picture.convert("L"))
    cells = [[pixels[1 + 33 * row + 16, 1 + 33 * column + 16] for column in range(3)] for row in range(3)]
    assert cells == [[255, 0, 255], [255, 255, 255], [0, 0, 0]]
