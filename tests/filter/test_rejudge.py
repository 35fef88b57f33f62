"""`filter --rejudge` adds verdicts and keeps the old ones, whatever happens in between."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from llmdistill.cli import app
from llmdistill.config import Filter, Pipeline, Verify
from llmdistill.errors import DamagedError, UsageError
from llmdistill.filter import stage as filter_stage
from llmdistill.filter.earlier import round_of
from llmdistill.record import Record, from_row
from llmdistill.run.stage import part_paths
from tests.filter.judging import fenced, judged_by, judging, model, record
from tests.filter.killing import Kill, killing
from tests.filter.test_filter_stage import results, with_threshold
from tests.forking import KILLED
from tests.runs import finish_stage, pipeline
from tests.tiny import REPO

RECORDS = [record(f"질문 {n}번: 달은 왜 밝은가요?", f"등급 {1 + n % 5}") for n in range(7)]
SHARDS = [RECORDS[:3], RECORDS[3:]]


@pytest.fixture(scope="module")
def kill() -> Iterator[Kill]:
    with killing() as function:
        yield function


class Moody:
    """A judge that gives every answer its grade, one less in each new mood, and never less than 1."""

    mood = 0

    def __call__(self, question: str) -> str:
        return str(max(1, int(fenced(question)[1].split()[-1]) - self.mood))


def all_of(run_dir: Path) -> dict[str, Record]:
    """Every record that the filter saw, kept or rejected."""
    paths = [*part_paths(run_dir / "filter"), run_dir / "filter" / "rejects.parquet"]
    found = [
        from_row({k: v for k, v in row.items() if k != "reject"}) for p in paths for row in pq.read_table(p).to_pylist()
    ]
    return {item.id: item for item in found}


def scores(run_dir: Path) -> list[list[float | None]]:
    found = all_of(run_dir)
    return [[verdict.score for verdict in found[item.id].verdicts] for item in RECORDS]


def test_after_two_rejudges_a_record_has_three_verdicts_and_the_last_one_counts(tmp_path: Path) -> None:
    finish_stage(tmp_path, "generate", SHARDS)
    judge, before = Moody(), {}
    with judging(judge) as server:
        given = judged_by(tmp_path, {"model": model(server.url)})
        for mood, kept in enumerate((3, 2, 1)):
            judge.mood = mood
            made = filter_stage.run(given, rejudge=mood > 0)
            assert (made.counts.kept, made.usage.requests, len(server.seen)) == (kept, 7, 7 * (mood + 1))
            after = all_of(tmp_path)
            assert all(after[id_].verdicts[:mood] == item.verdicts for id_, item in before.items())
            before = after
        assert filter_stage.run(given) == made
    assert scores(tmp_path) == [[n, max(1, n - 1), max(1, n - 2)] for n in (1, 2, 3, 4, 5, 1, 2)]
    assert [after[item.id].score for item in RECORDS] == [1, 1, 1, 2, 3, 1, 1]


def test_a_changed_rubric_keeps_the_old_rubrics_verdicts(tmp_path: Path) -> None:
    finish_stage(tmp_path, "generate", SHARDS)
    shutil.copy(REPO / "prompts" / "en" / "judge.yaml", tmp_path / "rubric.yaml")
    with judging(Moody()) as server:
        given = judged_by(tmp_path, {"model": model(server.url), "rubric": str(tmp_path / "rubric.yaml")})
        filter_stage.run(given)
        old = {id_: item.verdicts for id_, item in all_of(tmp_path).items()}
        text = (tmp_path / "rubric.yaml").read_text().replace("Rate how well", "Grade how well")
        (tmp_path / "rubric.yaml").write_text(text)
        filter_stage.run(given, rejudge=True)
    for id_, item in all_of(tmp_path).items():
        assert item.verdicts[:1] == old[id_] and len(item.verdicts) == 2
        assert item.verdicts[0].rubric_hash != item.verdicts[1].rubric_hash


def test_a_new_threshold_after_a_rejudge_asks_nobody_and_keeps_every_verdict(tmp_path: Path) -> None:
    finish_stage(tmp_path, "generate", SHARDS)
    with judging(Moody()) as server:
        given = judged_by(tmp_path, {"model": model(server.url)})
        filter_stage.run(given)
        filter_stage.run(given, rejudge=True)
        before = scores(tmp_path)
        assert filter_stage.run(with_threshold(given, 5)).counts.kept == 1
        assert scores(tmp_path) == before == [[n, n] for n in (1, 2, 3, 4, 5, 1, 2)] and len(server.seen) == 14


def answered(item: Record) -> Record:
    return replace(item, completion=[{"role": "assistant", "content": item.answer or ""}])


def test_an_answer_that_changed_loses_what_was_said_about_the_old_one(tmp_path: Path) -> None:
    finish_stage(tmp_path, "generate", [[answered(item) for item in shard] for shard in SHARDS])
    with judging(Moody()) as server:
        given = judged_by(tmp_path, {"model": model(server.url)})
        filter_stage.run(given)
        filter_stage.run(given, rejudge=True)
        changed = [replace(RECORDS[0], answer="등급 4"), *RECORDS[1:]]
        new = record("새 질문: 별은 몇 개인가요?", "등급 5")
        shutil.rmtree(tmp_path / "generate")
        finish_stage(tmp_path, "generate", [[answered(item) for item in [new, *changed]]])
        filter_stage.run(given)
    assert scores(tmp_path) == [[4], *([n, n] for n in (2, 3, 4, 5, 1, 2))]
    assert [verdict.score for verdict in all_of(tmp_path)[new.id].verdicts] == [5]


def test_the_verifiers_word_is_not_added_twice(tmp_path: Path) -> None:
    items = [replace(RECORDS[0], answer="42", reference="42"), replace(RECORDS[1], answer="41", reference="42")]
    finish_stage(tmp_path, "generate", [items])
    with judging(lambda question: "4") as server:
        given = judged_by(tmp_path, {"model": model(server.url)})
        settings = Filter(verify=Verify(kind="math"), judge=given.filter.judge)
        given = given.model_copy(update={"filter": settings})
        filter_stage.run(given)
        filter_stage.run(given, rejudge=True)
    right, wrong = (all_of(tmp_path)[item.id].verdicts for item in items)
    assert [verdict.judge for verdict in right] == ["verify:math", "judge", "judge"]
    assert [verdict.outcome for verdict in wrong] == ["wrong"]


def test_a_jurys_words_of_both_rounds_stay(tmp_path: Path) -> None:
    finish_stage(tmp_path, "generate", SHARDS)
    judge = Moody()
    with judging(judge) as server:
        given = judged_by(tmp_path, {"model": model(server.url), "jury": [{"model": model(server.url, "other")}]})
        filter_stage.run(given)
        judge.mood = 1
        filter_stage.run(given, rejudge=True)
    for item, grade in zip(RECORDS, (1, 2, 3, 4, 5, 1, 2), strict=True):
        verdicts = all_of(tmp_path)[item.id].verdicts
        assert [verdict.judge for verdict in verdicts] == ["judge", "other", "jury"] * 2
        assert [verdict.score for verdict in verdicts] == [grade] * 3 + [max(1, grade - 1)] * 3


POINTS = [
    "engine.after_answer:3",
    "journal.after_write:1",
    "filter.after_judged:1",
    "stage.between_files:2",
    "stage.before_manifest:1",
    *(f"files.before_replace:{number}" for number in range(1, 10)),
]


def test_a_kill_anywhere_in_a_rejudge_loses_and_doubles_no_verdict(tmp_path: Path, kill: Kill) -> None:
    """After the kill, the plain command goes on, and so does --rejudge without beginning yet another round."""

    def copied(name: str) -> Pipeline:
        shutil.copytree(tmp_path / "first", tmp_path / name)
        return judged_by(tmp_path / name, {"model": model(server.url)})

    with judging(Moody()) as server:
        finish_stage(tmp_path / "first", "generate", SHARDS)
        filter_stage.run(judged_by(tmp_path / "first", {"model": model(server.url)}))
        filter_stage.run(copied("whole"), rejudge=True)
        codes, begun = {}, {}
        for number, point in enumerate(POINTS):
            given = copied(f"killed-{number}")
            codes[point] = kill(given, point, rejudge=True)
            calls, begun[point] = len(server.seen), round_of(given.run_path)
            filter_stage.run(given, rejudge=not begun[point] or number % 2 == 0)
            asked = begun[point] and point != "files.before_replace:2" and not point.startswith("engine")
            assert not asked or len(server.seen) == calls, point
            assert round_of(given.run_path) == 1, point
            assert results(given.run_path) == results(tmp_path / "whole"), point
    assert codes == dict.fromkeys(POINTS, KILLED)
    assert [point for point in POINTS if not begun[point]] == ["files.before_replace:1"]


def test_earlier_verdicts_that_cannot_be_read_are_one_clear_error_and_are_not_dropped(tmp_path: Path) -> None:
    finish_stage(tmp_path, "generate", SHARDS)
    with judging(Moody()) as server:
        given = judged_by(tmp_path, {"model": model(server.url)})
        filter_stage.run(given)
        filter_stage.run(given, rejudge=True)
        path = tmp_path / "filter" / "journal" / "earlier.parquet"
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(DamagedError, match="earlier.parquet: .*cannot be read"):
            filter_stage.run(with_threshold(given, 2))
    assert scores(tmp_path)[1] == [2, 2]


def test_without_a_judge_there_is_nothing_to_judge_once_more(tmp_path: Path) -> None:
    finish_stage(tmp_path, "generate", SHARDS)
    with pytest.raises(UsageError, match="no judge"):
        filter_stage.run(pipeline(tmp_path), rejudge=True)


def test_only_the_command_filter_has_the_flag() -> None:
    shown = {name: CliRunner().invoke(app, [name, "--help"]).output for name in ("filter", "generate", "run")}
    assert [name for name, text in shown.items() if "--rejudge" in text] == ["filter"]
