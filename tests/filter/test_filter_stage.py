"""The stage as a whole: a missing answer is owed, a kill anywhere costs nothing, the last verdict is the score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmdistill.config import Filter, Pipeline, Verify
from llmdistill.filter import stage as filter_stage
from llmdistill.record import Record
from llmdistill.run.manifest import Manifest, read_manifest
from llmdistill.run.stage import read_shards
from tests.engines.loopback import Answer, Seen, chat, serving
from tests.filter.judging import asked, fenced, judged_by, judging, model, record
from tests.filter.killing import Kill, killing
from tests.forking import KILLED
from tests.runs import finish_stage

RECORDS = [record(f"질문 {n}번: 바다는 왜 짠가요?", f"등급 {1 + n % 5}") for n in range(12)]
SHARDS = [RECORDS[:5], RECORDS[5:]]
NOTHING = "nothing.at.all"
"""A failpoint that is never passed."""


@pytest.fixture(scope="module")
def kill() -> Iterator[Kill]:
    with killing() as function:
        yield function


def grade(question: str) -> str:
    return fenced(question)[1].split()[-1]


def reply(seen: Seen, broken: set[str]) -> Answer:
    """The grade, or nothing that can be read."""
    text = asked(seen)
    return Answer(body={"choices": []} if fenced(text)[1] in broken else chat(grade(text)))


def with_threshold(given: Pipeline, min_score: float) -> Pipeline:
    judge = given.filter.judge.model_copy(update={"min_score": min_score})
    return given.model_copy(update={"filter": given.filter.model_copy(update={"judge": judge})})


def kept(run_dir: Path) -> list[Record]:
    return [item for shard in read_shards(run_dir, "filter") for item in shard]


def results(run_dir: Path) -> Manifest:
    """The manifest without what depends on clock and place."""
    found = read_manifest(run_dir / "filter")
    return replace(found, usage=replace(found.usage, seconds=0), settings={}, digest="")


def test_a_record_without_an_answer_is_failed_and_only_retry_failed_asks_it_again(tmp_path: Path) -> None:
    finish_stage(tmp_path, "generate", SHARDS)
    broken = {"등급 3"}
    with serving(lambda seen: reply(seen, broken)) as server:
        given = judged_by(tmp_path, {"model": model(server.url), "min_score": 2})
        first = filter_stage.run(given)
        assert (first.counts.failed, first.counts.reasons) == (2, {"failed": 2, "low_score": 3})
        calls = len(server.seen)
        broken.clear()
        assert filter_stage.run(given) == first
        assert filter_stage.run(with_threshold(given, 5)).counts.reasons == {"failed": 2, "low_score": 8}
        assert len(server.seen) == calls, "another threshold asks nobody"
        last = filter_stage.run(with_threshold(given, 5), retry_failed=True)
        assert len(server.seen) == calls + 2
        assert last.counts.reasons == {"low_score": 10} and last.usage.requests == 12
        assert filter_stage.run(given).counts.reasons == {"low_score": 3}


def test_a_killed_judging_asks_again_for_what_had_failed(tmp_path: Path, kill: Kill) -> None:
    finish_stage(tmp_path, "generate", SHARDS)
    broken = {"등급 3"}
    with serving(lambda seen: reply(seen, broken)) as server:
        given = judged_by(tmp_path, {"model": model(server.url), "min_score": 2})
        assert kill(given, "filter.after_judged:1") == KILLED
        broken.clear()
        assert filter_stage.run(given).counts.reasons == {"low_score": 3}


POINTS = [
    "engine.after_answer:5",
    "journal.after_write:1",
    "filter.after_judged:1",
    "filter.after_judged:2",
    "stage.between_files:1",
    "stage.after_shard:2",
    "stage.before_manifest:1",
    *(f"files.before_replace:{number}" for number in range(1, 9)),
]


def num_journalled(run_dir: Path) -> int:
    """Answers that are on disk, however many more came: a kill loses those that were still in memory."""
    journals = (run_dir / "filter" / "journal").rglob("*.jsonl")
    return sum(line.endswith("\n") for journal in journals for line in journal.open())


def test_a_kill_anywhere_ends_in_the_same_result_and_no_journalled_answer_is_asked_again(
    tmp_path: Path, kill: Kill
) -> None:
    with judging(grade) as server:
        finish_stage(tmp_path / "whole", "generate", SHARDS)
        filter_stage.run(judged_by(tmp_path / "whole", {"model": model(server.url)}))
        needed = len(server.seen)
        codes = {}
        for point in POINTS:
            folder = tmp_path / point.replace(":", "-")
            finish_stage(folder, "generate", SHARDS)
            given = judged_by(folder, {"model": model(server.url)})
            codes[point] = kill(given, point)
            calls, on_disk = len(server.seen), num_journalled(folder)
            filter_stage.run(given)
            assert len(server.seen) - calls == needed - on_disk, point
            assert results(folder) == results(tmp_path / "whole"), point
            assert not list(folder.rglob("*.tmp")), point
    assert codes == dict.fromkeys(POINTS, KILLED)


def test_a_process_of_its_own_gives_the_same_result(tmp_path: Path, kill: Kill) -> None:
    with judging(grade) as server:
        for name in ("here", "there"):
            finish_stage(tmp_path / name, "generate", SHARDS)
            given = judged_by(tmp_path / name, {"model": model(server.url)})
            assert kill(given, NOTHING) == 0 if name == "there" else filter_stage.run(given)
    assert results(tmp_path / "here") == results(tmp_path / "there")


def test_behind_several_criteria_stands_their_mean_which_is_the_score(tmp_path: Path) -> None:
    finish_stage(tmp_path, "generate", [RECORDS[:1]])
    scores = iter("5142")
    with judging(lambda question: next(scores)) as server:
        rubric = "prompts/en/judge-criteria.yaml"
        given = judged_by(tmp_path, {"model": model(server.url, max_concurrency=1), "rubric": rubric, "min_score": 1})
        filter_stage.run(given)
    (found,) = kept(tmp_path)
    *each, last = found.verdicts
    assert len(each) > 1 and all(verdict.criterion for verdict in each)
    assert (last.criterion, last.outcome, last.judge) == ("all", "parsed", each[0].judge)
    assert min(v.score for v in each) < last.score < max(v.score for v in each) and found.score == last.score


def test_the_verifiers_word_stands_before_the_judges(tmp_path: Path) -> None:
    records = [
        replace(record("여섯 곱하기 칠은 얼마인가요?", "42"), reference="42"),
        replace(RECORDS[0], reference="9"),
    ]
    finish_stage(tmp_path, "generate", [records])
    with judging(lambda question: "4") as server:
        given = judged_by(tmp_path, {"model": model(server.url)})
        settings = Filter(verify=Verify(kind="math"), judge=given.filter.judge)
        made = filter_stage.run(given.model_copy(update={"filter": settings}))
        assert len(server.seen) == 1
    (found,) = kept(tmp_path)
    assert [verdict.judge for verdict in found.verdicts] == ["verify:math", "judge"] and found.score == 4
    assert made.counts.reasons == {"wrong_answer": 1}
