"""A reader sees the old file or the new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest

from llmdistill.errors import DamagedError, DiskError, disk_error
from llmdistill.run.files import read_json, read_table, replacing, write_json, write_table, write_text


def test_an_error_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_new_file_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_text() == "half"


@pytest.mark.parametrize("name", ["한글 이름.json", "with spaces.json", "x" * 240 + ".json", "-rf.json", "a'b\"c.json"])
def test_any_name_that_the_file_system_takes_is_taken(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, {"값": 1})
    assert read_json(tmp_path / name) == {"값": 1}


def test_a_name_that_is_too_long_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="the path is too long"):
        write_text(tmp_path / ("x" * 256), "")


def test_a_directory_in_place_of_the_file_is_a_disk_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DiskError):
        write_text(tmp_path / "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, pa.table({"x": list(range(1000)), "y": ["한글"] * 1000}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("cut", [0, 3, 200, -1])
def test_a_torn_parquet_file_is_one_clear_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, pa.table({"x": list(range(1000))}))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedError, match="not readable as Parquet"):
        read_table(path)


@pytest.mark.parametrize("data", [b"", b'{"a": 1', b"\xff\xfe", b"\0" * 100, b"[" * 100_000])
def test_a_torn_json_file_is_one_clear_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DamagedError, match="not readable as JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_with_the_path_and_the_bytes_that_were_needed(code: int) -> None:
    said = str(disk_error(OSError(code, os.strerror(code)), "/some/file", 12_345))
    assert "/some/file" in said and "12,345 bytes" in said and "\n" not in said
