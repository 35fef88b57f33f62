"""Disks that are full, read-only, limited, or hold something else where a directory is needed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Run
from tests.faults.same import assert_same_results

Mount = Callable[..., None]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """A file system of its own, and how to mount it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")

    def again(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

    yield folder, again
    subprocess.run(["umount", "-l", folder], check=True)


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def test_a_disk_that_is_full_at_every_write_in_turn_costs_nothing_but_time(
    new_run: Run, undisturbed: Run, small_disk: tuple[Path, Mount]
) -> None:
    disk, mount = small_disk
    new_run.dir = disk / "run"
    places = set()
    for _ in range(60):
        result = new_run.do("run")
        if result.code == 0:
            break
        assert result.code == 1, result.stderr
        assert "the disk is full" in result.error and str(new_run.dir) in result.error
        places.add(result.error.split(":")[1])
        mount(f"size={num_bytes(disk) // 1024 + (48 if num_bytes(disk) < 250_000 else 700)}k")
    assert len(places) >= 6, places
    assert_same_results(new_run, undisturbed)


@pytest.mark.parametrize("limit", [1_500, 9_000, 500_000])
def test_a_limit_on_the_size_of_files_is_one_clear_error_and_nothing_is_lost(
    new_run: Run, undisturbed: Run, limit: int
) -> None:
    stages = ("prompts", "generate") if limit < 10_000 else ("prompts", "generate", "filter", "curate", "train")
    for stage in stages[1:]:
        result = new_run.do(stage, file_size=limit)
        if result.code:
            break
    assert result.code == 1 and "may not grow that large" in result.error
    for stage in stages[1:]:
        new_run.do(stage).ok()
    assert_same_results(new_run, undisturbed, stages)


def test_a_read_only_disk_is_one_clear_error_before_any_answer(new_run: Run, small_disk: tuple[Path, Mount]) -> None:
    disk, mount = small_disk
    mount("ro")
    new_run.dir = disk / "run"
    result = new_run.do("run")
    assert result.code == 1 and "read-only" in result.error and "--set run_dir" in result.error
    assert not new_run.answers()


def test_a_disk_that_turns_read_only_half_way_is_one_clear_error(
    new_run: Run, undisturbed: Run, small_disk: tuple[Path, Mount]
) -> None:
    disk, mount = small_disk
    mount("size=10m")
    new_run.dir = disk / "run"
    assert new_run.do("generate", failpoint="stage.after_shard:2").code == 137
    mount("ro")
    result = new_run.do("generate")
    assert result.code == 1 and "read-only" in result.error
    mount("rw")
    new_run.do("generate").ok()
    assert_same_results(new_run, undisturbed, ("prompts", "generate"))


@pytest.mark.parametrize("where", ["file", "file/below", "x" * 256, "a/" * 2100])
def test_a_run_directory_that_cannot_be_is_one_clear_error_before_any_answer(new_run: Run, where: str) -> None:
    (new_run.folder / "file").write_text("")
    new_run.dir = new_run.folder / where
    result = new_run.do("run")
    assert result.code == 1
    assert "where a directory is needed" in result.error or "too long" in result.error
    assert not new_run.answers() and (new_run.folder / "file").read_text() == ""


@pytest.mark.parametrize("stage", ["prompts", "generate/journal", "generate/manifest.json", "config.json", ".lock"])
def test_something_else_in_place_of_a_file_of_the_run_is_one_clear_error(new_run: Run, stage: str) -> None:
    path = new_run.dir / stage
    if "." in path.name:
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True)
        path.write_text("")
    result = new_run.do("generate")
    assert result.code == 1 and str(path) in result.error


@pytest.mark.parametrize("name", ["실험  하나", "x" * 255, "-a'b\"c$d"])
def test_any_name_that_the_file_system_takes_works(new_run: Run, undisturbed: Run, name: str) -> None:
    new_run.dir = new_run.folder / name
    new_run.do("generate").ok()
    assert_same_results(new_run, undisturbed, ("prompts", "generate"))
    assert {path.name for path in new_run.folder.iterdir()} == {name, "trace.txt"}


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root; the read-only disk stands for them")
def test_a_directory_without_write_permission_is_one_clear_error(new_run: Run) -> None:
    new_run.dir.mkdir()
    new_run.dir.chmod(0o500)
    result = new_run.do("run")
    assert result.code == 1 and "no permission" in result.error
