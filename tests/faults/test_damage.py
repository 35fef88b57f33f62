"""Files of the run that something else tore or changed: one clear line, and its advice works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmdistill.record import SCHEMA_VERSION
from tests.faults.conftest import STAGES, Run
from tests.faults.same import assert_same_results

READ_BY = {
    "prompts/part-00000.parquet": "generate",
    "generate/part-00001.parquet": "filter",
    "filter/part-00002.parquet": "curate",
    "curate/part-00000.parquet": "train",
    "prompts/held_out.parquet": "evaluate",
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("name", READ_BY)
@pytest.mark.parametrize("harm", [flip, cut, Path.unlink], ids=["flipped", "cut", "missing"])
def test_a_damaged_input_is_named_and_not_worked_with(finished: Run, name: str, harm: object) -> None:
    path, stage = finished.dir / name, READ_BY[name]
    (finished.dir / stage / "manifest.json").unlink()
    for part in (finished.dir / stage).glob("part-*"):
        part.unlink()
    harm(path)
    result = finished.do(stage)
    if result.code == 0:
        assert stage == "generate" and harm is Path.unlink, "only this command makes its own input again"
        return
    assert (result.code, str(path) in result.error) == (1, True)
    assert not (finished.dir / stage / "manifest.json").exists()


def test_the_advice_about_a_damaged_shard_mends_it_without_asking_anyone(finished: Run, undisturbed: Run) -> None:
    path = finished.dir / "generate" / "part-00001.parquet"
    flip(path)
    (finished.dir / "filter" / "begun.json").unlink()
    assert "remove it and run llmdistill generate again" in finished.do("filter").error
    path.unlink()
    finished.do("generate", failpoint="engine.after_answer:1").ok()
    finished.do("filter", failpoint="engine.after_answer:1").ok()
    assert_same_results(finished, undisturbed, ("generate", "filter"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_damaged_manifest_is_one_clear_error(finished: Run, stage: str) -> None:
    path = finished.dir / stage / "manifest.json"
    cut(path)
    result = finished.do("run")
    assert result.code == 1 and str(path) in result.error


def test_a_run_of_an_older_version_is_refused_and_left_as_it_is(finished: Run) -> None:
    path = finished.dir / "generate" / "manifest.json"
    values = {**json.loads(path.read_text()), "schema_version": 0}
    path.write_text(json.dumps(values))
    before = sorted(finished.dir.rglob("*"))
    result = finished.do("run", failpoint="engine.after_answer:1")
    assert result.code == 1
    assert f"made under schema 0, this version reads schema {SCHEMA_VERSION}" in result.error
    assert "--set name=" in result.error
    assert sorted(finished.dir.rglob("*")) == before and json.loads(path.read_text()) == values


def test_damaged_settings_of_a_begun_stage_are_one_clear_error(finished: Run) -> None:
    path = finished.dir / "generate" / "begun.json"
    path.write_text('{"gen')
    result = finished.do("generate", failpoint="engine.after_answer:1")
    assert result.code == 1 and str(path) in result.error


def test_a_damaged_line_of_a_journal_costs_one_answer(finished: Run, undisturbed: Run) -> None:
    (journal,) = (finished.dir / "generate" / "journal").glob("*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"\0" * 80 + b"\n", *lines[2:]]))
    (finished.dir / "generate" / "part-00000.parquet").unlink()
    result = finished.do("generate").ok()
    assert "1 damaged line moved to" in result.stderr
    assert len(finished.answers()) == 1
    assert_same_results(finished, undisturbed, ("generate",))
