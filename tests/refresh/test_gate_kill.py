"""`kill -9` while the champion answers and is scored, then the same comparison again: nothing is done twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from llmdistill.config import Pipeline
from llmdistill.refresh.gate import compare
from tests.forking import KILLED
from tests.refresh.gate_killing import Compare, comparing
from tests.refresh.gate_runs import NUM_HELD_OUT, TEXT, World, alone, settings

POINTS = (
    "engine.after_answer:3",
    "journal.after_write:1",
    "evaluate.after_record:1",
    "evaluate.after_record:7",
    "journal.after_write:1",
)
"""Where each process in turn is killed: among the answers, at the end of a group of them, and so among the scores."""
ON_DISK = 10


@pytest.fixture(scope="module")
def process() -> Iterator[Compare]:
    with comparing() as compare_until:
        yield compare_until


@pytest.fixture
def version(world: World, tmp_path: Path) -> Pipeline:
    """A version that has not been compared with the champion."""
    if not (world.folder / "uncompared").exists():
        world.version(world.folder / "uncompared", world.students["little"])
    return alone(settings(world.folder / "uncompared", world.teacher, TEXT), tmp_path / "run")


def journals(pipeline: Pipeline) -> dict[Path, list[bytes]]:
    """Whole rows of every journal of `evaluate`."""
    paths = sorted((pipeline.run_path / "evaluate" / "journal").glob("*.jsonl"))
    return {
        path: [line for line in path.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"] for path in paths
    }


def keys(pipeline: Pipeline) -> list[str]:
    """What is on disk, as names."""
    return [f"{path.stem} {json.loads(line)['key']}" for path, lines in journals(pipeline).items() for line in lines]


def test_a_kill_at_any_moment_loses_no_row_and_changes_nothing(world, version, process: Compare) -> None:
    before = set(keys(version))
    for point in POINTS:
        assert process(version, world.champion, point) == KILLED, point
        after = keys(version)
        assert before <= set(after) and len(after) == len(set(after))
        before = set(after)
    assert process(version, world.champion, "") == 0
    found = json.loads((version.run_path / "gate.json").read_text())
    calm = settings(world.folder / "uncompared", world.teacher, TEXT)
    assert found == json.loads(json.dumps(asdict(compare(alone(calm, version.run_path / "calm"), world.champion, 0))))


@pytest.mark.parametrize(("point", "mark"), [("engine.after_answer", b'"text"'), ("evaluate.after_record", b'"sums"')])
def test_only_what_is_not_on_disk_is_done_after_a_kill(
    world, version, process: Compare, point: str, mark: bytes
) -> None:
    """As a kill leaves it: some rows whole, the next one torn."""
    before = journals(version)
    assert process(version, world.champion, "") == 0
    ((path, rows),) = (
        (path, rows) for path, rows in journals(version).items() if path not in before and mark in rows[0]
    )
    assert len(rows) == NUM_HELD_OUT
    for extra, code in ((0, KILLED), (1, 0)):
        path.write_bytes(b"".join(rows[:ON_DISK]) + rows[ON_DISK][:7])
        assert process(version, world.champion, f"{point}:{NUM_HELD_OUT - ON_DISK + extra}") == code


def test_the_same_comparison_again_does_nothing(world: World, version: Pipeline, process: Compare) -> None:
    assert process(version, world.champion, "") == 0
    rows = journals(version)
    for point in ("engine.after_answer:1", "evaluate.after_record:1", "journal.after_write:1"):
        assert process(version, world.champion, point) == 0
    assert journals(version) == rows
