"""A whole refresh by the command line: only what is new is asked, and a kill anywhere costs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.refresh.conftest import FIRST
from tests.refresh.runs import Lineage, instructions

NEW = 8
POINTS = (
    "refresh.after_prompts",
    "journal.after_write",
    "refresh.after_gate",
    "refresh.after_version",
    "refresh.after_switch",
)


def new_pool(line: Lineage, number: int = 1) -> int:
    """Prompts of a version's pool that its parent had not."""
    return line.version(number)["new"]


def parts(run_dir: Path) -> dict[str, bytes]:
    """The records of a run, stage by stage."""
    names = ("prompts", "generate", "filter", "curate")
    paths = (path for name in names for path in sorted((run_dir / name).glob("*.parquet")))
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


def test_only_new_prompts_are_asked_and_the_result_is_that_of_a_full_run_over_all(line: Lineage) -> None:
    line.write(instructions(FIRST + NEW))
    line.refresh()
    new = new_pool(line)
    held_out = NEW - new
    assert 0 < new <= NEW
    assert line.asked()["constant"] == new
    assert new <= line.asked()["ok"] <= new + held_out  # new held-out prompts are answered once too
    version = line.version(1)
    assert (version["requests"], version["outcome"], version["parent"]) == (2 * new, "promoted", 0)
    assert line.champion == line.run_dir / "refresh" / "0001"

    done = line.do("run", "--set", "run_dir=whole")
    assert done.code == 0, done.stderr
    assert parts(line.champion) == parts(line.folder / "whole")


def test_the_same_refresh_again_asks_and_changes_nothing(line: Lineage) -> None:
    line.write(instructions(FIRST + NEW))
    line.refresh()
    before = {path: path.stat().st_mtime_ns for path in line.run_dir.rglob("*.parquet")}
    line.teacher.begin(**{"rules": [{"kind": "status", "status": 500}]})
    said = line.refresh()
    assert "nothing new since version 1" in said
    assert not line.asked()
    assert {path: path.stat().st_mtime_ns for path in line.run_dir.rglob("*.parquet")} == before


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_the_same_command_ends_it_and_asks_nothing_twice(line: Lineage, point: str) -> None:
    line.write(instructions(FIRST + NEW))
    line.refresh(code=137, failpoint=point)
    assert line.champion in (line.run_dir, line.run_dir / "refresh" / "0001")
    line.refresh()
    assert line.champion == line.run_dir / "refresh" / "0001"
    assert line.version(1)["outcome"] == "promoted"
    asked = line.asked()
    if point != "journal.after_write":  # what was in flight then is asked again
        assert asked["constant"] == new_pool(line)
    assert line.teacher.log().paid.most_common(1)[0][1] == 1 or point == "journal.after_write"


def test_too_few_new_prompts_wait_and_leave_nothing(line: Lineage) -> None:
    line.write(instructions(FIRST + NEW), refresh={"min_new": NEW + 1})
    line.refresh()  # the floor itself is a changed setting, so this one is made
    line.teacher.begin()
    line.write(instructions(FIRST + NEW + 3), refresh={"min_new": NEW + 1})
    said = line.refresh()
    assert "waiting for more" in said
    assert not line.asked()
    assert not (line.run_dir / "refresh" / "0002").exists()


def test_another_rubric_is_not_paid_for_unless_it_is_asked(line: Lineage) -> None:
    line.write(instructions(FIRST + NEW), filter={"judge": {"rubric": "prompts/ko/judge.yaml", "scoring": "written"}})
    said = line.refresh(code=2)
    assert "the judge is another one" in said and "--fresh" in said
    assert not line.asked()
    assert line.champion == line.run_dir


def test_another_teacher_is_not_paid_for_unless_it_is_asked(line: Lineage) -> None:
    line.write(instructions(FIRST + NEW), generate={"max_new_tokens": 33})
    said = line.refresh(code=2)
    assert "generate.max_new_tokens: 32 -> 33" in said and "--fresh" in said
    assert not line.asked()
    assert "promoted" in line.refresh("--fresh")
    assert line.asked()["ok"] >= line.version(1)["prompts"]


def test_the_budget_is_that_of_one_refresh(line: Lineage) -> None:
    line.write(instructions(FIRST + NEW))
    said = line.refresh("--max-tokens", "1000", code=4)
    assert "budget" in said
    assert line.champion == line.run_dir
    spent = line.version(0)["tokens"]
    assert "promoted" in line.refresh("--max-tokens", f"{spent // 2}")  # the first run's tokens do not count


def test_rolling_back_is_one_command_and_does_not_come_back(line: Lineage) -> None:
    line.write(instructions(FIRST + NEW))
    line.refresh()
    assert "version 0 is the champion again" in line.refresh("--rollback")
    assert line.champion == line.run_dir
    line.refresh()
    assert line.champion == line.run_dir
    assert "none to go back to" in line.refresh("--rollback", code=2)
    rows = json.loads(line.do("refresh", "--history", "--json").stdout)
    assert [row["now"] for row in rows] == ["champion", "rolled back"]


def test_prompts_that_are_gone_are_gone_from_the_training_set(line: Lineage) -> None:
    line.write(instructions(FIRST - 10, start=10))
    line.refresh()
    assert line.version(1)["gone"] > 0
    assert not line.asked()["constant"]  # no record was judged again, and none was made for training
    assert line.version(1)["requests"] == 0


def test_two_refreshes_at_once_are_refused(line: Lineage) -> None:
    from llmdistill.run.lock import locked

    with locked(line.run_dir / "refresh"):
        assert "is working on this run" in line.refresh(code=75)
