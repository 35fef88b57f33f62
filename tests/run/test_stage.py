"""Beginning, resuming, moving aside and finishing a stage, without any model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmdistill.errors import AccountingError, ChangedError, DamagedError, StageError
from llmdistill.record import Record, Reject, record_id
from llmdistill.run.manifest import Counts, Manifest
from llmdistill.run.stage import Outcome, Stage, begin, inputs_of, read_shards, write_part

PARTS = {"work.size": 2, "free.colour": "red"}


def record(number: int) -> Record:
    prompt = [{"role": "user", "content": f"question {number}"}]
    return Record(record_id(prompt), prompt)


SHARDS = [[record(number) for number in range(start, start + 4)] for start in (0, 4, 8)]


def keep_even(records: list[Record]) -> Outcome:
    return Outcome(records[::2], [Reject(item, "work", "odd") for item in records[1::2]])


def begun(folder: Path, **changes: object) -> Stage:
    stage = begin(folder, "work", {**PARTS, **{key.replace("_", "."): value for key, value in changes.items()}})
    assert isinstance(stage, Stage)
    return stage


def finish(folder: Path) -> Manifest:
    stage = begun(folder)
    return stage.finish(stage.run_shards(SHARDS, keep_even))


def test_a_finished_stage_gives_its_manifest_instead_of_work(tmp_path: Path) -> None:
    made = finish(tmp_path)
    assert begin(tmp_path, "work", PARTS) == made
    assert made.counts == Counts(12, 6, 6, 0, {"odd": 6})


def test_a_guarded_change_is_refused_naming_key_old_and_new(tmp_path: Path) -> None:
    finish(tmp_path)
    with pytest.raises(ChangedError, match="work.size: 2 -> 3") as error:
        begin(tmp_path, "work", {**PARTS, "work.size": 3}, guard=("work.",))
    assert error.value.exit_code == 2 and "--fresh" in str(error.value)
    assert isinstance(begin(tmp_path, "work", PARTS), Manifest)


def test_a_refused_change_names_only_guarded_keys(tmp_path: Path) -> None:
    finish(tmp_path)
    with pytest.raises(ChangedError) as error:
        begin(tmp_path, "work", {"work.size": 3, "free.colour": "blue"}, guard=("work.",))
    assert "colour" not in str(error.value)


def test_fresh_moves_the_results_to_previous_and_leaves_the_journals(tmp_path: Path) -> None:
    with begun(tmp_path).journal({"a": 1}) as journal:
        journal.append("paid")
    finish(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "work").iterdir() if path.is_file()}
    stage = begin(tmp_path, "work", {**PARTS, "work.size": 3}, guard=("work.",), fresh=True)
    assert isinstance(stage, Stage)
    previous = tmp_path / "work.previous"
    assert {path.name: path.read_bytes() for path in previous.iterdir()} == before
    assert sorted(path.name for path in stage.dir.iterdir()) == ["begun.json", "journal"]
    with stage.journal({"a": 1}) as journal:
        assert "paid" in journal


def _begin_and_die_at_rename(folder: Path, number: int) -> None:
    """In a process of its own: change a setting, and die at the given rename."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    left, rename = [number], Path.rename

    def counting(self: Path, target: Path) -> Path:
        if not left[0]:
            os._exit(137)
        left[0] -= 1
        return rename(self, target)

    Path.rename = counting
    begun(folder, free_colour="blue")
    os._exit(0)


@pytest.mark.parametrize("number", range(8))
def test_a_kill_anywhere_in_moving_aside_loses_no_file_and_never_looks_finished(tmp_path: Path, number: int) -> None:
    finish(tmp_path)
    names = {path.name for path in (tmp_path / "work").iterdir()}
    _begin_and_die_at_rename(tmp_path, number)
    begun(tmp_path, free_colour="blue")
    assert {path.name for path in (tmp_path / "work.previous").iterdir()} == names
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["begun.json"]


def test_moving_nothing_aside_keeps_the_previous_results(tmp_path: Path) -> None:
    finish(tmp_path)
    begun(tmp_path, free_colour="blue")
    begun(tmp_path, free_colour="green")
    assert (tmp_path / "work.previous" / "manifest.json").exists()


def test_finished_shards_are_not_worked_on_again(tmp_path: Path) -> None:
    stage = begun(tmp_path)

    def stop_at_the_second(records: list[Record]) -> Outcome:
        if records == SHARDS[1]:
            raise RuntimeError
        return keep_even(records)

    with pytest.raises(RuntimeError):
        stage.run_shards(SHARDS, stop_at_the_second)
    worked = []
    counts = begun(tmp_path).run_shards(SHARDS, lambda records: worked.append(records) or keep_even(records))
    assert worked == SHARDS[1:] and counts == Counts(12, 6, 6, 0, {"odd": 6})


@pytest.mark.parametrize("name", ["part-00001.parquet", "rejects.parquet"])
def test_a_result_that_was_removed_is_made_again(tmp_path: Path, name: str) -> None:
    made = finish(tmp_path)
    (tmp_path / "work" / name).unlink()
    again = finish(tmp_path)
    assert (again.counts, again.outputs) == (made.counts, made.outputs)


def test_a_shard_that_loses_or_doubles_a_record_is_refused(tmp_path: Path) -> None:
    for broken in (lambda records: Outcome(records[1:]), lambda records: Outcome([*records, records[0]])):
        with pytest.raises(StageError, match="shard 0 of work lost"):
            begun(tmp_path).run_shards(SHARDS, broken)
        assert not list((tmp_path / "work").glob("part-*"))


def test_counts_that_do_not_add_up_leave_no_manifest(tmp_path: Path) -> None:
    stage = begun(tmp_path)
    with pytest.raises(AccountingError):
        stage.finish(Counts(3, 1, 1))
    assert not (stage.dir / "manifest.json").exists()


def test_a_stage_that_is_not_finished_is_no_input(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(StageError, match="work is not finished yet"):
        inputs_of(tmp_path, "work")


def test_an_input_shard_that_is_missing_is_refused_not_skipped(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "work" / "part-00001.parquet").unlink()
    with pytest.raises(DamagedError, match="part-00001.parquet"):
        list(read_shards(tmp_path, "work"))


def test_an_input_shard_that_was_changed_is_refused(tmp_path: Path) -> None:
    stage = begun(tmp_path)
    stage.finish(stage.run_shards(SHARDS, keep_even))
    write_part(stage, 1, [record(99)])
    with pytest.raises(DamagedError, match="part-00001.parquet"):
        list(read_shards(tmp_path, "work"))
