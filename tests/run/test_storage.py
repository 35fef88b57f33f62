"""Folders on an object store: there whole or not there."""

from __future__ import annotations

import ast
import inspect
import uuid
from pathlib import Path

import fsspec
import pytest

from llmdistill.errors import ConfigError, MissingExtraError, StageError
from llmdistill.run import storage as module
from llmdistill.run.storage import DONE, Storage


@pytest.fixture(params=["memory", "file"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    addresses = {"memory": f"memory://{uuid.uuid4().hex}/runs", "file": f"file://{tmp_path}/bucket"}
    return Storage(addresses[request.param])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "generate" / "journal").mkdir(parents=True)
    (made / "generate" / "part.parquet").write_bytes(b"\x00PAR1" * 1000)
    (made / "generate" / "journal" / "a.jsonl").write_text("한\n")
    (made / "other.txt").write_text("")
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_comes_back_as_it_was_put(storage, folder, tmp_path):
    storage.put(folder, "run/generate-00001/out")
    assert storage.fetch("run/generate-00001/out", tmp_path / "back")
    assert files(tmp_path / "back") == files(folder)


def test_only_a_part_of_a_folder_can_be_put(storage, folder, tmp_path):
    storage.put(folder, "part", only="generate")
    assert storage.fetch("part", tmp_path / "back")
    assert set(files(tmp_path / "back")) == {"generate/part.parquet", "generate/journal/a.jsonl"}


def test_an_empty_folder_is_there_too(storage, tmp_path):
    (tmp_path / "empty").mkdir()
    storage.put(tmp_path / "empty", "empty")
    assert storage.fetch("empty", tmp_path / "back")


def test_what_was_removed_or_never_put_is_not_there(storage, folder, tmp_path):
    storage.put(folder, "gone")
    storage.remove("gone")
    storage.remove("gone")
    assert not storage.fetch("gone", tmp_path / "back")
    assert not storage.fetch("never", tmp_path / "back")


@pytest.mark.parametrize("damage", ["no done", "half a done", "a file less", "a file cut", "done of nothing"])
def test_a_folder_that_is_not_whole_is_not_there(storage, folder, tmp_path, damage):
    storage.put(folder, "torn")
    system, root = fsspec.url_to_fs(storage.address)
    done, part = f"{root}/torn/{DONE}", f"{root}/torn/generate/part.parquet"
    if damage == "no done":
        system.rm(done)
    elif damage == "half a done":
        system.pipe_file(done, system.cat_file(done)[:20])
    elif damage == "done of nothing":
        system.pipe_file(done, b"[]")
    elif damage == "a file less":
        system.rm(part)
    else:
        system.pipe_file(part, system.cat_file(part)[:-1])
    assert not storage.fetch("torn", tmp_path / "back")


def test_a_name_that_leads_out_of_the_folder_is_passed_over(storage, folder, tmp_path):
    storage.put(folder, "bad")
    system, root = fsspec.url_to_fs(storage.address)
    system.pipe_file(f"{root}/bad/{DONE}", b'{"files": {"../../outside": "00", "/etc/x": "00"}}')
    assert storage.fetch("bad", tmp_path / "a" / "b")
    assert not (tmp_path / "outside").exists()


def test_an_unknown_kind_of_address_is_a_mistake_of_the_file():
    with pytest.raises(ConfigError, match="run.storage"):
        Storage("nosuch://bucket").check()


def test_a_kind_of_address_whose_package_is_missing_is_named():
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="s3fs"):
            Storage("s3://bucket/runs").check()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match="the storage cannot be used"):
        Storage(str(tmp_path / "file" / "below")).check()


def test_nothing_but_fsspec_touches_the_storage():
    """What is done with a path in the storage is a method of the file system that fsspec gives."""
    tree = ast.parse(inspect.getsource(module))
    calls = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _name(node.func.value) == "system"
    }
    assert calls == {"makedirs", "put_file", "pipe_file", "get_file", "cat_file", "exists", "rm"}
    assert all(hasattr(fsspec.AbstractFileSystem, name) for name in calls)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""
