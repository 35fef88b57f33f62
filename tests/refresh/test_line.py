"""The pointer to the champion, killed wherever it can be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmdistill.errors import DamagedError, UsageError
from llmdistill.refresh.line import Line, Version
from tests.tiny import REPO

POINTS = ("refresh.before_version", "refresh.after_version", "refresh.before_switch", "refresh.after_switch")


def version(number: int, outcome: str = "promoted", before: int | None = None) -> Version:
    inputs = {"settings": "s", "prompts": f"p{number}"}
    return Version(number, outcome, None, before, inputs, "g", 10, 1, 0, 5, 1, 10, 0.0, 1.0, 1, "2026-01-01T00:00:00")


def line_of(run_dir: Path, num: int) -> Line:
    """A line whose versions 0 to num - 1 took each other's place."""
    line = Line(run_dir)
    for number in range(num):
        line.dir_of(number).mkdir(parents=True, exist_ok=True)
        line.write(version(number, "promoted" if number else "first", number - 1 if number else None))
        line.promote(number)
    return line


def crashing(run_dir: Path, point: str, code: str) -> int:
    program = (
        "import sys; from pathlib import Path; from tests.refresh.test_line import *; "
        f"line = Line(Path(sys.argv[1])); {code}"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO), "LLMDISTILL_FAILPOINT": point}
    return subprocess.run([sys.executable, "-c", program, str(run_dir)], env=environment, check=False).returncode


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_step_of_a_promotion_the_pointer_names_a_whole_version(tmp_path: Path, point: str) -> None:
    line = line_of(tmp_path, 2)
    line.dir_of(2).mkdir()
    assert crashing(tmp_path, point, "line.write(version(2, before=1)); line.promote(2)") == 137
    found = line.champion()
    assert found is not None and found.number in (1, 2)
    versions = line.versions()
    assert line.settled(versions[-1]).number == versions[-1].number
    assert (line.dir / "champion").resolve() == line.dir_of(versions[-1].number).resolve()


@pytest.mark.parametrize("point", ["refresh.after_withdrawal", "refresh.before_switch", "refresh.after_switch"])
def test_killed_in_a_roll_back_it_is_brought_to_its_end(tmp_path: Path, point: str) -> None:
    line = line_of(tmp_path, 3)
    assert crashing(tmp_path, point, "line.roll_back()") == 137
    assert line.champion() is not None
    assert line.settled(line.versions()[-1]).number == 1


def test_rolling_back_twice_goes_back_two_champions_and_a_third_time_says_there_is_none(tmp_path: Path) -> None:
    line = line_of(tmp_path, 3)
    assert line.roll_back() == (2, 1)
    assert line.roll_back() == (1, 0)
    assert os.readlink(line.dir / "champion") == ".."
    with pytest.raises(UsageError, match="version 0 is the first champion"):
        line.roll_back()
    assert [row["now"] for row in line.history()] == ["champion", "rolled back", "rolled back"]


def test_rolling_back_passes_over_refused_versions(tmp_path: Path) -> None:
    line = line_of(tmp_path, 2)
    line.dir_of(2).mkdir()
    line.write(version(2, "refused", 1))
    line.dir_of(3).mkdir()
    line.write(version(3, "promoted", 1))
    line.promote(3)
    assert line.roll_back() == (3, 1)
    assert [row["now"] for row in line.history()] == ["former champion", "champion", "refused", "rolled back"]


def test_a_version_that_was_rolled_back_does_not_come_back_by_itself(tmp_path: Path) -> None:
    line = line_of(tmp_path, 3)
    line.roll_back()
    for _ in range(2):
        assert line.settled(line.versions()[-1]).number == 1


def test_the_number_of_an_unfinished_version_is_used_again(tmp_path: Path) -> None:
    line = line_of(tmp_path, 2)
    assert line.next_number() == 2
    line.dir_of(2).mkdir()
    assert line.next_number() == 2
    line.write(version(2, before=1))
    assert line.next_number() == 3


def test_versions_beyond_9999_are_still_in_order(tmp_path: Path) -> None:
    line = line_of(tmp_path, 1)
    for number in (9_999, 10_000):
        line.dir_of(number).mkdir(parents=True)
        line.write(version(number, "refused", 0))
    assert [found.number for found in line.versions()] == [0, 9_999, 10_000]


@pytest.mark.parametrize("target", ["0007", "nowhere", "../../elsewhere"])
def test_a_pointer_to_no_version_is_one_line(tmp_path: Path, target: str) -> None:
    line = line_of(tmp_path, 2)
    pointer = line.dir / "champion"
    pointer.unlink()
    os.symlink(target, pointer)
    with pytest.raises(DamagedError, match="no finished version"):
        line.champion()


def test_a_damaged_version_file_is_one_line(tmp_path: Path) -> None:
    line = line_of(tmp_path, 2)
    (line.dir_of(1) / "version.json").write_text('{"number": 1, "colour": "red"}')
    with pytest.raises(DamagedError, match="describes no version"):
        line.champion()
